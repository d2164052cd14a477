"""The status of an instance while its system is built: at most one write each two seconds.

Incus refuses what a user asks for while it handles a write. So a build that lasts long is told ever
more seldom, at last each ten seconds.
"""

import asyncio
from collections.abc import Callable
from typing import Final

_SECONDS: Final = 2.0
_LONGEST_SECONDS: Final = 10.0
# A pause is this part of the time that the build has taken.
_PART: Final = 0.1
_QUEUED: Final = "queued"


class BuildStatus:
    """Calls `publish` with the newest text, when the time of the text before is over.

    `shown` is the text that the status has got just now. That a build waits for its turn, or no
    more, is told at once.
    """

    def __init__(self, publish: Callable[[str], None], shown: str) -> None:
        self._publish = publish
        self._text = self._shown = shown
        self._timer: asyncio.TimerHandle | None = None
        self._begin = asyncio.get_running_loop().time()
        self._not_before = self._begin + _SECONDS

    def report(self, text: str) -> None:
        """The status has to say `text` soon, unless another text comes before."""
        self._text = text
        if text == self._shown:
            return
        loop = asyncio.get_running_loop()
        turn = text.startswith(_QUEUED) != self._shown.startswith(_QUEUED)
        if loop.time() >= self._not_before or (turn and self._not_before < float("inf")):
            self._tell()
        elif self._timer is None and self._not_before < float("inf"):
            self._timer = loop.call_at(self._not_before, self._tell)

    def close(self) -> None:
        """The build has ended: nothing more is told."""
        self._cancel()
        self._not_before = float("inf")

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        self._cancel()
        if self._text != self._shown:
            self._shown = self._text
            now = asyncio.get_running_loop().time()
            self._not_before = now + pause_after(now - self._begin)
            self._publish(self._text)


def pause_after(seconds: float) -> float:
    """The seconds until the next write, for a build that has taken `seconds`."""
    return max(_SECONDS, min(seconds * _PART, _LONGEST_SECONDS))
