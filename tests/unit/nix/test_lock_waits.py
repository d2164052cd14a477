"""Who waits for the lock of an instance's Nix daemon, and when its holder is ended."""

import pytest

from inx_sidecar.kernel.flocks import File
from inx_sidecar.nix.lock_waits import Ending, Holders, LockWaits, Times, too_large

pytestmark = pytest.mark.main

FILE, OTHER = (1, 10), (1, 11)
WEB, SHOP = "web", "shop"
HELD: Holders = {FILE: {WEB: {100}}}
PATIENCE = 25.0


class Clock:
    """Looks once a second. A blocked thread waits in flock(2), another one tries again."""

    def __init__(self) -> None:
        self.waits = LockWaits(Times())
        self.now = 1000.0

    def opened(self, thread: int, file: File = FILE, instance: str = "") -> None:
        self.waits.opened(instance, thread, file, self.now)

    def look(
        self,
        holders: Holders = HELD,
        blocked: int = 0,
        patience: float = PATIENCE,
        shared: frozenset[File] = frozenset(),
    ) -> list[Ending]:
        self.now += 1
        threads = {(blocked, FILE)} if blocked else set()
        awaited = self.waits.awaited(threads, self.now)
        return self.waits.endings(holders, patience, self.now, shared) if awaited else []

    def until_ended(
        self, holders: Holders = HELD, blocked: int = 0, tries: int = 0, instance: str = ""
    ) -> tuple[float, Ending]:
        """How long a thread waits until the first ending, and that."""
        begin = self.now
        self.opened(blocked or tries, instance=instance)
        while self.now - begin < 100_000:
            if tries and (self.now - begin) % 5 == 0:
                self.opened(tries, instance=instance)
            if found := self.look(holders, blocked):
                return self.now - begin, found[0]
        raise AssertionError("nobody is ended")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_who_blocks_the_host_is_ended_after_the_patience(clock: Clock) -> None:
    seconds, ending = clock.until_ended(blocked=7)
    assert seconds == PATIENCE
    assert ending == Ending(WEB, FILE, frozenset({100}), False, PATIENCE, "", False)


def test_a_build_that_tries_again_and_again_waits_too(clock: Clock) -> None:
    seconds, ending = clock.until_ended(tries=7)
    assert PATIENCE <= seconds <= PATIENCE + 6 and ending.tries


def test_who_opens_a_lock_file_once_does_not_wait(clock: Clock) -> None:
    """For example a program that makes backups."""
    clock.opened(7)
    assert not any(clock.look() for _ in range(100))
    assert not clock.waits.threads()


def test_two_tries_do_not_count_for_ever(clock: Clock) -> None:
    for _ in range(2):
        clock.opened(7)
    assert not any(clock.look() for _ in range(100))


def test_gc_lock_is_opened_without_a_wait(clock: Clock) -> None:
    for _ in range(100):
        clock.waits.opened("", 7, FILE, clock.now, tried=False)
        assert not clock.look()
    assert clock.until_ended(blocked=7)[0] <= PATIENCE


def test_a_thread_that_ended_waits_no_more(clock: Clock) -> None:
    for _ in range(2):
        clock.opened(7)
    clock.waits.forget({7})
    assert not clock.waits.threads()


def test_an_instance_is_not_to_blame_for_locks_of_others(clock: Clock) -> None:
    clock.opened(7)
    for _ in range(24):
        assert not clock.look(blocked=7)
    holders: Holders = {FILE: {SHOP: {200}}, OTHER: {WEB: {100}}}
    for _ in range(24):
        assert not clock.look(holders, blocked=7)
    (ending,) = clock.look(holders, blocked=7)
    assert ending.instance == SHOP


def test_short_holders_of_one_instance_count_together(clock: Clock) -> None:
    """For example many that hold gc.lock in turn."""
    clock.opened(7)
    for number in range(24):
        assert not clock.look({FILE: {WEB: {number}}}, blocked=7)
    assert clock.look({FILE: {WEB: {99}}}, blocked=7)


