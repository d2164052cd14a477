"""Wait until a condition is true."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

# Far more than any wait takes on a slow machine, and less than the 600 s of the waits of inx that
# nothing ends.
SECONDS: Final = 60


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.002)
