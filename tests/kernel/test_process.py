"""A program is run while everything else goes on."""

import asyncio

import pytest

from inx_sidecar.base.process import run

pytestmark = pytest.mark.main


def test_others_get_turns_while_a_program_prints_many_lines() -> None:
    """A build may print any number of lines: the event loop belonged to them until the end."""
    lines = seen = most = 0

    def take(line: str) -> None:
        nonlocal lines
        lines += 1

    async def count() -> None:
        nonlocal seen, most
        while True:
            most, seen = max(most, lines - seen), lines
            await asyncio.sleep(0)

    async def main() -> None:
        counting = asyncio.create_task(count())
        argv = ["sh", "-c", "head -c 20000 /dev/zero | tr '\\0' '\\n'"]
        done = await run(argv, on_line=take)
        counting.cancel()
        assert done.status == 0 and lines == 20_000

    asyncio.run(main())
    assert most <= 100


@pytest.mark.parametrize("each", [0, 1, 1000])
def test_others_get_turns_whatever_is_read_in_a_line(each: int) -> None:
    """The log of Nix has lines without text, and lines with any number of lines in them."""
    read = most = seen = 0

    def reader(line: str) -> list[str]:
        nonlocal read
        read += max(1, each) if each < 2 else 0
        return [line] * each

    def take(_: str) -> None:
        nonlocal read
        read += each > 1

    async def count() -> None:
        nonlocal seen, most
        while True:
            most, seen = max(most, read - seen), read
            await asyncio.sleep(0)

    async def main() -> None:
        counting = asyncio.create_task(count())
        lines = 20_000 // max(1, each)
        argv = ["sh", "-c", f"head -c {lines} /dev/zero | tr '\\0' '\\n'"]
        done = await run(argv, on_line=take, read=reader)
        counting.cancel()
        assert done.status == 0 and read == 20_000

    asyncio.run(main())
    assert most <= 100


def test_a_line_that_is_read_may_be_longer_than_one_that_is_told() -> None:
    lengths: list[int] = []

    def reader(line: str) -> list[str]:
        lengths.append(len(line))
        return []

    argv = ["sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x; echo; head -c 999999 /dev/zero"]
    asyncio.run(run(argv, read=reader))
    assert lengths[0] == 200_000 and 200_000 < lengths[1] < 600_000
    assert len(lengths) == 2, "the rest of a longer line is dropped"
