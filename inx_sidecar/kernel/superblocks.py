"""Overlays as file systems: tell them from others, and let one forget the names that it has cached.

An overlay remembers that a name was missing. If the name appears in a lower layer later, the
overlay goes on without it, until the kernel drops what is cached. To reconfigure a file system
drops it (reconfigure_super() and shrink_dcache_sb(), fs/super.c), and changes nothing else.
"""

import ctypes
import errno
import os
from typing import Final

from inx_sidecar.kernel.syscalls import opened

# include/uapi/linux/magic.h
OVERLAY: Final = 0x794C7630
_KINDS: Final = {
    OVERLAY: "overlayfs",
    0x01021994: "tmpfs",
    0x01021997: "9p",
    0x2FC12FC1: "zfs",
    0x58465342: "xfs",
    0x65735546: "fuse",
    0x6969: "nfs",
    0x9123683E: "btrfs",
    0xEF53: "ext4",
}

# include/uapi/linux/mount.h
_FSPICK_CLOEXEC: Final = 0x01
_FSPICK_EMPTY_PATH: Final = 0x08
_SET_FLAG: Final = 0
_RECONFIGURE: Final = 7
_FSCONFIG: Final = 431
_FSPICK: Final = 433
# f_type is the first word of struct statfs, which has 120 bytes at most (statfs(2)).
_STATFS_BYTES: Final = 256

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]


def kind_of(fd: int) -> int:
    """The magic number of the file system that `fd` is on (statfs(2), f_type)."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    _check(_libc.fstatfs(fd, buffer), "fstatfs")
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def kind_name(fd: int) -> str:
    """The name of the kind of file system that `fd` is on; its number, if it is a rare one."""
    kind = kind_of(fd)
    return _KINDS.get(kind, f"{kind:#x}")


def is_overlay(fd: int, device: int) -> bool:
    """Whether `fd` is on the overlay whose device number (st_dev of its directories) is this.

    A number is not given again while its file system exists.
    """
    return kind_of(fd) == OVERLAY and os.fstat(fd).st_dev == device


def drop_cached_names(directory: int, device: int, *, read_only: bool = False) -> None:
    """Let the overlay that `directory` is on forget its cached names, those that are missing too.

    `directory` is a descriptor of a directory of the overlay that has the number `device`. OSError
    with EXDEV, and nothing is done, if it is on anything else: whoever can unmount could otherwise
    choose what is reconfigured.

    An overlay without an upper layer refuses to become writable, so `read_only` has to be true for
    it (ovl_reconfigure(), fs/overlayfs/super.c); it becomes, or stays, read-only. The caller needs
    CAP_SYS_ADMIN in the user namespace in which the overlay was mounted, and in that of its own
    mount namespace.
    """
    if not is_overlay(directory, device):
        raise OSError(errno.EXDEV, "another file system is mounted there")
    flags = _FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH
    with opened(_check(_libc.syscall(_FSPICK, directory, b"", flags), "fspick")) as context:
        if read_only:
            _check(_libc.syscall(_FSCONFIG, context, _SET_FLAG, b"ro", None, 0), "fsconfig")
        _check(_libc.syscall(_FSCONFIG, context, _RECONFIGURE, None, None, 0), "fsconfig")


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result
