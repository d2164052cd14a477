"""An update that failed is tried again later and later, and a new wish at once."""

import asyncio

import pytest

from inx_sidecar.base.errors import InstanceError
from inx_sidecar.instances.retries import Pace, Retries
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
