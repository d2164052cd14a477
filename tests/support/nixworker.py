"""A client for the socket of a nix-daemon: single steps of the worker protocol, without Nix itself.

Tests and programs that are copied to a host use it: to start Nix's own client takes longer than the
operations that they test.
"""

import contextlib
import hashlib
import os
import socket
import struct
import threading
from typing import Final, Self

# libstore/worker-protocol.hh
_CLIENT_MAGIC: Final = 0x6E697863
_DAEMON_MAGIC: Final = 0x6478696F
_VERSION: Final = 1 << 8 | 35
_ADD_TEXT_TO_STORE: Final = 8
_ADD_TEMP_ROOT: Final = 11
_ADD_INDIRECT_ROOT: Final = 12
_ADD_TO_STORE_NAR: Final = 39
_LAST: Final = 0x616C7473
_ERROR: Final = 0x63787470
_BASE_32: Final = "0123456789abcdfghijklmnpqrsvwxyz"
_NUMBER: Final = struct.Struct("<Q")


class NixError(Exception):
    """The error message of the daemon."""


class NixClient:
    """A connection to a nix-daemon. Closing the connection removes its temporary roots."""

    def __init__(self, path: str, seconds: float = 60) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(seconds)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")
        self._send(_CLIENT_MAGIC)
        assert self._number() == _DAEMON_MAGIC
        assert self._number() >= _VERSION
        self._send(_VERSION, 0, 0)  # no CPU affinity, no reserved space
        self.version = self._text()
        self.trust = self._number()
        self._await_answer()

    def add_text(self, name: str, text: str) -> str:
        """Add a file with this text to the store, and return its store path."""
        self._send(_ADD_TEXT_TO_STORE, name, text, 0)
        self._await_answer()
        return self._text()

    def add_temp_root(self, store_path: str) -> None:
        self._send(_ADD_TEMP_ROOT, store_path)
        self._await_answer()
        assert self._number() == 1

    def add_temp_roots(self, store_paths: list[str]) -> None:
        """As `add_temp_root`, all at once."""
        for path in store_paths:
            self._send(_ADD_TEMP_ROOT, path)
        for _ in store_paths:
            self._await_answer()
            assert self._number() == 1

    def add_indirect_root(self, link: str) -> None:
        self._send(_ADD_INDIRECT_ROOT, link)
        self._await_answer()
        assert self._number() == 1

    def begin_upload(self, store_path: str, digest: str) -> None:
        """Begin to add the text with this SHA-256, and send nothing of it.

        The daemon locks the path, and waits for the rest.
        """
        no_deriver, nar_hash, no_references, time, size, ultimate, no_signatures = (
            "", "0" * 64, 0, 0, 1000, 0, 0
        )  # fmt: skip
        repair, unchecked = 0, 0
        self._send(
            _ADD_TO_STORE_NAR, store_path, no_deriver, nar_hash, no_references, time, size,
            ultimate, no_signatures, f"text:sha256:{digest}", repair, unchecked,
        )  # fmt: skip

    def register(self, store_path: str, rootfs: str, link: str) -> None:
        """Do what `nix build -o` does, for a link below `rootfs`.

        See addPermRoot in libstore/indirect-root-store.cc.
        """
        self.add_temp_root(store_path)
        make_link(store_path, f"{rootfs}{link}")
        self.add_indirect_root(link)

    def await_end(self) -> None:
        """Wait until the daemon closes the connection."""
        self._socket.settimeout(None)
        while self._file.read(4096):
            pass

    def close(self) -> None:
        """Close the connection, and wait until the daemon's process for it has ended."""
        self._socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while self._file.read(4096):
                pass
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, *words: int | str) -> None:
        message = b""
        for word in words:
            if isinstance(word, int):
                message += _NUMBER.pack(word)
            else:
                data = word.encode()
                message += _NUMBER.pack(len(data)) + data + bytes(-len(data) % 8)
        self._socket.sendall(message)

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise ConnectionResetError("the Nix daemon closed the connection")
        return data

    def _number(self) -> int:
        return int(_NUMBER.unpack(self._read(8))[0])

    def _text(self) -> str:
        size = self._number()
        return self._read(size + -size % 8)[:size].decode()

    def _await_answer(self) -> None:
        kind = self._number()
        if kind == _ERROR:
            self._text(), self._number(), self._text()
            raise NixError(self._text())
        assert kind == _LAST, hex(kind)


def path_of_text(name: str, digest: str) -> str:
    """The store path of a text without references (makeTextPath in libstore/store-dir-config.cc).

    `digest` is its SHA-256 in hexadecimal, in base 32 when the path is made.
    """
    begin = f"text:sha256:{digest}:/nix/store:{name}"
    long = hashlib.sha256(begin.encode()).digest()
    short = bytearray(20)
    for number, byte in enumerate(long):
        short[number % 20] ^= byte
    value = int.from_bytes(short, "little")
    characters = (_BASE_32[value >> 5 * place & 31] for place in reversed(range(32)))
    return f"/nix/store/{''.join(characters)}-{name}"


def make_link(target: str, link: str) -> None:
    """Make or replace a link in one step, as makeSymlink of Nix does."""
    temporary = f"{link}.tmp-{os.getpid()}-{threading.get_ident()}"
    os.symlink(target, temporary)
    os.rename(temporary, link)
