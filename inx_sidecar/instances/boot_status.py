"""An instance is `starting` until its system is up: until /run/current-system exists inside.

The activation of NixOS makes that link at its end, and `incus exec` finds commands through it. No
system is waited for without end.
"""

import asyncio
from typing import Final

from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.instances.status_text import (
    former_text,
    incomplete_text,
    late_text,
    shown_text,
)
from inx_sidecar.instances.system_watch import SystemWatch

_SECONDS: Final = 120.0
# The subjects of notes in the status.
_FORMER: Final = "former systems"
_INCOMPLETE: Final = "incomplete"


class BootStatus:
    """Watches the system of each instance by `systems`, and ends its status `starting`, with one
    write."""

    def __init__(self, statuses: StatusWriter, systems: SystemWatch) -> None:
        self._statuses = statuses
        self._systems = systems
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def begin(self, instance: Instance, *, ran: bool = False) -> None:
        """`instance` boots a system now; with `ran`, it has done so before this sidecar began."""
        self._stop_timer(instance.uuid)
        self._systems.begin(instance, ran=ran)
        running = Running.load(instance.uuid)
        self._tell_of_own_store(instance, running)
        if running is not None and running.boot_text:
            loop = asyncio.get_running_loop()
            self._timers[instance.uuid] = loop.call_later(_SECONDS, self._is_late, instance)

    def stopped(self, instance: Instance) -> None:
        """`instance` does not run any more."""
        self.end(instance.uuid)
        self._tell_of_own_store(instance, None)

    def _tell_of_own_store(self, instance: Instance, running: Running | None) -> None:
        """Let the status tell, until the stop, what the start leaves to root inside."""
        former, incomplete = (running.former, running.incomplete) if running else (0, 0)
        self._statuses.set_note(instance, _FORMER, former_text(former))
        self._statuses.set_note(instance, _INCOMPLETE, incomplete_text(incomplete))

    def end(self, uuid: str) -> None:
        """Watch the instance no longer."""
        self._systems.end(uuid)
        self._stop_timer(uuid)

    def _stop_timer(self, uuid: str) -> None:
        timer = self._timers.pop(uuid, None)
        if timer is not None:
            timer.cancel()

    async def close(self) -> None:
        for uuid in list(self._timers):
            self._stop_timer(uuid)
        await self._systems.close()

    def is_up(self, instance: Instance) -> None:
        """The system inside is up: from now on, the status says what the start gave."""
        running = Running.load(instance.uuid)
        if running is not None and running.boot_text:
            self._stop_timer(instance.uuid)
            self._change(instance, running.boot_text, "")

    def _is_late(self, instance: Instance) -> None:
        self._timers.pop(instance.uuid, None)
        running = Running.load(instance.uuid)
        if running is not None and running.boot_text:
            self._change(instance, running.boot_text, late_text(instance.name, _SECONDS))

    def _change(self, instance: Instance, before: str, after: str) -> None:
        """The status of an update that builds meanwhile stays."""
        Running.amend(instance.uuid, boot_text=after)
        running = Running.load(instance.uuid)
        if running is not None:
            self._statuses.replace_text(instance, before, shown_text(running), running.update)
