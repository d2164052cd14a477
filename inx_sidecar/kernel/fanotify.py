"""Permission events of fanotify(7), which Python lacks: an open of a file waits for an answer.

The kernel asks before open(2) returns, for every process and every mount of the file system. When
the last descriptor of a group is closed, the kernel allows all opens that wait (fanotify(7)).
"""

import ctypes
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from inx_sidecar.kernel.user_counts import counted_apart

# include/uapi/linux/fanotify.h
_CLASS_CONTENT: Final = 0x04
_CLOEXEC: Final = 0x01
_NONBLOCK: Final = 0x02
# Otherwise the kernel allows an open if 16384 wait already, and refuses marks above a limit.
_UNLIMITED_QUEUE: Final = 0x10
_UNLIMITED_MARKS: Final = 0x20
_REPORT_TID: Final = 0x0100
_MARK_ADD: Final = 0x01
_MARK_ONLYDIR: Final = 0x08
_MARK_IGNORED_MASK: Final = 0x20
_MARK_IGNORED_SURV_MODIFY: Final = 0x40
_MARK_EVICTABLE: Final = 0x0200
_OPEN_PERM: Final = 0x0001_0000
_EVENT_ON_CHILD: Final = 0x0800_0000
_ONDIR: Final = 0x4000_0000
_ALLOW: Final = 0x01
_DENY: Final = 0x02
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
    """Process `pid` is about to open a file; `fd` is a descriptor of that file.

    `pid` is 0 if the process is outside the PID namespace of this process.
    """

    fd: int
    pid: int


def is_unsupported(error: OSError) -> bool:
    """Whether the kernel lacks what a group needs. Other errors may pass: for example, the host has
    a limit of groups, and containers use it up (fanotify(7), max_user_groups)."""
    return error.errno in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


class PermissionGroup:
    """A fanotify group: opens of what is marked wait until each is allowed or denied.

    With `threads`, `OpenRequest.pid` is the thread that opens: a thread may outlive the first one
    of its process, whose PID is the one of the process.
    """

    def __init__(self, *, threads: bool = False) -> None:
        flags = _CLASS_CONTENT | _CLOEXEC | _NONBLOCK | _UNLIMITED_QUEUE | _UNLIMITED_MARKS
        flags |= _REPORT_TID if threads else 0
        with counted_apart():
            fd = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
        self.fd = _checked(fd, "fanotify_init")

    def mark(self, directory: str) -> None:
        """Let opens of `directory` wait from now on.

        A second mark changes nothing. The mark belongs to the inode: a directory that takes the
        place of `directory` has none.
        """
        self._mark_directory(directory, _OPEN_PERM | _ONDIR)

    def mark_files_in(self, directory: str) -> None:
        """Let opens of files whose parent is `directory` wait from now on, by whichever mount.

        Opens of directories do not wait. As for `mark`, the mark belongs to the inode.
        """
        self._mark_directory(directory, _OPEN_PERM | _EVENT_ON_CHILD)

    def ignore(self, fd: int) -> None:
        """Let no open of the file `fd` wait any longer, while the kernel has its inode in memory;
        the mark does not keep it there. Linux 5.19 or newer."""
        flags = _MARK_ADD | _MARK_IGNORED_MASK | _MARK_IGNORED_SURV_MODIFY | _MARK_EVICTABLE
        _checked(_libc.fanotify_mark(self.fd, flags, _OPEN_PERM, fd, None), "fanotify_mark")

    def _mark_directory(self, directory: str, mask: int) -> None:
        path = os.fsencode(directory)
        flags = _MARK_ADD | _MARK_ONLYDIR
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

    def waiting(self) -> int:
        """The number of opens that wait and were not returned by `open_requests` (FIONREAD)."""
        (size,) = struct.unpack("=i", fcntl.ioctl(self.fd, termios.FIONREAD, bytes(4)))
        return int(size) // _EVENT.size

    def allow(self, request: OpenRequest) -> None:
        """Let the open return; closes the request's descriptor."""
        self._respond(request, _ALLOW)

    def deny(self, request: OpenRequest) -> None:
        """Let the open fail with EPERM; closes the request's descriptor."""
        self._respond(request, _DENY)

    def _respond(self, request: OpenRequest, response: int) -> None:
        try:
            os.write(self.fd, _RESPONSE.pack(request.fd, response))
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
