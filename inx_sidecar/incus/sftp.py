"""Read the root file system of an instance that does not run through Incus, which mounts it.

Incus gives an SFTP connection (version 3, draft-ietf-secsh-filexfer-02) to a process of its own,
whose root directory is that of the instance, and unmounts the storage some seconds after the end of
the connection. Only directories are listed and links are read: nothing waits for a fifo or a device
that root inside made.
"""

import asyncio
import os
import re
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote

import h11

from inx_sidecar.base import paths
from inx_sidecar.incus.api import IncusError

_INIT, _VERSION, _CLOSE, _OPENDIR, _READDIR, _READLINK = 1, 2, 4, 11, 12, 19
_STATUS, _HANDLE, _NAME = 101, 102, 104
_EOF: Final = 1
_OUR_VERSION: Final = 3
# github.com/pkg/sftp sends at most 256 KiB at once.
_PACKET_MAX: Final = 1 << 19
_AT_ONCE: Final = 100
# How Go names EIO, EUCLEAN and ESTALE: the storage fails. Every other error only says that there is
# no link that can be read; root inside may have made that so, and alone loses by it.
_STORAGE_FAILS: Final = re.compile(
    rb"(input/output error|structure needs cleaning|stale( NFS)? file handle)\Z"
)


class Sftp:
    """A connection; each method may raise IncusError, OSError or EOFError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0

    async def begin(self) -> None:
        self._send(_INIT, struct.pack(">I", _OUR_VERSION))
        kind, _ = await self._packet()
        if kind != _VERSION:
            raise IncusError(f"Incus speaks no SFTP: it sent a packet of type {kind}")

    async def list_names(self, path: str, most: int) -> list[str]:
        """The names in a directory, at most about `most`; none if there is no such directory."""
        kind, body = await self._ask(_OPENDIR, _string(os.fsencode(path)))
        if kind != _HANDLE:
            _check_missing(kind, body, path)
            return []
        handle, _ = _take(body)
        found: list[str] = []
        while len(found) < most:
            kind, body = await self._ask(_READDIR, _string(handle))
            if kind != _NAME:
                if kind != _STATUS or _code(body) != _EOF:
                    raise IncusError(f"Incus cannot list {path}: {_message(body)}")
                break
            (count,) = struct.unpack_from(">I", body)
            rest = body[4:]
            for _ in range(count):
                name, rest = _take(rest)
                _, rest = _take(rest)
                rest = _skip_attributes(rest)
                found.append(os.fsdecode(name))
        await self._ask(_CLOSE, _string(handle))
        return found

    async def read_links(self, places: Sequence[str]) -> dict[str, str]:
        """The texts of the links at those of `places` that are links."""
        found: dict[str, str] = {}
        for begin in range(0, len(places), _AT_ONCE):
            batch = places[begin : begin + _AT_ONCE]
            first = self._number + 1
            for place in batch:
                self._request(_READLINK, _string(os.fsencode(place)))
            # Not drained: Incus may wait until its answers are read.
            for _ in batch:
                number, kind, body = await self._answer()
                if not first <= number < first + len(batch):
                    raise IncusError("Incus answers another SFTP request")
                place = batch[number - first]
                if kind == _NAME:
                    found[place] = os.fsdecode(_take(body[4:])[0])
                else:
                    _check_missing(kind, body, place)
        return found

    async def _ask(self, kind: int, body: bytes) -> tuple[int, bytes]:
        self._request(kind, body)
        await self._writer.drain()
        number, answer, content = await self._answer()
        if number != self._number:
            raise IncusError("Incus answers another SFTP request")
        return answer, content

    def _request(self, kind: int, body: bytes) -> None:
        self._number += 1
        self._send(kind, struct.pack(">I", self._number) + body)

    def _send(self, kind: int, body: bytes) -> None:
        self._writer.write(struct.pack(">IB", len(body) + 1, kind) + body)

    async def _answer(self) -> tuple[int, int, bytes]:
        kind, body = await self._packet()
        return struct.unpack_from(">I", body)[0], kind, body[4:]

    async def _packet(self) -> tuple[int, bytes]:
        (length,) = struct.unpack(">I", await self._reader.readexactly(4))
        if not 5 <= length <= _PACKET_MAX:
            raise IncusError(f"Incus sends an SFTP packet of {length} bytes")
        content = await self._reader.readexactly(length)
        return content[0], content[1:]


@asynccontextmanager
async def connect(project: str, name: str) -> AsyncIterator[Sftp]:
    """A connection to the file system of an instance; the caller bounds the time.

    IncusError if Incus refuses it, as when the storage cannot be mounted.
    """
    reader, writer = await asyncio.open_unix_connection(paths.INCUS_SOCKET)
    try:
        await _upgrade(reader, writer, project, name)
        sftp = Sftp(reader, writer)
        await sftp.begin()
        yield sftp
    finally:
        writer.close()


async def _upgrade(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, project: str, name: str
) -> None:
    connection = h11.Connection(h11.CLIENT)
    target = f"/1.0/instances/{quote(name, safe='')}/sftp?project={quote(project, safe='')}"
    headers = [("Host", "incus"), ("Connection", "Upgrade"), ("Upgrade", "sftp")]
    for part in h11.Request(method="GET", target=target, headers=headers), h11.EndOfMessage():
        writer.write(connection.send(part) or b"")
    await writer.drain()
    while (event := connection.next_event()) is h11.NEED_DATA:
        # A byte at a time: what follows the answer is SFTP already.
        connection.receive_data(await reader.readexactly(1))
    if not isinstance(event, h11.InformationalResponse) or event.status_code != 101:
        code = event.status_code if isinstance(event, h11.Response) else 0
        raise IncusError(f"Incus refuses to read the files of {name!r} ({code})", code)


def _string(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def _take(body: bytes) -> tuple[bytes, bytes]:
    """The string at the beginning of `body`, and the rest."""
    (length,) = struct.unpack_from(">I", body)
    if len(body) < 4 + length:
        raise IncusError("Incus sends an SFTP packet that is too short")
    return body[4 : 4 + length], body[4 + length :]


def _skip_attributes(body: bytes) -> bytes:
    """`body` without the attributes at its beginning (ATTRS, section 5 of the draft)."""
    (flags,) = struct.unpack_from(">I", body)
    length = 4 + sum(size for flag, size in ((1, 8), (2, 8), (4, 4), (8, 8)) if flags & flag)
    rest = body[length:]
    if flags & 0x80000000:
        (count,) = struct.unpack_from(">I", rest)
        rest = rest[4:]
        for _ in range(2 * count):
            _, rest = _take(rest)
    return rest


def _code(body: bytes) -> int:
    return int(struct.unpack_from(">I", body)[0])


def _message(body: bytes) -> str:
    return os.fsdecode(_take(body[4:])[0])


def _check_missing(kind: int, body: bytes, path: str) -> None:
    """IncusError if the storage fails, or the answer is none."""
    if kind != _STATUS:
        raise IncusError(f"Incus answers SFTP by a packet of type {kind}")
    if _STORAGE_FAILS.search(_take(body[4:])[0]):
        raise IncusError(f"Incus cannot read {path}: {_message(body)}")
