"""One owner cannot make the builds of all others wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from random import Random

import pytest

from inx_sidecar.builds.build_slots import TRUSTED, BuildSlots, queue_text
from inx_sidecar.builds.build_user import BuildUser, Evaluator, slot_owner
from inx_sidecar.config.sources import Flake, System

pytestmark = pytest.mark.main

FLAKE = Flake("path:/srv/x", "web", attr_given=True)
ALICE, ROOT = BuildUser("alice", 1000, 1000, "/home/alice"), BuildUser("root", 0, 0, "/root")
BUILD_USER = BuildUser("inx-build", 900, 900, "/var/lib/inx-build")


@contextlib.asynccontextmanager
async def held(slots: BuildSlots, limit: int, owner: str) -> AsyncIterator[None]:
    """As a build does it: a slot is taken before it is known whose build it is."""
    known: str | None = None
    while True:
        async with slots.take(limit, known) as slot:
            known = owner
            if slot.give_to(owner):
                yield
                return


async def begun(slots: BuildSlots, limit: int, owners: list[str]) -> list[str]:
    """The owners of the builds that begin, in order, if none of them ever ends."""
    begins: list[str] = []

    async def build(owner: str) -> None:
        async with held(slots, limit, owner):
            begins.append(owner)
            await asyncio.Event().wait()

    tasks = []
    for owner in owners:
        tasks.append(asyncio.create_task(build(owner)))
        for _ in range(9):
            await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert slots.taken == 0 and slots.has_room("a", limit)
    return begins


@pytest.mark.parametrize("limit", [2, 3, 8])
def test_the_last_slot_is_for_others(limit: int) -> None:
    owners = ["a"] * 20 + ["b"]
    assert asyncio.run(begun(BuildSlots(), limit, owners)) == ["a"] * (limit - 1) + ["b"]


def test_a_trusted_owner_has_all_slots_and_one_slot_is_anybodys() -> None:
    assert asyncio.run(begun(BuildSlots(), 2, [TRUSTED] * 3)) == [TRUSTED] * 2
    assert asyncio.run(begun(BuildSlots(), 1, ["a", "b"])) == ["a"]


def test_a_build_that_waits_goes_on_when_one_of_its_owner_ends() -> None:
    async def run() -> list[str]:
        slots, order = BuildSlots(), list[str]()
        ends = asyncio.Event()

        async def build(name: str, *, waits: bool = False) -> None:
            async with held(slots, 2, "a"):
                order.append(name)
                if waits:
                    await ends.wait()
                order.append(f"end of {name}")

        first = asyncio.create_task(build("first", waits=True))
        second = asyncio.create_task(build("second"))
        for _ in range(9):
            await asyncio.sleep(0)
        ends.set()
        await asyncio.wait_for(asyncio.gather(first, second), 5)
        return order

    assert asyncio.run(run()) == ["first", "end of first", "second", "end of second"]


def test_the_limits_hold_in_any_order() -> None:
    """Also while the limit changes, builds are cancelled, and owners turn out to be others."""

    async def run(random: Random) -> None:
        slots, running = BuildSlots(), list[str]()

        async def build(owner: str) -> None:
            async with held(slots, 3, owner):
                running.append(owner)
                try:
                    assert len(running) <= 3 and running.count("a") <= 2 >= running.count("b")
                    for _ in range(random.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    running.remove(owner)

        tasks = [asyncio.create_task(build(random.choice(["a", "b", TRUSTED]))) for _ in range(60)]
        for task in random.sample(tasks, 20):
            await asyncio.sleep(0)
            task.cancel()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert {type(each) for each in done} <= {type(None), asyncio.CancelledError}
        assert slots.taken == 0

    for seed in range(20):
        asyncio.run(run(Random(seed)))


def test_who_is_the_owner_of_a_slot() -> None:
    assert slot_owner(Evaluator(ROOT, FLAKE, is_owner=True), "blue") == TRUSTED
    assert slot_owner(Evaluator(BUILD_USER, System("/nix/store/x")), "blue") == TRUSTED
    assert slot_owner(Evaluator(ALICE, FLAKE, is_owner=True), "blue") == "user alice"
    assert slot_owner(Evaluator(BUILD_USER, FLAKE), "blue") == "project blue"
    assert slot_owner(Evaluator(BUILD_USER, FLAKE, doubt="x"), "blue") == "project blue"


def test_who_waits_knows_for_whom() -> None:
    told: list[str] = []

    async def main() -> None:
        slots = BuildSlots()

        def waits() -> None:
            told.append(queue_text(slots.holders("alice", 2), "default"))

        async with slots.take(2, "alice", holder=("default", "a")) as slot:
            async with slots.take(2, TRUSTED, holder=("default", "b")):
                waiting = asyncio.create_task(one(slots, waits))
                await asyncio.sleep(0)
            while len(told) < 2:
                await asyncio.sleep(0)
            assert slot.owner == "alice" and not waiting.done()
        await waiting
        assert slots.taken == 0

    async def one(slots: BuildSlots, waits: Callable[[], None]) -> None:
        async with slots.take(2, "alice", holder=("default", "c"), waits=waits):
            pass

    asyncio.run(main())
    assert told == ["queued: builds of a, b run", "queued: the build of a runs"]


def test_the_instances_of_other_projects_have_no_name() -> None:
    mine, other = [("default", name) for name in "abcde"], ("other", "secret")
    assert queue_text(mine[:1], "default") == "queued: the build of a runs"
    assert queue_text(mine, "default") == "queued: builds of a, b, c and 2 more run"
    assert queue_text([other, *mine[:1]], "default") == "queued: builds of a and 1 more run"
    assert queue_text([other], "default") == "queued: another build runs"
    assert queue_text([other] * 2, "default") == "queued: 2 other builds run"
