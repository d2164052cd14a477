"""An update that failed is tried again later and later, and a new wish at once."""

import asyncio

import pytest

from inx_sidecar.base.errors import InstanceError
from inx_sidecar.instances.retries import BuildPauses, Pace, Repeats, Retries
from inx_sidecar.kernel.forked import TookTooLongError

pytestmark = pytest.mark.life


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time the test sets."""

    now = 0.0

    def time(self) -> float:
        return self.now


def test_the_same_wish_waits_twice_as_long_each_time_and_another_one_does_not() -> None:
    async def main(clock: Clock) -> None:
        retries, looks = Retries(), []
        waits = []
        for _ in range(8):
            begin = clock.now
            retries.failed("web", "one", InstanceError("no"), lambda: looks.append(clock.now))
            while retries.must_wait("web", "one"):
                clock.now += 1
            waits.append(clock.now - begin)
        assert waits == [10, 20, 40, 80, 160, 300, 300, 300]
        retries.failed("web", "one", InstanceError("no"), lambda: None)
        assert not retries.must_wait("web", "two") and not retries.must_wait("db", "one")
        retries.failed("web", "two", InstanceError("no"), lambda: None)
        clock.now += 10
        assert not retries.must_wait("web", "two"), "a new wish begins with the first wait"
        retries.succeeded("web")
        assert not retries.must_wait("web", "one")

    clock = Clock()
    clock.run_until_complete(main(clock))
    clock.close()


def test_nothing_is_tried_before_the_former_child_has_exited() -> None:
    async def main(clock: Clock) -> None:
        retries, looks = Retries(), []
        exited: asyncio.Future[None] = clock.create_future()
        error = TookTooLongError("it took over 20 s", exited)
        retries.failed("web", "one", error, lambda: looks.append(clock.now))
        clock.now = 1000
        assert retries.must_wait("web", "one")
        exited.set_result(None)
        await asyncio.sleep(0)
        assert looks and looks[-1] == 1000 and not retries.must_wait("web", "one")

    clock = Clock()
    clock.run_until_complete(main(clock))
    clock.close()


def test_looks_that_follow_one_another_wait_longer() -> None:
    pace = Pace()
    now, pauses = 100.0, []
    for _ in range(8):
        pauses.append(pace.next_pause(now))
        now += pauses[-1]
    assert pauses == [0.3, 0.6, 1.2, 2.4, 4.8, 9.6, 10, 10]
    assert pace.next_pause(now + 11) == 0.3


def test_the_longest_pause_is_given() -> None:
    pace = Pace(1.0)
    assert [pace.next_pause(now) for now in (0.0, 0.3, 0.9, 1.9)] == [0.3, 0.6, 1.0, 1.0]
    assert pace.next_pause(4.0) == 0.3


def test_a_build_that_is_asked_for_again_at_once_waits_longer_each_time() -> None:
    pauses, now, waits = BuildPauses(), 0.0, []
    for _ in range(12):
        pause, reason = pauses.begin("web", "one", now)
        assert reason == ("no" if pause else "")
        waits.append(pause)
        now += pause + 60  # the build takes a minute
        pauses.failed("web", "one", "no", now)
        now += 2  # boot.autorestart
    assert waits == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert pauses.begin("web", "two", now) == (0, ""), "a new wish is built at once"
    assert pauses.begin("db", "one", now) == (0, "")


def test_who_asks_later_does_not_wait() -> None:
    pauses, now = BuildPauses(), 0.0
    for _ in range(5):
        assert pauses.begin("web", "one", now) == (0, "")
        pauses.failed("web", "one", "no", now)
        now += 11
    pauses.failed("web", "one", "no", now)
    assert pauses.begin("web", "one", now)[0] == 1, "and the first pause is short again"
    pauses.forget("web")
    assert pauses.begin("web", "one", now) == (0, "")


def test_a_configuration_that_does_not_change_is_looked_at_ever_later() -> None:
    """Root inside may change what each look finds, and so the status, whose write lets us look."""

    async def main(clock: Clock) -> None:
        repeats = Repeats()
        looks: list[float] = []
        for _ in range(36_000):
            if not repeats.must_wait("web", "one", lambda: None):
                looks.append(clock.now)
            clock.now += 0.1
        assert looks[1] < 1 and len(looks) < 24, looks
        assert looks[-1] - looks[-2] >= 300
        assert not repeats.must_wait("web", "two", lambda: None), "a change is looked at at once"
        assert not repeats.must_wait("db", "one", lambda: None)

    clock = Clock()
    clock.run_until_complete(main(clock))
    clock.close()


def test_a_look_that_waits_is_not_lost() -> None:
    async def main(clock: Clock) -> None:
        repeats = Repeats()
        again: list[float] = []

        def look_again() -> None:
            again.append(clock.now)

        for must_wait in False, False, True, True:
            assert repeats.must_wait("web", "one", look_again) is must_wait
        clock.now += 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert again == [1.0] and not repeats.must_wait("web", "one", look_again)

    clock = Clock()
    clock.run_until_complete(main(clock))
    clock.close()
