"""The number of builds at once is limited, by the host setting `max_builds`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class BuildSlots:
    """Slots that builds wait for; the limit may change while builds wait."""

    def __init__(self) -> None:
        self.taken = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def take(self, limit: int) -> AsyncIterator[None]:
        """Hold a slot, once fewer than `limit` are taken."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.taken < limit)
            self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
            async with self._changed:
                self._changed.notify_all()
