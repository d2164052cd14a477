"""Answers of SFTP: what cannot be read is left out, what is too large or out of turn ends it."""

import asyncio
import struct
from collections.abc import Coroutine
from typing import Any

import pytest

from inx_sidecar.incus.api import IncusError
from inx_sidecar.incus.sftp import Sftp

pytestmark = pytest.mark.gc

STATUS, HANDLE, NAME = 101, 102, 104


class Writer:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    async def drain(self) -> None:
        pass


def string(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


def answer(number: int, kind: int, body: bytes) -> bytes:
    return packet(kind, struct.pack(">I", number) + body)


def status(number: int, code: int, message: bytes) -> bytes:
    return answer(number, STATUS, struct.pack(">I", code) + string(message) + string(b""))


def names(number: int, *found: bytes, attributes: bytes = bytes(4)) -> bytes:
    body = b"".join(string(name) + string(b"long") + attributes for name in found)
    return answer(number, NAME, struct.pack(">I", len(found)) + body)


def run(data: bytes, use: Any) -> Any:
    async def main() -> Any:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        work: Coroutine[Any, Any, Any] = use(Sftp(reader, Writer()))  # type: ignore[arg-type]
        return await work

    return asyncio.run(main())


def test_links_are_read_in_any_order_and_others_are_left_out() -> None:
    data = names(2, b"/nix/store/b") + status(
        3, 4, b"readlink /c: too many levels of symbolic links"
    )
    data += names(1, b"/nix/store/a") + status(4, 2, b"no such file") + status(5, 3, b"denied")
    found = run(data, lambda sftp: sftp.read_links(["/a", "/b", "/c", "/d", "/e"]))
    assert found == {"/a": "/nix/store/a", "/b": "/nix/store/b"}


def test_a_directory_is_listed_up_to_a_limit() -> None:
    every = struct.pack(">IQIIIIII", 0x8000000F, 1, 0, 0, 0o777, 0, 0, 1)
    every += string(b"extended") + string(b"x")
    data = answer(1, HANDLE, string(b"7")) + names(2, b"a", b"\xff", attributes=every)
    more = data + names(3, b"c", b"d") + status(4, 0, b"")
    assert run(more, lambda sftp: sftp.list_names("/x", 3)) == ["a", "\udcff", "c", "d"]
    end = data + status(3, 1, b"EOF") + status(4, 0, b"")
    assert run(end, lambda sftp: sftp.list_names("/x", 99)) == ["a", "\udcff"]
    missing = status(1, 2, b"no such file or directory")
    assert run(missing, lambda sftp: sftp.list_names("/x", 99)) == []


@pytest.mark.parametrize(
    "data",
    [
        status(1, 4, b"readlink /a: input/output error"),
        status(2, 2, b"no such file"),
        answer(1, HANDLE, string(b"7")),
        answer(1, NAME, struct.pack(">II", 1, 1 << 30)),
        struct.pack(">IB", 1 << 30, NAME),
        struct.pack(">IB", 0, NAME),
        packet(STATUS, b"\0\0\0\1"),
        b"\0",
        b"",
    ],
)
def test_what_is_no_answer_ends_the_reading(data: bytes) -> None:
    with pytest.raises((IncusError, EOFError, struct.error)):
        run(data, lambda sftp: sftp.read_links(["/a"]))
