"""Decide which process of an instance's Nix daemon holds a lock for too long.

Nix waits for a lock in two ways. To add a path, and to collect garbage, it waits in flock(2). A
build tries to lock its outputs, and opens their lock files again every five seconds
(settings.pollInterval; waitForAWhile in libstore/build/worker.cc) until it has them.

An instance is to blame for the time that its daemon holds what somebody waits for, whichever of its
processes holds it. So an innocent instance that gets the lock in between has all of its time.

A lock that several share, as that of gc.lock, is different: each of two instances that hold it in
turn may end, and the lock is never free. So the time of the host counts, whoever of them holds it,
and all holders are ended in one look.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from inx_sidecar.kernel.flocks import File

# The processes that hold the lock of each file, by the uuids of their instances.
Holders = Mapping[File, Mapping[str, AbstractSet[int]]]

_WAITS_MAX: Final = 2000
_NEIGHBOURS_MAX: Final = 2000
_DAY: Final = 86_400.0


@dataclass(frozen=True)
class Times:
    """In seconds.

    `again`: how long the host waits for an instance that was ended within the last `remember`.
    `neighbour`: how long another instance waits. This doubles each time that the same instance is
    ended for the same lock, up to `neighbour_max`: else two instances with one long build would end
    each other for ever.
    `poll`: for how long after its last try a build may still wait.
    `look`: the pause between two looks. A look adds at most `step`, also if it comes late.
    `refusal`: for how long daemons may not open a file that no daemon holds, though the host still
    waits for it; the next such time is `refusal_pause` later. Another process of the host has it.
    """

    again: float = 5.0
    remember: float = 600.0
    neighbour: float = 600.0
    neighbour_max: float = 28_800.0
    poll: float = 12.0
    look: float = 1.0
    step: float = 5.0
    refusal: float = 5.0
    refusal_pause: float = 60.0


@dataclass(frozen=True)
class Ending:
    """End `processes` of the daemon of `instance`, which hold the lock of `file`.

    `whole`: end the whole daemon, since the same wait goes on after its processes were ended.
    `waited`: for how many seconds of waiting the instance is to blame.
    `neighbour`: the instance whose daemon waits, or "" if a process of the host does.
    `tries`: a build waits and tries again and again, so the lock must stay free until then.
    `shared`: the thread of the host that waits for a lock that several share, or 0.
    """

    instance: str
    file: File
    processes: frozenset[int]
    whole: bool
    waited: float
    neighbour: str
    tries: bool
    shared: int = 0


@dataclass
class _Wait:
    first: float
    last: float
    opens: int = 0
    waits: bool = False
    blamed: dict[str, float] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    shared: float = 0.0


class LockWaits:
    """Threads that may wait for a lock, and the instances that are to blame."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._looked = 0.0
        self._tried: set[File] = set()
        # By the instance whose daemon has the thread, "" for the host; then by thread and file. The
        # threads of daemons may be many, and displace no others.
        self._waits: dict[bool, dict[tuple[str, int, File], _Wait]] = {False: {}, True: {}}
        self._ended: dict[str, float] = {}
        self._ended_for_neighbours: dict[tuple[str, File], tuple[int, float]] = {}

    def opened(
        self, instance: str, thread: int, file: File, now: float, *, tried: bool = True
    ) -> None:
        """A thread opened a lock file: one of the daemon of `instance`, or "" of the host.

        `tried`: whoever opens this file again, may have failed to lock it before.
        """
        waits = self._waits[bool(instance)]
        wait = waits.pop((instance, thread, file), None) or _Wait(now, now)
        wait.last = now
        wait.opens += tried
        if len(waits) >= _WAITS_MAX:
            unneeded = (key for key, other in waits.items() if not other.waits)
            del waits[next(unneeded, next(iter(waits)))]
        waits[instance, thread, file] = wait

    def threads(self) -> list[tuple[int, File]]:
        return [(thread, file) for kind in self._waits.values() for _, thread, file in kind]

    def forget(self, threads: AbstractSet[int]) -> None:
        """These threads have ended."""
        for kind in self._waits.values():
            for key in [key for key in kind if key[1] in threads]:
                del kind[key]

    def awaited(self, blocked: AbstractSet[tuple[int, File]], now: float) -> set[File]:
        """The files for whose locks somebody waits; `blocked` are threads in flock(2)."""
        files = set()
        self._tried.clear()
        for waits in self._waits.values():
            for key, wait in list(waits.items()):
                blocks = key[1:] in blocked
                tries = wait.opens > 1 and now - wait.last <= self._times.poll
                wait.waits = blocks or tries
                if tries:
                    self._tried.add(key[2])
                if wait.waits:
                    files.add(key[2])
                elif now - wait.last > self._times.poll:
                    del waits[key]
        return files

    def endings(
        self, holders: Holders, patience: float, now: float, shared: AbstractSet[File] = frozenset()
    ) -> list[Ending]:
        """Whom to end, after `awaited`. `patience` is how long the host waits, in seconds; holders
        share the locks of the files `shared`."""
        passed = min(now - self._looked, self._times.step)
        self._looked = now
        found: dict[tuple[str, File], Ending] = {}
        for waits in self._waits.values():
            for (waiter, thread, file), wait in waits.items():
                others = [instance for instance in holders.get(file, {}) if instance != waiter]
                if not wait.waits or not others:
                    continue
                seconds = min(passed, now - wait.first)
                for instance in others:
                    wait.blamed[instance] = wait.blamed.get(instance, 0.0) + seconds
                allowed = {
                    instance: self._allowed(instance, file, waiter, patience, now)
                    for instance in others
                }
                blamed = [each for each in others if wait.blamed[each] >= allowed[each]]
                if together := file in shared and not waiter:
                    wait.shared += seconds
                    if blamed or wait.shared >= min(allowed.values()):
                        blamed = others
                for instance in blamed:
                    found.setdefault(
                        (instance, file),
                        Ending(
                            instance, file, frozenset(holders[file][instance]),
                            instance in wait.ended, max(wait.shared, wait.blamed[instance]),
                            waiter, file in self._tried, thread if together else 0,
                        ),
                    )  # fmt: skip
        self._note(found.values(), now)
        return list(found.values())

    def _allowed(
        self, instance: str, file: File, waiter: str, patience: float, now: float
    ) -> float:
        """How long `waiter` waits for the lock of `file` that `instance` holds, in seconds."""
        times = self._times
        if waiter:
            count, when = self._ended_for_neighbours.get((instance, file), (0, now))
            count = count if now - when < _DAY else 0
            longest = times.neighbour_max
            return max(patience, min(times.neighbour * 2.0 ** min(count, 20), longest))
        recently = now - self._ended.get(instance, -times.remember) < times.remember
        return min(patience, times.again) if recently else patience

    def _note(self, endings: Iterable[Ending], now: float) -> None:
        for ending in endings:
            if ending.neighbour:
                key = ending.instance, ending.file
                count, _ = self._ended_for_neighbours.pop(key, (0, now))
                if len(self._ended_for_neighbours) >= _NEIGHBOURS_MAX:
                    del self._ended_for_neighbours[next(iter(self._ended_for_neighbours))]
                self._ended_for_neighbours[key] = count + 1, now
            else:
                self._ended[ending.instance] = now
            for waits in self._waits.values():
                for (_, _, file), wait in waits.items():
                    if file == ending.file and wait.blamed.pop(ending.instance, None) is not None:
                        wait.ended.add(ending.instance)
                    if file == ending.file and ending.shared:
                        wait.shared = 0.0
        remembered = {
            instance: when
            for instance, when in self._ended.items()
            if now - when < self._times.remember
        }
        self._ended = remembered


def too_large(sizes: Mapping[int, int], each: int, together: int) -> list[int]:
    """The processes of one instance to end, so that no file of temporary roots has over `each`
    bytes, and all have `together` at most; those with the largest files first."""
    ended, rest = [], sum(sizes.values())
    for pid, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size > each or rest > together:
            ended.append(pid)
            rest -= size
    return ended
