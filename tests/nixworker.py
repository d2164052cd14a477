"""A Nix client that is fast: the worker protocol on a daemon's socket, in plain Python.

Used on a disposable host, where the Nix client would take longer to start than what is looked at;
the order of a registration is that of Nix (libstore/indirect-root-store.cc, addPermRoot).
"""

import os
import socket
import struct
from typing import Self

_CLIENT_MAGIC = 0x6E697863
_SERVER_MAGIC = 0x6478696F
_VERSION = 1 << 8 | 35
_STDERR_LAST = 0x616C7473
_STDERR_ERROR = 0x63787470
_STDERR_NEXT = 0x6F6C6D67

_ADD_TEXT_TO_STORE = 8
_ADD_TEMP_ROOT = 11
_ADD_INDIRECT_ROOT = 12


class NixError(Exception):
    """The daemon refused."""


class Client:
    """One connection to a nix-daemon; closing it ends its temporary roots."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._stream = self._socket.makefile("rwb")
        self._send(_CLIENT_MAGIC)
        if self._number() != _SERVER_MAGIC:
            raise NixError("no nix-daemon")
        self._number()
        self._send(_VERSION, 0, 0)
        self._text()  # the version of Nix
        self._number()  # whether we are trusted
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def add_text(self, name: str, text: str) -> str:
        """The store path of a new file."""
        self._send(_ADD_TEXT_TO_STORE, name, text, 0)
        self._answer()
        return self._text()

    def add_temp_root(self, path: str) -> None:
        self._send(_ADD_TEMP_ROOT, path)
        self._answer()
        self._number()

    def add_indirect_root(self, link: str | bytes) -> None:
        self._send(_ADD_INDIRECT_ROOT, link)
        self._answer()
        self._number()

    def register(self, path: str, rootfs: str, link: str) -> None:
        """As `nix build -o`: keep `path`, make the link below `rootfs`, and register it."""
        self.add_temp_root(path)
        temporary = f"{rootfs}{link}.tmp-{os.getpid()}"
        os.symlink(path, temporary)
        os.rename(temporary, f"{rootfs}{link}")
        self.add_indirect_root(link)

    def _send(self, *values: int | str | bytes) -> None:
        for value in values:
            if isinstance(value, int):
                self._stream.write(struct.pack("<Q", value))
            else:
                data = os.fsencode(value)
                self._stream.write(struct.pack("<Q", len(data)) + data + b"\0" * (-len(data) % 8))
        self._stream.flush()

    def _number(self) -> int:
        data = self._stream.read(8)
        if len(data) != 8:
            raise NixError("the daemon closed the connection")
        return int(struct.unpack("<Q", data)[0])

    def _text(self) -> str:
        length = self._number()
        data = self._stream.read(length + -length % 8)
        return os.fsdecode(data[:length])

    def _answer(self) -> None:
        """Until the daemon has done what was asked."""
        while (kind := self._number()) != _STDERR_LAST:
            if kind == _STDERR_NEXT:
                self._text()
            elif kind == _STDERR_ERROR:
                self._text(), self._number(), self._text()
                message = self._text()
                raise NixError(message)
            else:
                raise NixError(f"an answer that this client does not know: {kind:#x}")
