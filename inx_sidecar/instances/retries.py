"""When to look again: at an instance whose update or build has failed, and at all instances.

No state of a container makes the sidecar repeat itself without pause.
"""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from inx_sidecar.kernel.forked import TookTooLongError

_FIRST_SECONDS: Final = 10.0
_LONGEST_SECONDS: Final = 300.0
# Changes come in bursts, and often right before a restart, which reads the configuration itself.
BURST_SECONDS: Final = 0.3
_LONGEST_PAUSE_SECONDS: Final = 10.0
# An instance that ends is started again by Incus within some seconds, by a person later.
_AT_ONCE_SECONDS: Final = 10.0
_FIRST_PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True)
class _Failure:
    """An update for `wish` failed: it is tried again after `seconds`, at the time `until`, and not
    before `child_exited` is done, if a child did not end in time."""

    wish: object
    seconds: float
    until: float
    timer: asyncio.TimerHandle
    child_exited: asyncio.Future[None] | None


class Retries:
    """Exponential backoff for the updates of each instance; a new wish is tried at once.

    A wish is any value that changes with what an instance is asked to be.
    """

    def __init__(self) -> None:
        self._failures: dict[Hashable, _Failure] = {}

    def must_wait(self, key: Hashable, wish: object) -> bool:
        """Whether the update for `wish` has failed, and its next attempt has to wait."""
        failure = self._failures.get(key)
        if failure is None or failure.wish != wish:
            return False
        exited = failure.child_exited is None or failure.child_exited.done()
        return not exited or asyncio.get_running_loop().time() < failure.until

    def failed(
        self, key: Hashable, wish: object, error: Exception, look_again: Callable[[], None]
    ) -> None:
        """The update failed by `error`: `look_again` is called when it may be tried again."""
        loop = asyncio.get_running_loop()
        before = self._failures.get(key)
        seconds = _FIRST_SECONDS
        if before is not None:
            before.timer.cancel()
            if before.wish == wish:
                seconds = min(before.seconds * 2, _LONGEST_SECONDS)
        exited = error.ended if isinstance(error, TookTooLongError) else None
        until = loop.time() + seconds
        timer = loop.call_at(until, look_again)
        self._failures[key] = _Failure(wish, seconds, until, timer, exited)
        if exited is not None:
            exited.add_done_callback(lambda _: look_again())

    def succeeded(self, key: Hashable) -> None:
        failure = self._failures.pop(key, None)
        if failure is not None:
            failure.timer.cancel()


@dataclass(frozen=True)
class _FailedBuild:
    """The build for `wish`, which began after `pause` seconds, failed at the time `at`."""

    wish: object
    reason: str
    pause: float
    at: float


class BuildPauses:
    """How long a build waits that has just failed, and is asked for again at once: as Incus does
    with boot.autorestart, or root inside by a reboot.

    Who asks later, as a person does who has corrected the source, does not wait.
    """

    def __init__(self) -> None:
        self._failed: dict[Hashable, _FailedBuild] = {}
        self._begun: dict[Hashable, float] = {}

    def begin(self, key: Hashable, wish: object, now: float) -> tuple[float, str]:
        """The seconds that a build for `wish`, wanted at the time `now`, has to wait, and why."""
        failed = self._failed.get(key)
        again = failed is not None and failed.wish == wish and now - failed.at < _AT_ONCE_SECONDS
        if failed is None or not again:
            self._begun[key] = 0.0
            return 0.0, ""
        pause = min(failed.pause * 2 or _FIRST_PAUSE_SECONDS, _LONGEST_SECONDS)
        self._begun[key] = pause
        return pause, failed.reason

    def failed(self, key: Hashable, wish: object, reason: str, now: float) -> None:
        self._failed[key] = _FailedBuild(wish, reason, self._begun.get(key, 0.0), now)

    def forget(self, key: Hashable) -> None:
        """The build succeeded, or there is no instance any more."""
        self._failed.pop(key, None)
        self._begun.pop(key, None)


@dataclass
class _Look:
    """A look at what `seen` says. The next one is due at the time `until`; after it, the pause is
    `seconds` long. `timer` is set if a look waits."""

    seen: object
    seconds: float
    until: float
    timer: asyncio.TimerHandle | None = None


class Repeats:
    """Looks at an instance whose configuration is what it was at the look before: ever later.

    What a look finds inside may change what inx writes, and each write of inx lets it look again.
    """

    def __init__(self) -> None:
        self._looks: dict[Hashable, _Look] = {}

    def must_wait(self, key: Hashable, seen: object, look_again: Callable[[], None]) -> bool:
        """Whether a look at `seen` has to wait; then `look_again` is called when it has."""
        loop = asyncio.get_running_loop()
        now, last = loop.time(), self._looks.get(key)
        if last is None or last.seen != seen or now > last.until + _LONGEST_SECONDS:
            self.forget(key)
            self._looks[key] = _Look(seen, BURST_SECONDS, now)
            return False
        if now >= last.until:
            self.forget(key)
            seconds = min(last.seconds * 2, _LONGEST_SECONDS)
            self._looks[key] = _Look(seen, seconds, now + seconds)
            return False
        if last.timer is None:
            last.timer = loop.call_at(last.until, look_again)
        return True

    def forget(self, key: Hashable) -> None:
        last = self._looks.pop(key, None)
        if last is not None and last.timer is not None:
            last.timer.cancel()


class Pace:
    """How long looks wait that may follow one another without end: each longer than the one before,
    up to `longest` seconds. After a time as long as `longest`, the pauses are short again."""

    def __init__(self, longest: float = _LONGEST_PAUSE_SECONDS) -> None:
        self._longest = longest
        self._pause = 0.0
        self._last = float("-inf")

    def next_pause(self, now: float) -> float:
        """The seconds that the look that is wanted at the time `now` has to wait."""
        follows = now - self._last < self._longest
        pause = min(self._pause * 2, self._longest) if follows else BURST_SECONDS
        self._pause, self._last = pause, now + pause
        return pause
