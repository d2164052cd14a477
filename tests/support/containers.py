"""Processes in namespaces of their own, which the sidecar treats as containers."""

import ctypes
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from inx_sidecar.kernel.syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MS_PRIVATE,
    MS_REC,
    mount,
    move_mount,
    open_tree,
    opened,
    setns,
    unshare,
)

CLONE_NEWPID: Final = 0x20000000
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_SHARED: Final = 1 << 20
MNT_DETACH: Final = 2
FIRST_ID: Final = 1_000_000

_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)


def umount(path: str, flags: int = 0) -> None:
    _checked(_libc.umount2(os.fsencode(path), flags), path)


def clear_attributes(mount_fd: int, attributes: int) -> None:
    """Remove attributes of a mount, by mount_setattr(2)."""
    attr = (ctypes.c_uint64 * 4)(0, attributes, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    done = _libc.syscall(ctypes.c_long(442), mount_fd, b"", AT_EMPTY_PATH, attr, size)
    _checked(done, "mount_setattr")


def apart(function: Callable[[], T]) -> T:
    """Call `function` in a forked child. Return its result, or raise its exception."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer: tuple[bool, Any]
        try:
            os.close(receive)
            answer = True, function()
        except OSError as error:
            answer = False, error
        except BaseException:
            answer = False, AssertionError(traceback.format_exc())
        with open(send, "wb") as channel:
            pickle.dump(answer, channel)
        os._exit(0)
    os.close(send)
    with open(receive, "rb") as channel:
        good, value = pickle.load(channel)
    os.waitpid(pid, 0)
    if not good:
        raise value
    result: T = value
    return result


class Sandbox:
    """A running container. `rootfs` is its root, `pid` is the PID of its init, which only waits."""

    def __init__(self, rootfs: Path, pid: int, privileged: bool) -> None:
        self.rootfs = rootfs
        self.pid = pid
        self.privileged = privileged
        self.first_id = 0 if privileged else FIRST_ID

    def inside(self, function: Callable[[], T]) -> T:
        """Call `function` as the container's root, with all capabilities, and return its result."""

        def enter() -> T:
            with (
                open(f"/proc/{self.pid}/ns/user") as user,
                open(f"/proc/{self.pid}/ns/mnt") as mounts,
            ):
                if not self.privileged:
                    setns(user.fileno(), CLONE_NEWUSER)
                setns(mounts.fileno(), CLONE_NEWNS)
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            return function()

        return apart(enter)


def make_rootfs(path: Path, first_id: int = FIRST_ID) -> Path:
    """An empty root file system with /dev, /mnt and /proc, as `incus launch --empty` makes it."""
    for directory in ("", "dev", "mnt", "proc"):
        (path / directory).mkdir(parents=True, exist_ok=True)
        os.chown(path / directory, first_id, first_id)
    return path


@contextmanager
def running(rootfs: Path, *, privileged: bool = False) -> Iterator[Sandbox]:
    """A container as it is when LXC runs the hook `mount`: after pivot_root, before init."""
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    child = os.fork()
    if child == 0:
        for fd in (from_child, to_child):
            os.close(fd)
        _start(rootfs, to_parent, from_parent, privileged)
    os.close(to_parent)
    os.close(from_parent)
    try:
        if not privileged:
            assert os.read(from_child, 1) == b"u"
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{child}/{kind}").write_text(f"0 {FIRST_ID} 65536")
            os.write(to_child, b"m")
        # The child writes the PID of init, and init writes "r" when it is ready, in any order.
        words = b""
        while len(words) < 21:
            word = os.read(from_child, 21)
            assert word, "the container did not start"
            words += word
        pid = int(words.replace(b"r", b""))
        yield Sandbox(rootfs, pid, privileged)
    finally:
        os.close(to_child)  # init reads the end of the pipe, and ends
        os.close(from_child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _start(rootfs: Path, to_parent: int, from_parent: int, privileged: bool) -> NoReturn:
    try:
        os.chdir(rootfs)  # the container's root may have no access to a parent directory
        if not privileged:
            unshare(CLONE_NEWUSER)
            os.write(to_parent, b"u")
            assert os.read(from_parent, 1) == b"m"
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        unshare(CLONE_NEWNS | CLONE_NEWPID)
        pid = os.fork()
        if pid:
            os.write(to_parent, f"{pid:020}".encode())
            os.waitpid(pid, 0)
            os._exit(0)
        _pivot()
        os.write(to_parent, b"r")
        os.read(from_parent, 1)
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def _pivot() -> None:
    """Make the working directory the root directory, and unmount the old root."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    with opened(open_tree(AT_FDCWD, ".")) as tree, opened(os.open(".", os.O_PATH)) as here:
        move_mount(tree, here)
        os.fchdir(tree)
        # The kernel allows a new proc only while another one is visible (mount_namespaces(7)).
        mount("proc", "proc", "proc", 0)
        mount("tmpfs", "dev", "tmpfs", 0, "mode=755")
        pivot_here()


def pivot_here() -> None:
    """Make the working directory, a mount, the root directory, and unmount the old root."""
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    umount(".", MNT_DETACH)
    os.chdir("/")


def plain(path: str, source: str = "none", flags: int = 0) -> None:
    """mount(2) without a file system type: a remount or a bind mount."""
    mount(source, path, "", flags)
