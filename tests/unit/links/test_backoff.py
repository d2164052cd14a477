"""After a file system did not answer, each next pause is longer."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from inx_sidecar.links.backoff import Backoff

pytestmark = pytest.mark.gc


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def child() -> Iterator[asyncio.Future[None]]:
    """A future that is done when the previous child has exited."""
    with closing(asyncio.new_event_loop()) as loop:
        yield loop.create_future()


def test_at_first_there_is_no_pause() -> None:
    assert not Backoff().lasts()


def test_each_backoff_is_twice_as_long_up_to_ten_minutes(
    clock: list[float], child: asyncio.Future[None]
) -> None:
    backoff, seconds = Backoff(), []
    for _ in range(8):
        backoff = backoff.longer(child)
        seconds.append(backoff.seconds)
    assert seconds == [15, 30, 60, 120, 240, 480, 600, 600]


def test_a_backoff_ends_after_its_time(clock: list[float], child: asyncio.Future[None]) -> None:
    child.set_result(None)
    backoff = Backoff().longer(child)
    clock[0] += 14.9
    assert backoff.lasts()
    clock[0] += 0.2
    assert not backoff.lasts()


def test_a_backoff_does_not_end_before_the_previous_child_has_exited(
    clock: list[float], child: asyncio.Future[None]
) -> None:
    backoff = Backoff().longer(child)
    clock[0] += 10_000
    assert backoff.lasts()
    child.set_result(None)
    assert not backoff.lasts()
