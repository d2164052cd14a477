"""One change for many instances, as that of a profile: in which order, and when to stop.

Instances with a smaller `user.inx.order` come first. Once `max_failures` of the updates have
failed, those that have not begun are held back.
"""

import asyncio
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from inx_sidecar.config.keys import asked_for

# How many names an operator is told.
_NAMES_MAX: Final = 5


@dataclass(frozen=True)
class Expected:
    """An instance that a change may concern: its name in LXC, its order, and what it is asked to
    be."""

    name: str
    order: int
    wish: object


class Rollout:
    """The instances that are about to be looked at, and the turns of those that are.

    `max_failures`: so many failures end the rollout; 0 means that none does. `at_once`: with such a
    limit, so many updates run at once, since each of them may be the one that ends the rollout.
    """

    def __init__(self) -> None:
        self.max_failures = 0
        self.at_once = 1
        self._expected: dict[str, Expected] = {}
        self._turns: list[Turn] = []
        self._failed: dict[str, object] = {}
        self._changed = asyncio.Event()
        # Whether anything orders or limits updates.
        self.in_use = False

    def expect(self, instances: Iterable[Expected], max_failures: int, at_once: int) -> None:
        """A look at `instances` follows. Who failed and is asked for something else counts no more
        as failed."""
        self.max_failures, self.at_once = max_failures, at_once
        self._expected = {item.name: item for item in instances}
        self.in_use = bool(max_failures) or any(item.order for item in self._expected.values())
        for name, wish in list(self._failed.items()):
            if name in self._expected and self._expected[name].wish != wish:
                del self._failed[name]

    def take(self, name: str) -> "Turn | None":
        """The turn of an instance that is looked at now; None if no change of many led to that."""
        item = self._expected.pop(name, None)
        if item is None:
            return None
        turn = Turn(self, item)
        self._turns.append(turn)
        return turn

    def before(self, order: int) -> list[str]:
        """The instances of a smaller order that have not ended."""
        ahead = [*self._expected.values(), *(turn.instance for turn in self._turns)]
        return sorted({item.name for item in ahead if item.order < order})

    def failures(self) -> list[str]:
        """The instances whose failures ended the rollout; empty if it goes on."""
        ended = self.max_failures and len(self._failed) >= self.max_failures
        return sorted(self._failed) if ended else []

    def may_begin(self, order: int) -> bool:
        """Whether nothing is left to wait for: the update begins, or is held back."""
        if self.failures():
            return True
        running = sum(turn.running for turn in self._turns)
        return (not self.max_failures or running < self.at_once) and not self.before(order)

    async def wait(self, order: int) -> None:
        while not self.may_begin(order):
            self._changed.clear()
            await self._changed.wait()

    def end(self, turn: "Turn", *, failed: bool) -> None:
        self._turns.remove(turn)
        if failed:
            self._failed[turn.instance.name] = turn.instance.wish
        if not self._turns and not self._expected:
            self._failed.clear()
        self._changed.set()


class Turn:
    """The part of one instance in a rollout. It ends once, whatever becomes of the update."""

    def __init__(self, rollout: Rollout, instance: Expected) -> None:
        self.instance = instance
        # Whether an update runs, and whether one will end the turn.
        self.running = False
        self.taken = False
        self._rollout = rollout
        self._ended = False

    def waits_for(self) -> list[str]:
        """The instances that come first, if there are any."""
        return [] if self._rollout.failures() else self._rollout.before(self.instance.order)

    async def wait(self) -> list[str]:
        """Wait until the update may begin; if it may not, the instances that failed."""
        await self._rollout.wait(self.instance.order)
        failures = self._rollout.failures()
        self.running = not failures
        return failures

    def end(self, *, failed: bool = False) -> None:
        if not self._ended:
            self._ended = True
            self._rollout.end(self, failed=failed)


class Origins:
    """Whether a change of what an instance is asked to be came from its own keys.

    Incus tells a change of a profile as a change of each instance first, one after the other
    (incus cmd/incusd/profiles_utils.go, doProfileUpdate).
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[Mapping[str, str], Mapping[str, str]]] = {}

    def may_concern_others(self, key: Hashable, api: Mapping[str, Any]) -> bool:
        """True if a profile has changed since the last call for `key`, but not the keys of the
        instance itself."""
        before = self._seen.get(key)
        now = asked_for(api["config"]), asked_for(api["expanded_config"])
        self._seen[key] = now
        return before is not None and before[0] == now[0] and before[1] != now[1]

    def forget(self, key: Hashable) -> None:
        self._seen.pop(key, None)


def order_of(config: Mapping[str, str]) -> int:
    """`user.inx.order`; 0 if it is not set, or wrong, which the update itself will say."""
    text = config.get("user.inx.order", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def queued_text(before: list[str]) -> str:
    """The status of an instance that waits for those of a smaller order."""
    return f"queued: {_names(before)} first, as user.inx.order says"


def held_text(failures: list[str]) -> str:
    """Why an update is held back."""
    return (
        f"the update is held back, since that of {_names(failures)} failed (max_failures); "
        "give user.inx.update another text to go on"
    )


def _names(instances: list[str]) -> str:
    shown = instances[:_NAMES_MAX]
    more = len(instances) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
