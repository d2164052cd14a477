"""When to look again at a file system of a container that did not answer."""

import asyncio
import time
from dataclasses import dataclass
from typing import Final

_FIRST_SECONDS: Final = 15.0
_LONGEST_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff for a file system that does not answer; never before the previous child
    has exited."""

    seconds: float = 0.0
    until: float = 0.0
    previous_exited: asyncio.Future[None] | None = None

    def lasts(self) -> bool:
        exited = self.previous_exited is None or self.previous_exited.done()
        return not exited or time.monotonic() < self.until

    def longer(self, exited: asyncio.Future[None]) -> "Backoff":
        """The next backoff, twice as long. `exited` is done when the child that got no answer has
        exited."""
        seconds = min(max(_FIRST_SECONDS, self.seconds * 2), _LONGEST_SECONDS)
        return Backoff(seconds, time.monotonic() + seconds, exited)