def test_the_host_waits_for_all_that_share_a_lock_together(clock: Clock) -> None:
    """Each holds it for a part of the time, and all are ended in one look."""
    clock.opened(7)
    shared = frozenset({FILE})
    for number in range(24):
        assert not clock.look({FILE: {f"{number % 3}": {100}}}, blocked=7, shared=shared)
    both: Holders = {FILE: {WEB: {100}, SHOP: {200}}}
    endings = clock.look(both, blocked=7, shared=shared)
    assert {ending.instance for ending in endings} == {WEB, SHOP}
    assert {ending.shared for ending in endings} == {7}
    for _ in range(4):
        assert not clock.look(both, blocked=7, shared=shared)
    assert all(ending.whole for ending in clock.look(both, blocked=7, shared=shared))


def test_who_shares_a_lock_with_one_that_is_ended_is_ended_with_it(clock: Clock) -> None:
    clock.until_ended(blocked=7)
    clock.opened(8)
    clock.now += 1
    both: Holders = {FILE: {WEB: {100}, SHOP: {200}}}
    shared = frozenset({FILE})
    found: list[Ending] = []
    while not found:
        found = clock.look(both, blocked=8, shared=shared)
    assert {ending.instance for ending in found} == {WEB, SHOP}


def test_a_neighbour_waits_for_each_that_shares_a_lock(clock: Clock) -> None:
    clock.opened(7, instance=SHOP)
    for number in range(700):
        holders: Holders = {FILE: {f"{number % 2}": {100}}}
        assert not clock.look(holders, blocked=7, shared=frozenset({FILE}))


def test_an_instance_that_goes_on_is_ended_sooner_and_wholly(clock: Clock) -> None:
    clock.until_ended(blocked=7)
    for number in range(4):
        assert not clock.look({FILE: {WEB: {number}}}, blocked=7)
    (again,) = clock.look(blocked=7)
    assert again.whole
    seconds, other = clock.until_ended({FILE: {WEB: {1}}}, blocked=8)
    assert seconds == Times().again and not other.whole
    clock.now += Times().remember
    assert clock.until_ended(blocked=9)[0] == PATIENCE


def test_a_long_time_without_a_look_is_nobodys_fault(clock: Clock) -> None:
    clock.opened(7)
    clock.look(blocked=7)
    clock.now += 1000
    assert not clock.look(blocked=7)


def test_the_daemon_of_an_instance_does_not_wait_for_itself(clock: Clock) -> None:
    clock.opened(7, instance=WEB)
    assert not any(clock.look(blocked=7) for _ in range(2000))


def test_neighbours_wait_longer_each_time(clock: Clock) -> None:
    """Else two instances that build one path would end each other for ever."""
    times = [clock.until_ended(blocked=thread, instance=SHOP)[0] for thread in range(7, 15)]
    assert times[:4] == [600, 1200, 2400, 4800]
    assert times[-1] == times[-2] == Times().neighbour_max


def test_threads_of_daemons_displace_no_thread_of_the_host(clock: Clock) -> None:
    clock.opened(7)
    clock.look(blocked=7)
    for thread in range(5000):
        clock.opened(10_000 + thread, instance=SHOP)
    assert (7, FILE) in clock.waits.threads()
    assert len(clock.waits.threads()) < 2100


def test_who_waits_is_not_displaced(clock: Clock) -> None:
    clock.opened(7)
    clock.look(blocked=7)
    for thread in range(5000):
        clock.opened(10_000 + thread)
    assert (7, FILE) in clock.waits.threads()


@pytest.mark.parametrize(
    ("sizes", "ended"),
    [
        ({}, []),
        ({1: 10, 2: 10}, []),
        ({1: 10, 2: 17}, [2]),
        ({1: 16, 2: 15, 3: 14, 4: 13, 5: 12}, [1]),
        (dict.fromkeys(range(10), 16), list(range(6))),
    ],
)
def test_files_of_temporary_roots_are_bounded(sizes: dict[int, int], ended: list[int]) -> None:
    assert too_large(sizes, 16, 64) == ended
