"""A file is refused to daemons until the host has its lock, and not for ever if it gets none."""

import pytest

from inx_sidecar.nix.lock_refusals import REFUSAL, Refusals, until_tried
from inx_sidecar.nix.lock_waits import Times

pytestmark = pytest.mark.main

FILE, THREAD = (1, 10), 7
WAITS = {(THREAD, FILE)}
TIMES = Times()


def seconds(record: bytes) -> float:
    device, inode, instance, length, shortened = REFUSAL.unpack(record)
    assert ((device, inode), instance.rstrip(b"\0"), shortened) == (FILE, b"", False)
    return float(length)


def test_it_goes_on_until_the_thread_has_the_lock() -> None:
    refusals = Refusals(TIMES)
    assert seconds(refusals.begin(FILE, THREAD, 0.0)) > 2 * TIMES.look
    for now in range(1, 100):  # a daemon holds it, which opened the file before
        (record,) = refusals.look(WAITS, {FILE}, float(now))
        assert seconds(record) > 2 * TIMES.look
    (record,) = refusals.look({(8, FILE)}, set(), 100.0)
    assert seconds(record) == 0
    assert not refusals.look(WAITS, set(), 101.0)
    assert refusals.begin(FILE, THREAD, 102.0)


def test_it_ends_if_no_daemon_has_the_lock_and_pauses_then() -> None:
    refusals = Refusals(TIMES)
    refusals.begin(FILE, THREAD, 0.0)
    lengths = [seconds(refusals.look(WAITS, set(), float(now))[0]) for now in range(1, 6)]
    assert all(lengths[:-1]) and lengths[-1] == 0
    assert not refusals.begin(FILE, THREAD, 5.0 + TIMES.refusal_pause - 1)
    assert not refusals.look(WAITS, set(), 6.0)
    assert refusals.begin(FILE, THREAD, 5.0 + TIMES.refusal_pause + 1)


def test_a_file_that_a_build_tries_to_lock_is_refused_until_then() -> None:
    *file, instance, length, shortened = REFUSAL.unpack(until_tried(FILE, "x" * 36))
    assert tuple(file) == FILE and instance == b"x" * 36 and length > 5 and shortened
