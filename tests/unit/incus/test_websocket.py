"""Messages of a websocket of any length, in bounded memory."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.incus.websocket import Message, Websocket, WebsocketError, connect

pytestmark = pytest.mark.life

ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
KEPT = 1 << 16


def frame(first: int, content: bytes, *, form: str = "") -> bytes:
    size = len(content)
    if not form:
        form = "" if size < 126 else ">H" if size < 1 << 16 else ">Q"
    length = {"": size, ">H": 126, ">Q": 127}[form]
    return bytes([first, length]) + (struct.pack(form, size) if form else b"") + content


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """`given(stream, use)`: what `use` gives for a websocket on which a server sends `stream`."""
    monkeypatch.setattr(paths, "INCUS_SOCKET", str(tmp_path / "socket"))

    def run(
        stream: bytes, use: Callable[[Websocket], Awaitable[object]], head: bytes = ACCEPTED
    ) -> object:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head + stream)
            await reader.read()  # to the end: the client has closed its side then
            writer.close()
            await writer.wait_closed()
            served.set()

        served = asyncio.Event()

        async def main() -> object:
            async with await asyncio.start_unix_server(serve, paths.INCUS_SOCKET):
                try:
                    async with connect("/1.0/events") as websocket:
                        return await use(websocket)
                finally:
                    await served.wait()

        return asyncio.run(main())

    return run


async def one(websocket: Websocket) -> Message | None:
    return await websocket.receive(5)


async def two(websocket: Websocket) -> list[Message | None]:
    return [await websocket.receive(5), await websocket.receive(5)]


@pytest.mark.parametrize("form", ["", ">H", ">Q"])
def test_a_message_has_a_length_in_three_forms(given: Callable[..., object], form: str) -> None:
    assert given(frame(0x81, b"hello", form=form), one) == Message(b"hello", True)


def test_a_message_comes_in_parts_with_other_frames_between(given: Callable[..., object]) -> None:
    stream = frame(0x01, b"he") + frame(0x89, b"ping") + frame(0x00, b"l") + frame(0x8A, b"")
    stream += frame(0x80, b"lo") + frame(0x81, b"next")
    assert given(stream, two) == [Message(b"hello", True), Message(b"next", True)]


@pytest.mark.parametrize("extra", [0, 1, 3 << 20])
def test_a_message_that_is_too_long_has_its_beginning_alone(
    given: Callable[..., object], extra: int
) -> None:
    """Incus sends a long event as one frame, and an empty one to end it."""
    stream = frame(0x01, b"x" * (KEPT + extra)) + frame(0x80, b"") + frame(0x81, b"next")
    first = Message(b"x" * KEPT, complete=not extra)
    assert given(stream, two) == [first, Message(b"next", True)]


def test_many_parts_are_bounded_as_well(given: Callable[..., object]) -> None:
    stream = frame(0x01, b"") + frame(0x00, b"x" * 1000) * 100 + frame(0x80, b"end")
    assert given(stream, one) == Message(b"x" * KEPT, complete=False)


def test_no_message_in_time_is_none_and_loses_nothing(given: Callable[..., object]) -> None:
    async def use(websocket: Websocket) -> list[Message | None]:
        # Half a header has come, and the rest does not.
        return [await websocket.receive(0.05), await websocket.receive(0.05)]

    assert given(b"\x81", use) == [None, None]


@pytest.mark.parametrize(
    "stream",
    [
        frame(0x88, b""),
        frame(0x80, b"continues nothing"),
        frame(0x01, b"begins") + frame(0x81, b"begins again"),
        frame(0xC1, b"reserved bit"),
        frame(0x83, b"reserved kind"),
        frame(0x89, b"x" * 126),
        b"\x81\x85" + b"\0\0\0\0hello",
    ],
    ids=["close", "no begin", "two begins", "bit", "kind", "long ping", "masked"],
)
def test_what_is_not_allowed_ends_the_connection(
    given: Callable[..., object], stream: bytes
) -> None:
    with pytest.raises(WebsocketError):
        given(stream, one)


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", b"nonsense\r\n\r\n"]
)
def test_a_refusal_is_an_error(given: Callable[..., object], head: bytes) -> None:
    with pytest.raises(WebsocketError):
        given(b"", one, head)
