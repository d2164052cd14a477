"""Updates of many instances begin in their order, and stop after so many failures."""

import asyncio
from collections.abc import Iterable
from random import Random

import pytest

from inx_sidecar.instances.rollout import (
    Expected,
    Rollout,
    Rollouts,
    held_text,
    order_of,
    queued_text,
)

pytestmark = pytest.mark.life


def wave(**orders: int) -> list[Expected]:
    return [Expected(name, order, "wish") for name, order in orders.items()]


async def play(
    rollout: Rollout, names: Iterable[str], failing: Iterable[str] = (), idle: Iterable[str] = ()
) -> list[str]:
    """Update the instances, of which some fail and some have nothing to do; what happened."""
    said: list[str] = []

    async def update(name: str) -> None:
        turn = rollout.take(name)
        assert turn is not None
        if name in idle:
            turn.end()
            return
        turn.taken = True
        if held := await turn.wait():
            said.append(f"{name} held by {','.join(held)}")
            turn.end()
            return
        said.append(name)
        await asyncio.sleep(0)
        turn.end(failed=name in failing)

    await asyncio.wait_for(asyncio.gather(*map(update, names)), 5)
    return said


def test_without_orders_and_limits_all_begin_at_once() -> None:
    rollout = Rollout()
    rollout.expect(wave(a=0, b=0, c=0), 0, 1)
    assert not rollout.in_use
    assert asyncio.run(play(rollout, "abc", failing="a")) == ["a", "b", "c"]


def test_a_smaller_order_comes_first_whichever_is_looked_at_first() -> None:
    rollout = Rollout()
    rollout.expect(wave(a=2, b=1, c=0), 0, 1)
    assert rollout.in_use
    assert asyncio.run(play(rollout, "abc", failing="c")) == ["c", "b", "a"]


def test_who_has_nothing_to_do_delays_nobody() -> None:
    rollout = Rollout()
    rollout.expect(wave(a=2, b=1, c=0), 0, 1)
    assert asyncio.run(play(rollout, "abc", idle="bc")) == ["a"]


def test_who_is_not_looked_at_yet_is_waited_for() -> None:
    rollout = Rollout()
    rollout.expect(wave(late=0, other=1), 0, 1)
    turn = rollout.take("other")
    assert turn is not None and turn.waits_for() == ["late"]
    first = rollout.take("late")
    assert first is not None and turn.waits_for() == ["late"]
    first.end()
    assert turn.waits_for() == []


@pytest.mark.parametrize(
    ("limit", "failing", "held"), [(1, "a", "bcd"), (2, "a", ""), (2, "ab", "cd"), (3, "abcd", "d")]
)
def test_after_so_many_failures_the_rest_is_held_back(limit: int, failing: str, held: str) -> None:
    rollout = Rollout()
    rollout.expect(wave(a=0, b=1, c=2, d=3), limit, 2)
    by = ",".join(failing[:limit])
    wanted = [f"{name} held by {by}" if name in held else name for name in "abcd"]
    assert asyncio.run(play(rollout, "abcd", failing)) == wanted


def test_with_a_limit_no_more_run_at_once_than_builds() -> None:
    rollout = Rollout()
    rollout.expect(wave(a=0, b=0, c=0), 1, 1)
    said = asyncio.run(play(rollout, "abc", failing="a"))
    assert said == ["a", "b held by a", "c held by a"]


def test_the_next_change_begins_anew_also_while_the_last_one_runs() -> None:
    rollout = Rollout()
    rollout.expect(wave(a=0, b=0), 1, 2)
    assert asyncio.run(play(rollout, "a", failing="a")) == ["a"]  # b is still expected
    assert rollout.failures() == ["a"]
    rollout.expect([Expected("a", 0, "wish"), Expected("b", 0, "wish")], 1, 2)
    assert rollout.failures() == ["a"]
    rollout.expect([Expected("a", 0, "another wish"), Expected("b", 0, "another wish")], 1, 2)
    assert rollout.failures() == []
    assert asyncio.run(play(rollout, "ab")) == ["a", "b"]


def test_a_rollout_that_is_over_is_forgotten() -> None:
    rollout = Rollout()
    rollout.expect(wave(a=0), 1, 1)
    assert asyncio.run(play(rollout, "a", failing="a")) == ["a"]
    assert rollout.failures() == []
    assert rollout.take("a") is None


