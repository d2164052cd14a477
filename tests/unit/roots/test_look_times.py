"""An instance whose links take unusually long to look at."""

import time

import pytest

from inx_sidecar.roots.look_times import LookTimes, is_slow

pytestmark = pytest.mark.gc


@pytest.mark.parametrize(
    ("seconds", "links", "slow"),
    [
        (4.9, 1, False),
        (5.1, 1, True),
        (5.1, 10_000, False),
        (9, 20_000, False),
        (11, 20_000, True),
    ],
)
def test_many_links_may_take_longer(seconds: float, links: int, slow: bool) -> None:
    assert is_slow(seconds, links) == slow


@pytest.mark.parametrize(("seconds", "rested"), [(0, False), (19.5, False), (20.5, True)])
def test_a_comparison_for_room_waits_ten_times_as_long_as_the_last_one_took(
    monkeypatch: pytest.MonkeyPatch, seconds: float, rested: bool
) -> None:
    times = LookTimes()
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    times.compared(98.0, 10)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + seconds)
    assert times.comparison == 2.0 and times.rested == rested


def test_an_instance_that_was_slow_is_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    times = LookTimes()
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    times.looked(90.0, 1)
    assert times.slow
    times.looked(99.0, 1)
    assert not times.slow
