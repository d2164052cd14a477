"""Linux system calls that Python lacks, under their kernel names.

Each wrapper of a system call raises OSError with the path. Call numbers from
424 up are the same on every architecture (include/uapi/asm-generic/unistd.h). Flags are those of
include/uapi/linux/{mount,openat2,sched}.h.
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC

MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40

MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOSUID: Final = 0x02
MOUNT_ATTR_NODEV: Final = 0x04
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_IN_ROOT: Final = 0x10
RESOLVE_CACHED: Final = 0x20

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.statx.argtypes = [
    ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p,
]  # fmt: skip

_MNT_DETACH: Final = 2
_RENAME_EXCHANGE: Final = 2
_STATX_BASIC_STATS: Final = 0x07FF
_STATX_MNT_ID: Final = 0x1000
_STATX_DONT_SYNC: Final = 0x4000
# stx_mode, stx_ino, stx_ctime, stx_dev_major, stx_dev_minor and stx_mnt_id of struct statx
# (include/uapi/linux/stat.h).
_STATX: Final = struct.Struct("=28xH2xQ56xqI28xIIQ")
_STATX_SIZE: Final = 256

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_OPENAT2: Final = 437
_MOUNT_SETATTR: Final = 442


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _check(result: int, path: str) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), path)
    return result


def open_tree(dir_fd: int, path: str, flags: int = 0) -> int:
    """A detached copy of the mount at `path`; an empty `path` means `dir_fd` itself."""
    flags |= OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    if not path:
        flags |= AT_EMPTY_PATH
    return _check(
        _libc.syscall(
            ctypes.c_long(_OPEN_TREE),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_uint(flags),
        ),
        path,
    )


def move_mount(mount_fd: int, target_fd: int) -> None:
    """Attach the detached mount `mount_fd` over the file or directory `target_fd`."""
    _check(
        _libc.syscall(
            ctypes.c_long(_MOVE_MOUNT),
            ctypes.c_int(mount_fd),
            ctypes.c_char_p(b""),
            ctypes.c_int(target_fd),
            ctypes.c_char_p(b""),
            ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH),
        ),
        f"/proc/self/fd/{target_fd}",
    )


def mount_setattr(
    mount_fd: int, attr_set: int, *, userns_fd: int = 0, propagation: int = 0
) -> None:
    """Set attributes of the mount `mount_fd`.

    With MOUNT_ATTR_IDMAP, its owners are mapped by the user namespace `userns_fd`.
    """
    attr = _MountAttr(attr_set=attr_set, userns_fd=userns_fd, propagation=propagation)
    _check(
        _libc.syscall(
            ctypes.c_long(_MOUNT_SETATTR),
            ctypes.c_int(mount_fd),
            ctypes.c_char_p(b""),
            ctypes.c_uint(AT_EMPTY_PATH),
            ctypes.byref(attr),
            ctypes.c_size_t(ctypes.sizeof(attr)),
        ),
        f"/proc/self/fd/{mount_fd}",
    )


def openat2(dir_fd: int, path: str, flags: int, resolve: int) -> int:
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=0, resolve=resolve)
    return _check(
        _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        path,
    )


def mount_id(fd: int) -> int:
    """The id of the mount that `fd` is on (statx(2), Linux 5.8)."""
    return cached_status_of(fd).mount


class CachedStatus(NamedTuple):
    """`changed` is the change time (ctime) in seconds and nanoseconds, `mount` the id of the
    mount."""

    mode: int
    inode: int
    device: int
    changed: tuple[int, int]
    mount: int


def cached_status(path: str) -> CachedStatus:
    """The status of the file that `path` leads to, as the kernel has it in memory.

    The server of a FUSE file system is not asked, so the call cannot wait for it (statx(2)).
    """
    return _cached_status(AT_FDCWD, path, 0)


def cached_status_of(fd: int) -> CachedStatus:
    """As `cached_status`, of the file that the descriptor `fd` refers to."""
    return _cached_status(fd, "", AT_EMPTY_PATH)


def _cached_status(dir_fd: int, path: str, flags: int) -> CachedStatus:
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    flags |= _STATX_DONT_SYNC
    mask = _STATX_BASIC_STATS | _STATX_MNT_ID
    done = _libc.statx(dir_fd, os.fsencode(path), flags, mask, buffer)
    _check(done, path or f"fd {dir_fd}")
    mode, inode, seconds, nanoseconds, major, minor, mount = _STATX.unpack_from(buffer)
    return CachedStatus(mode, inode, os.makedev(major, minor), (seconds, nanoseconds), mount)


@contextmanager
def opened(fd: int) -> Iterator[int]:
    """Use `fd` in a with statement, which closes it."""
    try:
        yield fd
    finally:
        os.close(fd)


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    _check(
        _libc.mount(*(os.fsencode(s) for s in (source, target, fstype)), flags, os.fsencode(data)),
        target,
    )


def detach(target: str) -> None:
    """Unmount `target`, and what is mounted below it, once nobody uses it (umount2(2))."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), target)


def exchange(one: str, other: str) -> None:
    """Give two files or directories each other's path, in one step (renameat2(2))."""
    _check(
        _libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE),
        one,
    )


def setns(fd: int, kind: int) -> None:
    """Join the namespace `fd` of this kind (CLONE_NEW*); os.setns exists from Python 3.12 on."""
    _check(_libc.setns(fd, kind), f"/proc/self/fd/{fd}")


def unshare(flags: int) -> None:
    """Move into new namespaces of these kinds (CLONE_NEW*); os.unshare exists from Python 3.12
    on."""
    _check(_libc.unshare(flags), "")


def create_as(user: int, group: int) -> None:
    """Let new files of this thread belong to `user` and `group` (setfsuid(2)).

    With ids other than 0 the thread loses root's rights on files; `create_as(0, 0)` restores them.
    """
    _libc.setfsgid(group)
    _libc.setfsuid(user)
