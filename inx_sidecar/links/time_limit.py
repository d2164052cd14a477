"""How long the event loop looks at the paths of one container in one go.

The container decides how long each takes: a way may have 40 links (MAXSYMLINKS in fs/namei.c) of
4095 bytes each, 2 milliseconds in all, and there may be thousands of such paths.
"""

import time
from typing import Final

_SECONDS: Final = 0.01


class TimeLimit:
    """It limits processor time: the event loop waits for nothing here, and time in which other
    processes have the processor does not count."""

    def __init__(self) -> None:
        self._end = time.thread_time() + _SECONDS

    @property
    def passed(self) -> bool:
        return time.thread_time() > self._end
