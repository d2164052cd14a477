"""Permission events of fanotify(7), which Python lacks: an open of a directory waits for an answer.

The kernel asks before open(2) returns, for every process and every mount of the file system. When
the last descriptor of a group is closed, the kernel allows all opens that wait (fanotify(7)).
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# include/uapi/linux/fanotify.h
_CLASS_CONTENT: Final = 0x04
_CLOEXEC: Final = 0x01
_NONBLOCK: Final = 0x02
_MARK_ADD: Final = 0x01
_MARK_ONLYDIR: Final = 0x08
_OPEN_PERM: Final = 0x0001_0000
_ONDIR: Final = 0x4000_0000
_ALLOW: Final = 0x01
_EVENT: Final = struct.Struct("=IBBHQii")
_RESPONSE: Final = struct.Struct("=iI")
_READ_BYTES: Final = 4096
_AT_FDCWD: Final = -100

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = [
    ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p,
]  # fmt: skip


@dataclass(frozen=True)
class OpenRequest:
    """Process `pid` is about to open a directory; `fd` is a descriptor of that directory."""

    fd: int
    pid: int


class PermissionGroup:
    """A fanotify group: opens of the marked directories wait until each is allowed."""

    def __init__(self) -> None:
        flags = _CLASS_CONTENT | _CLOEXEC | _NONBLOCK
        self.fd = _checked(_libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC), "fanotify_init")

    def mark(self, directory: str) -> None:
        """Let opens of `directory` wait from now on.

        A second mark changes nothing. The mark belongs to the inode: a directory that takes the
        place of `directory` has none.
        """
        path = os.fsencode(directory)
        flags = _MARK_ADD | _MARK_ONLYDIR
        mask = _OPEN_PERM | _ONDIR
        _checked(_libc.fanotify_mark(self.fd, flags, mask, _AT_FDCWD, path), directory)

    def open_requests(self) -> Iterator[OpenRequest]:
        """Opens that wait and were not returned before; the caller has to allow each."""
        try:
            events = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return
        while events:
            length, _version, _, _header, _mask, fd, pid = _EVENT.unpack_from(events)
            events = events[length:]
            if fd >= 0:
                yield OpenRequest(fd, pid)

    def allow(self, request: OpenRequest) -> None:
        """Let the open return; closes the request's descriptor."""
        try:
            os.write(self.fd, _RESPONSE.pack(request.fd, _ALLOW))
        finally:
            os.close(request.fd)

    def close(self) -> None:
        os.close(self.fd)


def _checked(result: int, name: str) -> int:
    """`result`; OSError with `name` if it says that a call failed."""
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), name)
    return result
