"""A file system that blocks every process that uses it."""

import ctypes
import os
import struct
import sys

from support.attacker.kernel import libc

FUSE_INIT = 26


def never_answer(path: str) -> str:
    """Mount a FUSE file system at `path` that answers only the first request, and stay.

    Tells `"mounted"` once it is there, and `"asked"` at each request.
    """
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"stall", path.encode(), b"fuse", 0, options):
        return os.strerror(ctypes.get_errno())
    request = os.read(fd, 1 << 20)
    _, opcode, unique = struct.unpack_from("<IIQ", request)
    assert opcode == FUSE_INIT, opcode
    answer = struct.pack("<IIIIHHIIHHI7I", 7, 31, 4096, 0, 8, 8, 4096, 1, 0, 0, 0, *[0] * 7)
    os.write(fd, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
    print('"mounted"', flush=True)
    while os.read(fd, 1 << 20):
        print('"asked"', flush=True)
    sys.exit()