@pytest.mark.parametrize("seed", range(50))
def test_no_instance_waits_for_ever_and_none_comes_before_its_turn(seed: int) -> None:
    random = Random(seed)
    orders = {f"i{number}": random.randrange(4) for number in range(12)}
    failing = {name for name in orders if random.random() < 0.3}
    idle = {name for name in orders if random.random() < 0.3} - failing
    limit = random.randrange(4)
    rollout = Rollout()
    rollout.expect(wave(**orders), limit, random.randrange(1, 4))
    names = random.sample(sorted(orders), len(orders))
    said = asyncio.run(play(rollout, names, failing, idle))
    assert len(said) == len(orders) - len(idle)
    begun = [line for line in said if " " not in line]
    assert [orders[name] for name in begun] == sorted(orders[name] for name in begun)
    if not limit or len(failing) < limit:
        assert set(begun) == set(orders) - idle


WEB, SHOP = ("default", "web"), ("other", "shop")


def api(own: str, expanded: str) -> dict[str, dict[str, str]]:
    key = "user.inx.update"
    return {"config": {key: own}, "expanded_config": {key: expanded, "user.inx.status": "x"}}


def test_a_change_of_a_profile_waits_for_a_look_at_all() -> None:
    rollouts = Rollouts()
    rollouts.of("default").notice(1, 0, 2)
    assert not rollouts.must_wait_for_all(WEB, api("", "1"), None)  # nothing is known of it
    assert rollouts.must_wait_for_all(WEB, api("", "2"), None)
    assert rollouts.must_wait_for_all(WEB, api("", "2"), None), "also at a later look"
    rollouts.expect({WEB: (0, "wish")}, 0, 2)
    turn = rollouts.take(WEB)
    assert turn is not None and not rollouts.must_wait_for_all(WEB, api("", "2"), turn)
    rollouts.of("default").notice(1, 0, 2)
    assert not rollouts.must_wait_for_all(WEB, api("", "2"), None)
    assert not rollouts.must_wait_for_all(WEB, api("3", "3"), None), "its own key"
    rollouts.forget(WEB)
    assert not rollouts.must_wait_for_all(WEB, api("3", "4"), None)


def test_without_orders_and_limits_no_change_waits() -> None:
    rollouts = Rollouts()
    rollouts.of("default").notice(0, 0, 2)
    rollouts.must_wait_for_all(WEB, api("", "1"), None)
    assert not rollouts.must_wait_for_all(WEB, api("", "2"), None)


def test_an_order_or_a_limit_counts_from_the_first_look_that_sees_it() -> None:
    for order, limit in ((1, 0), (0, 1)):
        rollouts = Rollouts()
        rollouts.expect({WEB: (0, "wish")}, 0, 2)
        assert not rollouts.of("default").in_use
        rollouts.of("default").notice(order, limit, 2)
        assert rollouts.of("default").in_use


def test_projects_do_not_wait_for_each_other() -> None:
    rollouts = Rollouts()
    rollouts.expect({WEB: (0, "wish"), SHOP: (1, "wish")}, 1, 1)
    web, shop = rollouts.take(WEB), rollouts.take(SHOP)
    assert web is not None and shop is not None

    async def main() -> None:
        assert await web.wait() == []
        assert not shop.must_wait and await shop.wait() == []
        web.end(failed=True)
        assert rollouts.of("other").failures() == []

    asyncio.run(main())


def test_who_has_ended_is_waited_for_no_more() -> None:
    rollouts = Rollouts()
    rollouts.of("default").notice(1, 0, 2)
    rollouts.must_wait_for_all(WEB, api("", "1"), None)
    assert rollouts.must_wait_for_all(WEB, api("", "2"), None)
    rollouts.expect({}, 0, 2)
    assert rollouts.waiting == set()


@pytest.mark.parametrize(
    ("text", "order"), [("", 0), ("7", 7), ("-1", 0), ("x", 0), ("9" * 10, 0), ("٣", 0)]
)
def test_a_wrong_order_is_none(text: str, order: int) -> None:
    assert order_of({"user.inx.order": text}) == order


def test_only_some_names_are_told() -> None:
    names = [f"i{number}" for number in range(8)]
    assert queued_text(names, names=True).startswith("queued: i0, i1, i2, i3, i4 and 3 more first")
    assert "that of i0 failed (max_failures)" in held_text(["i0"], names=True)


def test_an_isolated_instance_is_told_no_names() -> None:
    for text in (
        queued_text(["secret"], names=False),
        queued_text(["secret", "b"], names=False),
        held_text(["secret"], names=False),
    ):
        assert "secret" not in text and "other instance" in text
    assert queued_text([], names=True).startswith("queued: other updates")
