"""Start, stop and kill units of systemd, over a connection that is kept.

Each process of systemctl costs about ten milliseconds of processor time, and the start and the stop
of an instance change units. If the bus cannot be used, or systemd does not do what it is asked for,
systemctl is run: it needs no bus, and says what is wrong.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.base.process import run
from inx_sidecar.base.systemd_bus import BusError, NoUnitError, SystemdBus

# A bus that does not answer is left alone so long: each change would wait for it.
_PAUSE_SECONDS: Final = 60.0
_KILL: Final = 9

log = logging.getLogger(__name__)


class Units:
    """UnsupportedError, with the text of systemctl, if a unit cannot be changed."""

    def __init__(self) -> None:
        self._bus: SystemdBus | None = None
        self._opening = asyncio.Lock()
        self._not_before = 0.0

    async def start(self, unit: str) -> None:
        await self._do(lambda bus: bus.run_job("StartUnit", unit), "start", unit)

    async def stop(self, *units: str) -> None:
        """Stop `units`, one after the other; one that is not loaded costs one question."""

        async def stop(bus: SystemdBus) -> None:
            for unit in units:
                if await bus.is_loaded(unit):
                    await bus.run_job("StopUnit", unit)

        await self._do(stop, "stop", *units)

    async def kill(self, unit: str) -> None:
        """Kill every process of `unit`; one that is not loaded has none."""

        async def kill(bus: SystemdBus) -> None:
            with contextlib.suppress(NoUnitError):
                await bus.call("KillUnit", "ssi", unit, "all", _KILL)

        await self._do(kill, "kill", "--signal=KILL", unit)

    async def _do(self, by_bus: Callable[[SystemdBus], Awaitable[object]], *arguments: str) -> None:
        try:
            await by_bus(await self._opened())
        except BusError as error:
            log.debug("systemctl is run: %s", error)
        else:
            return
        verb, *rest = arguments
        # Not --quiet: it would hide that a job has failed, and where the reason is told.
        done = await run(["systemctl", verb, *rest])
        if done.status:
            output = " ".join(done.output.splitlines())
            raise UnsupportedError(f"'{done.command}' failed: {output}")

    async def _opened(self) -> SystemdBus:
        async with self._opening:
            if self._bus is not None and not self._bus.is_closed:
                return self._bus
            if time.monotonic() < self._not_before:
                raise BusError("the bus did not answer")
            # Until it has answered.
            self._not_before = time.monotonic() + _PAUSE_SECONDS
            self._bus = await SystemdBus.open()
            self._not_before = 0.0
            return self._bus
