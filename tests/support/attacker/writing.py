"""Attempts to write where a container must not write."""

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable

from support.attacker.handles import Handle, open_handle
from support.attacker.kernel import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    FSCONFIG,
    FSCONFIG_CMD_RECONFIGURE,
    FSCONFIG_SET_FLAG,
    FSPICK,
    MNT_DETACH,
    MOUNT_SETATTR,
    MOVE_MOUNT,
    OPEN_TREE,
    OPEN_TREE_CLONE,
    attempt,
    call,
    check,
    libc,
)

MOUNT_ATTR_RDONLY = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x04
RENAME_EXCHANGE = 2
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
NO_ATIME = 0x80

# The kernel refuses these even for a mount that belongs to the container.
NEVER = {"reconfigure the file system", "mount_setattr on a copy of all"}
# The kernel refuses these for a read-only mount that belongs to the container, too.
HOPELESS_CALLS = NEVER | {
    "mount_setattr in a user namespace",
    "write in a copy",
    "setxattr",
    "open for writing",
    "reopen for writing",
    "unnamed file",
    "inode flags",
    "times",
    "link out of it",
}


def system_calls(
    target: str, file: str, known: dict[str, Handle], bases: list[str]
) -> dict[str, str]:
    """Try to write at the mount `target` and to `file` in it, and to open each known handle.

    For each attempt: "done", or the name of the error.
    """
    outcome: dict[str, str] = {}

    def trial(name: str) -> Callable[[Callable[[], None]], None]:
        def decorate(function: Callable[[], None]) -> None:
            outcome[name] = attempt(function)

        return decorate

    def make_writable(fd: int, flags: int = AT_EMPTY_PATH, undo: bool = False) -> None:
        attr = (ctypes.c_uint64 * 4)(
            MOUNT_ATTR_RDONLY if undo else 0, 0 if undo else MOUNT_ATTR_RDONLY, 0, 0
        )
        call(MOUNT_SETATTR, fd, b"", flags, ctypes.addressof(attr), ctypes.sizeof(attr))

    def write(dir_fd: int) -> None:
        os.close(os.open("pwned", os.O_WRONLY | os.O_CREAT, dir_fd=dir_fd))
        os.unlink("pwned", dir_fd=dir_fd)

    def copy_of(path: str = target, flags: int = 0) -> int:
        return call(OPEN_TREE, AT_FDCWD, os.fsencode(path), OPEN_TREE_CLONE | flags)

    @trial("mount_setattr")
    def _() -> None:
        fd = os.open(target, os.O_PATH)
        make_writable(fd)
        write(fd)
        if target != "/plain":
            make_writable(fd, undo=True)

    @trial("mount_setattr on a copy")
    def _() -> None:
        fd = copy_of()
        make_writable(fd)
        write(fd)

    @trial("mount_setattr on a copy of all")
    def _() -> None:
        fd = copy_of("/", AT_RECURSIVE)
        make_writable(fd, AT_EMPTY_PATH | AT_RECURSIVE)
        write(os.open(target.lstrip("/"), os.O_PATH, dir_fd=fd))

    @trial("mount_setattr on a copy of a file")
    def _() -> None:
        fd = copy_of(file)
        make_writable(fd)
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND))

    @trial("mount_setattr on an attached copy")
    def _() -> None:
        os.makedirs("/a", exist_ok=True)
        call(MOVE_MOUNT, copy_of(), b"", AT_FDCWD, b"/a", MOVE_MOUNT_F_EMPTY_PATH)
        fd = os.open("/a", os.O_PATH)
        try:
            make_writable(fd)
            write(fd)
        finally:
            libc.umount2(b"/a", MNT_DETACH)

    @trial("mount_setattr in a user namespace")
    def _() -> None:
        check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
        fd = os.open(target, os.O_PATH)
        make_writable(fd)
        write(fd)

    @trial("write in a copy")
    def _() -> None:
        write(copy_of())

    @trial("reconfigure the file system")
    def _() -> None:
        fd = call(FSPICK, AT_FDCWD, os.fsencode(target), 0)
        call(FSCONFIG, fd, FSCONFIG_SET_FLAG, b"rw", None, 0)
        call(FSCONFIG, fd, FSCONFIG_CMD_RECONFIGURE, None, None, 0)

    @trial("setxattr")
    def _() -> None:
        os.setxattr(file, "user.pwned", b"1")
        os.removexattr(file, "user.pwned")

    @trial("open for writing")
    def _() -> None:
        os.close(os.open(file, os.O_RDWR))

    @trial("reopen for writing")
    def _() -> None:
        fd = os.open(file, os.O_PATH)
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))

    @trial("unnamed file")
    def _() -> None:
        os.close(os.open(target, os.O_TMPFILE | os.O_RDWR))

    @trial("inode flags")
    def _() -> None:
        fd = os.open(file, os.O_RDONLY)
        flags = fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, bytes([flags[0] ^ NO_ATIME]) + flags[1:])
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags)

    @trial("times")
    def _() -> None:
        os.utime(file, (1, 1))

    @trial("link out of it")
    def _() -> None:
        os.link(file, "/plain/stolen")
        os.unlink("/plain/stolen")

    for base in bases:
        for path, handle in known.items():

            @trial(f"handle of {path} at {base}")
            def _(base: str = base, handle: Handle = handle) -> None:
                open_handle(base, handle)

    return outcome


def links_and_renames(shown: str, secret: str) -> dict[str, str]:
    """Link and rename into the view, out of the view and within: the name of each error."""
    outcome = {}
    os.makedirs("/root/mine", exist_ok=True)
    with open("/root/file", "w") as file:
        file.write("mine")

    def link_fd(source: str, target: str) -> None:
        fd = os.open(source, os.O_PATH)
        check(libc.linkat(fd, b"", AT_FDCWD, target.encode(), AT_EMPTY_PATH))

    def exchange(source: str, target: str) -> None:
        flags = ctypes.c_uint(RENAME_EXCHANGE)
        check(libc.renameat2(AT_FDCWD, source.encode(), AT_FDCWD, target.encode(), flags))

    calls: dict[str, Callable[[str, str], None]] = {
        "link": os.link,
        "link by descriptor": link_fd,
        "rename": os.rename,
        "exchange": exchange,
    }
    for what, trick in calls.items():
        for source, target in (
            (f"{shown}/file", "/root/stolen"),
            (f"{shown}/file", f"{shown}/second"),
            (f"{shown}/file", secret),
            (shown, "/root/mine"),
            (shown, secret),
            ("/root/file", f"{shown}/file"),
            ("/root/file", secret),
            ("/root/mine", secret),
        ):
            try:
                trick(source, target)
                how = "succeeded"
            except OSError as error:
                how = errno.errorcode[error.errno or 0]
            outcome[f"{what} {source} {target}"] = how
    return outcome
