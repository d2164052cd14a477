"""The number of builds at once is limited, by the host setting `max_builds`.

An evaluation may wait as long as the owner of its source likes. So an owner who is not root has at
most all slots but one: builds of others go on in the last one.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# Nobody waits for an owner like root, who could do anything to the host.
TRUSTED = ""


class Slot:
    """A slot that is held, at first for `owner`; None if it is not known yet who that is."""

    def __init__(self, slots: "BuildSlots", owner: str | None, limit: int) -> None:
        self._slots = slots
        self._limit = limit
        self.owner = owner

    def give_to(self, owner: str) -> bool:
        """Hold the slot for `owner` from now on; False if this owner has enough slots."""
        if owner == self.owner:
            return True
        if not self._slots.has_room(owner, self._limit):
            return False
        self._slots.count(self.owner, -1)
        self._slots.count(owner, 1)
        self.owner = owner
        return True


class BuildSlots:
    """Slots that builds wait for; the limit may change while builds wait."""

    def __init__(self) -> None:
        self.taken = 0
        self._of_owner: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    def has_room(self, owner: str | None, limit: int) -> bool:
        """Whether `owner` may have one more of `limit` slots."""
        return owner in (None, TRUSTED) or self._of_owner[owner or ""] < max(1, limit - 1)

    def count(self, owner: str | None, more: int) -> None:
        if owner is not None:
            self._of_owner[owner] += more
            self._of_owner += Counter()  # drops those that are zero

    @asynccontextmanager
    async def take(self, limit: int, owner: str | None = None) -> AsyncIterator[Slot]:
        """Hold a slot, once fewer than `limit` are taken, and `owner` has not enough of them."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.taken < limit and self.has_room(owner, limit))
            self.taken += 1
            self.count(owner, 1)
        slot = Slot(self, owner, limit)
        try:
            yield slot
        finally:
            self.taken -= 1
            self.count(slot.owner, -1)
            async with self._changed:
                self._changed.notify_all()
