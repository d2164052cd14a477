"""The kernel limits how many instances of inotify and groups of fanotify each user may have.

It counts them for the effective user. It counts those in a user namespace for the user who made
that namespace, too (inc_ucount in kernel/ucount.c). Root makes the user namespaces of containers.
So any container can use up what root may have.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# An id that no user of a host has, and for which nobody can make a user namespace.
_COUNTED_AS: Final = 65533
_VERSION: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3, include/uapi/linux/capability.h

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextmanager
def counted_apart() -> Iterator[None]:
    """What the body makes is counted for a user of its own, if this process is root and may change
    its user. The body has the capabilities of this process."""
    if os.getresuid() != (0, 0, 0):
        yield
        return
    try:
        os.seteuid(_COUNTED_AS)
    except OSError:  # without CAP_SETUID, or in a user namespace that lacks this id
        yield
        return
    try:
        _raise_capabilities()
        yield
    finally:
        os.seteuid(0)  # all permitted capabilities are effective again (capabilities(7))


def _raise_capabilities() -> None:
    """Make all permitted capabilities effective: a change of the effective user took them away."""
    header, both = _Header(_VERSION, 0), (_Capabilities * 2)()
    if _libc.capget(ctypes.byref(header), both) == 0:
        for one in both:
            one.effective = one.permitted
        _libc.capset(ctypes.byref(header), both)
