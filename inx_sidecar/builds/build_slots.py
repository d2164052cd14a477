"""The number of builds at once is limited, by the host setting `max_builds`.

An evaluation may wait as long as the author of its source likes. So each owner of slots
(`build_user.slot_owner`) has at most all slots but one: builds of others go on in the last one.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

# Project and name of an instance that builds.
_Name = tuple[str, str]
_SHOWN = 3
# Nobody waits for an owner like root, who could do anything to the host.
TRUSTED = ""


class Slot:
    """A slot that is held by `holder`, at first for `owner`; None if it is not known yet who that
    is."""

    def __init__(self, slots: "BuildSlots", owner: str | None, limit: int, holder: _Name) -> None:
        self._slots = slots
        self._limit = limit
        self.owner = owner
        self.holder = holder

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
        self._held: list[Slot] = []
        self._of_owner: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    @property
    def taken(self) -> int:
        return len(self._held)

    def holders(self, owner: str | None, limit: int) -> list[_Name]:
        """The instances whose builds another build of `owner` waits for."""
        all_taken = self.taken >= limit
        return [slot.holder for slot in self._held if all_taken or slot.owner == owner]

    def has_room(self, owner: str | None, limit: int) -> bool:
        """Whether `owner` may have one more of `limit` slots."""
        return owner in (None, TRUSTED) or self._of_owner[owner or ""] < max(1, limit - 1)

    def count(self, owner: str | None, more: int) -> None:
        if owner is not None:
            self._of_owner[owner] += more
            self._of_owner += Counter()  # drops those that are zero

    @asynccontextmanager
    async def take(
        self,
        limit: int,
        owner: str | None = None,
        *,
        holder: _Name = ("", ""),
        waits: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[Slot]:
        """Hold a slot for `holder`, once fewer than `limit` are taken, and `owner` has not enough
        of them. `waits` is called each time that a slot is not given."""

        def is_free() -> bool:
            if self.taken < limit and self.has_room(owner, limit):
                return True
            waits()
            return False

        async with self._changed:
            await self._changed.wait_for(is_free)
            slot = Slot(self, owner, limit, holder)
            self._held.append(slot)
            self.count(owner, 1)
        try:
            yield slot
        finally:
            self._held.remove(slot)
            self.count(slot.owner, -1)
            async with self._changed:
                self._changed.notify_all()


def queue_text(holders: list[_Name], project: str) -> str:
    """The status of a build that waits for those of `holders`. Who reads the status of an instance
    in `project` need not know the instances of others."""
    names = [name for of, name in holders if of == project][:_SHOWN]
    others = len(holders) - len(names)
    if not names:
        return "queued: another build runs" if others == 1 else f"queued: {others} other builds run"
    if len(holders) == 1:
        return f"queued: the build of {names[0]} runs"
    more = f" and {others} more" if others else ""
    return f"queued: builds of {', '.join(names)}{more} run"
