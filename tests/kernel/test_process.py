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
