"""How long it takes to look at the links of an instance: the container decides that."""

import time
from typing import Final

_REST_SECONDS: Final = 5.0
_SLOW_SECONDS: Final = 5.0
_SLOW_SECONDS_EACH: Final = 0.001
_SLOWEST_SECONDS: Final = 10.0


class LookTimes:
    """`comparison` is the number of seconds that the last comparison took.

    `slow`: the last look took unusually long, as in a container with very many mount namespaces.
    """

    def __init__(self) -> None:
        self.comparison = 0.0
        self.slow = False
        self._rests_until = 0.0

    def looked(self, begin: float, links: int) -> None:
        """A look at so many links began at `begin` (time.monotonic)."""
        self.slow = is_slow(time.monotonic() - begin, links)

    def compared(self, begin: float, links: int) -> None:
        now = time.monotonic()
        self.comparison = now - begin
        self.looked(begin, links)
        self._rests_until = now + max(_REST_SECONDS, 10 * self.comparison)

    @property
    def rested(self) -> bool:
        """Whether the last comparison was long enough ago for one that only looks for room."""
        return time.monotonic() > self._rests_until


def is_slow(seconds: float, links: int) -> bool:
    """Whether it took unusually long to look at so many links: a collection must not wait until its
    barrier gives up."""
    return seconds > min(max(_SLOW_SECONDS, links * _SLOW_SECONDS_EACH), _SLOWEST_SECONDS)
