"""The status of an instance while its system is built: at most one write each two seconds."""

import asyncio
from collections.abc import Callable
from typing import Final

_SECONDS: Final = 2.0


class BuildStatus:
    """Calls `publish` with the newest text, now or when the time of the text before is over.

    `shown` is the text that the status has already.
    """

    def __init__(self, publish: Callable[[str], None], shown: str) -> None:
        self._publish = publish
        self._text = self._shown = shown
        self._not_before = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def report(self, text: str) -> None:
        """The status has to say `text` soon, unless another text comes before."""
        self._text = text
        if text != self._shown and self._timer is None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._not_before:
                self._tell()
            else:
                self._timer = loop.call_at(self._not_before, self._tell)

    def close(self) -> None:
        """The build has ended: nothing more is told."""
        if self._timer is not None:
            self._timer.cancel()
        self._not_before = float("inf")

    def _tell(self) -> None:
        self._timer = None
        if self._text != self._shown:
            self._shown = self._text
            self._not_before = asyncio.get_running_loop().time() + _SECONDS
            self._publish(self._text)
