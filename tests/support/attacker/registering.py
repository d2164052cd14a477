"""Register GC roots without end, as a client of the instance's Nix daemon."""

import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator

_HELLO = struct.pack("<Q", 0x6E697863), struct.pack("<3Q", 1 << 8 | 35, 0, 0)
_ADD_INDIRECT_ROOT = 12
_AT_ONCE = 200
_ANSWER_BYTES = 16
_DAEMON = "/nix/var/nix/daemon-socket/socket"


def flood(connections: int, prefix: str, length: int = 0) -> None:
    """Register new paths that begin with `prefix`, by several connections, until killed.

    A connection that ends is made again at once. The paths are `length` characters long at least.
    Nothing exists at these paths: so the daemon does nothing but make registrations.
    """
    for number in range(connections):
        if os.fork() == 0:
            _register_for_ever(f"{prefix}{number}-".encode(), length)
    print('"begun"', flush=True)
    os.wait()


def _register_for_ever(prefix: bytes, length: int) -> None:
    paths = ((prefix + b"%d" % count).ljust(length, b"x") for count in itertools.count())
    while True:
        try:
            _register(paths)
        except OSError:
            time.sleep(0.01)  # the daemon is stopped


def _register(paths: Iterator[bytes]) -> None:
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(_DAEMON)
        stream = wire.makefile("rb")
        wire.sendall(_HELLO[0])
        stream.read(16)
        wire.sendall(_HELLO[1])
        size = struct.unpack("<Q", stream.read(8))[0]
        stream.read(size + -size % 8 + 8 + 8)
        while some := list(itertools.islice(paths, _AT_ONCE)):
            wire.sendall(b"".join(map(_request, some)))
            if len(stream.read(_ANSWER_BYTES * len(some))) < _ANSWER_BYTES * len(some):
                raise ConnectionResetError("the Nix daemon closed the connection")


def _request(path: bytes) -> bytes:
    return struct.pack("<2Q", _ADD_INDIRECT_ROOT, len(path)) + path + bytes(-len(path) % 8)
