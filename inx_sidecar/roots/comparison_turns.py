"""When all roots are compared: after each change, on request, and again while something is missing.

One comparison of everything runs at a time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from inx_sidecar.base.errors import InxError, RootError
from inx_sidecar.roots.comparison import Outcome

_PERIOD_SECONDS: Final = 600.0
_BURST_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 5.0
_LONGEST_RETRY_SECONDS: Final = 15.0
_LONGEST_SECONDS: Final = 60.0

log = logging.getLogger(__name__)


class ComparisonTurns:
    """`compare_all` compares everything; `is_silent` says whether a file system of an instance does
    not answer."""

    def __init__(
        self, compare_all: Callable[[], Awaitable[Outcome]], is_silent: Callable[[], bool]
    ) -> None:
        self._compare_all = compare_all
        self._is_silent = is_silent
        self._wake = asyncio.Event()
        self._comparing = asyncio.Lock()
        self._next: asyncio.Task[Outcome] | None = None

    def compare_soon(self) -> None:
        """Called when an instance came, went or changed."""
        self._wake.set()

    async def sync(self) -> str:
        """Compare everything; one line on what exists then. RootError if not all was compared."""
        try:
            outcome = await self._compare_next()
        except OSError as error:
            self.compare_soon()
            raise RootError(f"cannot compare all roots: {error}") from None
        except InxError:
            self.compare_soon()
            raise
        if outcome.incomplete:
            self.compare_soon()
        if outcome.complaint:
            raise RootError(outcome.complaint)
        return str(outcome)

    async def keep_comparing(self) -> None:
        """Compare everything after each change and every ten minutes, until cancelled; sooner if
        something is missing, but ever later while nothing changes, or while a file system does not
        answer."""
        silence = retry = _RETRY_SECONDS
        while True:
            seconds = retry
            retry = min(retry * 2, _LONGEST_RETRY_SECONDS)
            try:
                outcome = await self._compare_next()
                silent = self._is_silent()
                silence = min(silence * 2, _LONGEST_SECONDS) if silent else _RETRY_SECONDS
                if not outcome.incomplete:
                    seconds = silence if silent else _PERIOD_SECONDS
                    retry = _RETRY_SECONDS
            except (InxError, OSError) as error:
                log.error("cannot compare all roots: %s", error)
            except Exception:
                log.exception("comparing roots ended in a bug")
            try:
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
                retry = _RETRY_SECONDS
                await asyncio.sleep(_BURST_SECONDS)  # changes come in bursts
            except TimeoutError:
                pass
            self._wake.clear()

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)

    async def _compare_next(self) -> Outcome:
        """Wait for a comparison that begins after this call: one that runs may have passed what the
        caller asks about."""
        if self._next is None:
            self._next = asyncio.create_task(self._compare_in_turn())
        return await asyncio.shield(self._next)

    async def _compare_in_turn(self) -> Outcome:
        async with self._comparing:
            self._next = None
            return await self._compare_all()
