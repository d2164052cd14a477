"""One change for many instances, as that of a profile: in which order, and when to stop.

Instances with a smaller `user.inx.order` come first. Once `max_failures` of the updates have
failed, those that have not begun are held back.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from inx_sidecar.config.keys import asked_for

# Project and name of an instance.
Key = tuple[str, str]
# How many names an operator is told.
_NAMES_MAX: Final = 5


@dataclass(frozen=True)
class Expected:
    """An instance that a change may concern: its name, its order, and what it is asked to be."""

    name: str
    order: int
    wish: object


class Rollout:
    """The instances of a project that are about to be looked at, and the turns of those that are:
    no project waits for another one.

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
        self._has_orders = False

    @property
    def in_use(self) -> bool:
        """Whether anything orders or limits the updates."""
        return self._has_orders or bool(self.max_failures)

    def notice(self, order: int, max_failures: int, at_once: int) -> None:
        """An instance with `order` is looked at: a change of many may follow."""
        self.max_failures, self.at_once = max_failures, at_once
        self._has_orders = self._has_orders or bool(order)

    def expect(self, instances: Iterable[Expected], max_failures: int, at_once: int) -> None:
        """A look at `instances`, all of the project that run, follows. An instance that has
        failed, and is asked for something else now, does not count as failed any more."""
        self.max_failures, self.at_once = max_failures, at_once
        self._expected = {item.name: item for item in instances}
        self._has_orders = any(item.order for item in self._expected.values())
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

    @property
    def must_wait(self) -> bool:
        return not self._rollout.may_begin(self.instance.order)

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


class Rollouts:
    """The rollout of each project, and what led to a look at an instance: its own keys, or a change
    of many.

    Incus tells a change of a profile as a change of each instance first, one after the other
    (incus cmd/incusd/profiles_utils.go, doProfileUpdate). So such a change waits for a look at all
    instances, which knows all orders.
    """

    def __init__(self) -> None:
        self._of_project: dict[str, Rollout] = {}
        self._seen: dict[Key, tuple[Mapping[str, str], Mapping[str, str]]] = {}
        # The instances that wait for the look at all of them.
        self.waiting: set[Key] = set()

    def of(self, project: str) -> Rollout:
        return self._of_project.setdefault(project, Rollout())

    def expect(
        self, instances: Mapping[Key, tuple[int, object]], max_failures: int, at_once: int
    ) -> None:
        """All instances that run are looked at now: their orders, and what they are asked to be."""
        self.waiting &= instances.keys()
        for project in {key[0] for key in instances} | self._of_project.keys():
            expected = [Expected(key[1], *instances[key]) for key in instances if key[0] == project]
            self.of(project).expect(expected, max_failures, at_once)

    def take(self, key: Key) -> Turn | None:
        """The turn of an instance that is looked at now; None if it has none."""
        turn = self.of(key[0]).take(key[1])
        if turn is not None:
            self.waiting.discard(key)
        return turn

    def must_wait_for_all(self, key: Key, api: Mapping[str, Any], turn: Turn | None) -> bool:
        """Whether the look at `key` has to wait for that at all instances: a profile has changed
        since the last look, but not the keys of the instance itself."""
        before = self._seen.get(key)
        now = asked_for(api["config"]), asked_for(api["expanded_config"])
        self._seen[key] = now
        if turn is not None or not self.of(key[0]).in_use:
            self.waiting.discard(key)
            return False
        if before is not None and before[0] == now[0] and before[1] != now[1]:
            self.waiting.add(key)
        return key in self.waiting

    def forget(self, key: Key) -> None:
        self._seen.pop(key, None)
        self.waiting.discard(key)


def order_of(config: Mapping[str, str]) -> int:
    """`user.inx.order`; 0 if it is not set, or wrong, which the update itself will say."""
    text = config.get("user.inx.order", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def queued_text(before: list[str], *, names: bool) -> str:
    """The status of an instance that waits for those of a smaller order, or else for a free place;
    `names` says whether it may know their names."""
    if not before:
        return "queued: other updates of this change run, and max_failures limits them"
    return f"queued: {_names(before, names=names)} first, as user.inx.order says"


def held_text(failures: list[str], *, names: bool) -> str:
    """Why an update is held back; `names` as in `queued_text`."""
    return (
        f"the update is held back, since that of {_names(failures, names=names)} failed "
        "(max_failures); give user.inx.update another text to go on"
    )


def _names(instances: list[str], *, names: bool) -> str:
    if not names:
        return "another instance" if len(instances) == 1 else f"{len(instances)} other instances"
    shown = instances[:_NAMES_MAX]
    more = len(instances) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
