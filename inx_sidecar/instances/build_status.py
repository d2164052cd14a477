"""The status of an instance while its system is built: at most one write each two seconds."""

import asyncio
from collections.abc import Callable
from typing import Final

_SECONDS: Final = 2.0
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
        self._not_before = asyncio.get_running_loop().time() + _SECONDS

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
            self._not_before = asyncio.get_running_loop().time() + _SECONDS
            self._publish(self._text)
