"""A file system that blocks every process that uses it."""

import contextlib
import ctypes
import errno
import os
import select
import struct
import sys

from support.attacker.kernel import libc

FUSE_GETATTR, FUSE_STATFS, FUSE_INIT = 3, 17, 26
# What the root directory of the file system says of itself (struct fuse_attr_out), and the whole
# file system of itself (struct fuse_statfs_out).
ATTRIBUTES = struct.pack("<QII6Q10I", 3600, 0, 0, 1, *[0] * 5, 0, 0, 0, 0o40755, 2, *[0] * 5)
STATFS = struct.pack("<5Q10I", *[0] * 5, 4096, 255, *[0] * 8)


def never_answer(path: str) -> str:
    """Mount a FUSE file system at `path` that answers only the first request, and stay.

    Tells `"mounted"` once it is there, and `"asked"` at each request.
    """
    fd = _mount(path)
    if isinstance(fd, str):
        return fd
    print('"mounted"', flush=True)
    while os.read(fd, 1 << 20):
        print('"asked"', flush=True)
    sys.exit()


def never_answer_below_overlay(path: str) -> str:
    """As `never_answer`, with an overlay at `path` above the file system.

    The kernel lets only processes of the container's user namespace use a FUSE file system that
    root inside has mounted. Everybody may use an overlay, which uses what is below as its mounter.
    """
    below = f"{path}.below"
    os.mkdir(below)
    fd = _mount(below)
    if isinstance(fd, str):
        return fd
    mounter = os.fork()
    if mounter == 0:
        options = f"lowerdir={below}:/etc,userxattr".encode()
        os._exit(libc.mount(b"overlay", path.encode(), b"overlay", 0, options) and 1)
    os.set_blocking(fd, False)
    while (ended := os.waitpid(mounter, os.WNOHANG)) == (0, 0):
        try:
            _answer(fd, os.read(fd, 1 << 20))
        except BlockingIOError:
            select.select([fd], [], [], 0.05)
    if ended[1]:
        return "no overlay"
    os.set_blocking(fd, True)
    print('"mounted"', flush=True)
    while os.read(fd, 1 << 20):
        print('"asked"', flush=True)
    sys.exit()


def open_fuse() -> int:
    return os.open("/dev/fuse", os.O_RDWR)


def _mount(path: str) -> int | str:
    """The descriptor of the server of a FUSE file system at `path`, or the error."""
    fd = open_fuse()
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"stall", path.encode(), b"fuse", 0, options):
        return os.strerror(ctypes.get_errno())
    request = os.read(fd, 1 << 20)
    _, opcode, unique = struct.unpack_from("<IIQ", request)
    assert opcode == FUSE_INIT, opcode
    answer = struct.pack("<IIIIHHIIHHI7I", 7, 31, 4096, 0, 8, 8, 4096, 1, 0, 0, 0, *[0] * 7)
    os.write(fd, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
    return fd


def _answer(fd: int, request: bytes) -> None:
    """Answer as an empty file system does."""
    _, opcode, unique = struct.unpack_from("<IIQ", request)
    answer = {FUSE_GETATTR: ATTRIBUTES, FUSE_STATFS: STATFS}.get(opcode)
    error = 0 if answer else -errno.ENOSYS
    with contextlib.suppress(OSError):  # the kernel waits for no answer
        os.write(fd, struct.pack("<IiQ", 16 + len(answer or b""), error, unique) + (answer or b""))
