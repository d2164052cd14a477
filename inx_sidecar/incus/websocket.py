"""The messages of a websocket (RFC 6455) on Incus' unix socket, in bounded memory.

A message may be of any length: Incus tells, for one, the whole command line of each `incus exec`.
Of a longer one than `_KEPT_BYTES`, the beginning is kept and the rest is read and dropped.
"""

import asyncio
import base64
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import h11

from inx_sidecar.base import paths

_KEPT_BYTES: Final = 1 << 16
# The rest of a message that has begun arrives within this time.
_SECONDS: Final = 60.0
_CONTINUED, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_CONTROL: Final = 0x8
_CONTROL_MAX: Final = 125


class WebsocketError(OSError):
    """Incus has closed the websocket, or sends what is none."""


@dataclass(frozen=True)
class Message:
    """`content` is the beginning alone if the message is not `complete`."""

    content: bytes
    complete: bool


class Websocket:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self, seconds: float) -> Message | None:
        """The next message; None if none begins within `seconds`.

        OSError if the connection ends, TimeoutError if a message that has begun does not.
        """
        content, complete, begun = bytearray(), True, False
        while True:
            try:
                async with asyncio.timeout(None if begun else seconds):
                    # Nothing is lost if the time is up: readexactly takes all bytes or none.
                    first, second = await self._read(2)
            except TimeoutError:
                return None
            async with asyncio.timeout(_SECONDS):
                kind, length = first & 0xF, await self._length(first, second)
                if kind & _CONTROL:
                    await self._answer(kind, await self._read(length))
                    continue
                if kind not in (_CONTINUED, _TEXT, _BINARY) or begun != (kind == _CONTINUED):
                    raise WebsocketError(f"frame {first:#x} does not belong here")
                begun = True
                kept = await self._read(min(length, _KEPT_BYTES - len(content)))
                content += kept
                complete = complete and len(kept) == length
                await self._drop(length - len(kept))
            if first & _FINAL:
                return Message(bytes(content), complete)

    async def _length(self, first: int, second: int) -> int:
        length = second & 0x7F
        control = bool(first & _CONTROL)
        if first & _RESERVED or second & _MASKED or (control and length > _CONTROL_MAX):
            raise WebsocketError(f"frame {first:#x} of {second:#x} is not allowed")
        for code, form in ((126, ">H"), (127, ">Q")):
            if length == code:
                return int(struct.unpack(form, await self._read(struct.calcsize(form)))[0])
        return length

    async def _answer(self, kind: int, content: bytes) -> None:
        if kind == _CLOSE:
            raise WebsocketError("Incus has closed the connection")
        if kind == _PING:
            # What a client sends is masked; zeros are a mask that changes nothing.
            self._writer.write(bytes([_FINAL | _PONG, _MASKED | len(content), *bytes(4)]) + content)
            await self._writer.drain()

    async def _read(self, length: int) -> bytes:
        try:
            return await self._reader.readexactly(length)
        except asyncio.IncompleteReadError:
            raise WebsocketError("the connection has ended") from None

    async def _drop(self, length: int) -> None:
        while length:
            dropped = await self._reader.read(min(length, _KEPT_BYTES))
            if not dropped:
                raise WebsocketError("the connection has ended")
            length -= len(dropped)


@asynccontextmanager
async def connect(target: str) -> AsyncIterator[Websocket]:
    """The websocket at `target`, a path with a query. OSError if Incus does not give one."""
    reader, writer = await asyncio.open_unix_connection(paths.INCUS_SOCKET)
    try:
        async with asyncio.timeout(_SECONDS):
            await _upgrade(reader, writer, target)
        yield Websocket(reader, writer)
    finally:
        writer.close()


async def _upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
    connection = h11.Connection(h11.CLIENT)
    key = base64.b64encode(os.urandom(16)).decode()
    headers = [
        ("Host", "incus"), ("Connection", "Upgrade"), ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", key),
    ]  # fmt: skip
    request = h11.Request(method="GET", target=target, headers=headers)
    for part in (request, h11.EndOfMessage()):
        writer.write(connection.send(part) or b"")
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    try:
        connection.receive_data(head)
        answer = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise WebsocketError(str(error)) from None
    if not isinstance(answer, h11.InformationalResponse) or answer.status_code != 101:
        raise WebsocketError("Incus refuses the websocket")
