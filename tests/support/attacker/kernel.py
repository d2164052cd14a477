"""System calls that Python lacks, and children that try one thing each."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from typing import Final

OPEN_TREE: Final = 428
MOVE_MOUNT: Final = 429
FSOPEN: Final = 430
FSCONFIG: Final = 431
FSMOUNT: Final = 432
FSPICK: Final = 433
MOUNT_SETATTR: Final = 442

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
AT_HANDLE_FID: Final = 0x200
OPEN_TREE_CLONE: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_SET_FD: Final = 5
FSCONFIG_CMD_CREATE: Final = 6
FSCONFIG_CMD_RECONFIGURE: Final = 7

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
PR_SET_DUMPABLE: Final = 4

MS_RDONLY: Final = 1
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    check(libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None))


def call(number: int, *args: int | bytes | None) -> int:
    """The system call of this number."""
    kinds = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
    return check(int(libc.syscall(ctypes.c_long(number), *kinds)))


def attempt(function: Callable[[], object]) -> str:
    """Call `function` in a child: "done", or the name of the error.

    The result is "254" if the function itself is wrong.
    """
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(254)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return errno.errorcode.get(status, str(status)) if status else "done"


def in_namespaces(user: bool = False) -> None:
    """Enter a new mount namespace; with `user`, in a new user namespace. /mnt is a tmpfs then."""
    if user:
        check(libc.unshare(CLONE_NEWUSER))
        # Otherwise the files in /proc of a process that changed its user belong to another user.
        check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
        with open("/proc/self/setgroups", "w") as file:
            file.write("deny")
        for kind in "uid_map", "gid_map":
            with open(f"/proc/self/{kind}", "w") as file:
                file.write("0 0 1")
    check(libc.unshare(CLONE_NEWNS))
    if not user:
        mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/mnt", "tmpfs", 0)
    for directory in "a", "upper", "work", "merged":
        os.mkdir(f"/mnt/{directory}")
