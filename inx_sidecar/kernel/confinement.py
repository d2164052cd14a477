"""A process gives up what it does not need, before it reads what a container can write.

Nothing here can be taken back.
"""

import ctypes
import os
import resource
import signal
from collections.abc import Mapping
from typing import Final

from inx_sidecar.kernel.syscalls import CLONE_NEWNET, unshare

# include/uapi/linux/prctl.h, include/uapi/linux/capability.h, include/uapi/linux/sched.h
_SET_PDEATHSIG: Final = 1
_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
_NEWIPC: Final = 0x08000000
# Two sets of 32 bits, each effective, permitted and inheritable.
_CAPABILITY_WORDS: Final = 6

_libc = ctypes.CDLL(None, use_errno=True)


def confine(root: int, limits: Mapping[int, int]) -> None:
    """Leave this process the files below the directory `root`, and its open descriptors.

    It has no network, no capability, and gains none by a program. It may start no process, unless
    it is root of the host. `limits` are those of setrlimit(2). It is killed when the thread that
    started it ends.

    The caller has CAP_SYS_ADMIN and CAP_SYS_CHROOT in its user namespace, and closes what leads out
    of `root`.
    """
    unshare(CLONE_NEWNET | _NEWIPC)
    os.fchdir(root)
    os.chroot(".")
    nothing = (resource.RLIMIT_CORE, resource.RLIMIT_NPROC)
    for kind, limit in {**dict.fromkeys(nothing, 0), **limits}.items():
        resource.setrlimit(kind, (limit, limit))
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * _CAPABILITY_WORDS)()))
    _check(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    # Last: a change of the user takes it back (prctl(2)).
    _check(_libc.prctl(_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
