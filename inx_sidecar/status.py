"""`user.inx.status*` of instances, kept true through the API: the latest wish wins.

Written only when it differs from what Incus has, and never by a hook: an instance that starts is
busy, so a refused write is tried again, ever more slowly, until it succeeds or nobody is there.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from inx_sidecar import incus
from inx_sidecar.errors import one_line
from inx_sidecar.instance import Instance

_KEYS: Final = ("user.inx.status", "user.inx.status.system", "user.inx.status.generation")
_FIRST_DELAY: Final = 0.1
_LAST_DELAY: Final = 5.0
_GIVE_UP_SECONDS: Final = 900.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """One line on the state, and the system and generation that it is about."""

    text: str
    system: str = ""
    generation: int | None = None

    def config(self) -> dict[str, str]:
        number = "" if self.generation is None else str(self.generation)
        return dict(zip(_KEYS, (one_line(self.text)[:400], self.system, number), strict=True))


class Reporter:
    """Writes one status per instance at a time, in the background."""

    def __init__(self) -> None:
        self._wanted: dict[str, tuple[Instance, dict[str, str]]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._last: dict[str, dict[str, str]] = {}

    def learn(self, instance: Instance) -> None:
        """`instance` has just been read: Incus holds what its configuration says."""
        if instance.uuid not in self._tasks:
            self._last[instance.uuid] = {key: instance.config.get(key, "") for key in _KEYS}

    def report(self, instance: Instance, status: Status) -> None:
        uuid = instance.uuid
        config = status.config()
        if self._last.get(uuid) == config:
            return
        self._last[uuid] = config
        self._wanted[uuid] = (instance, config)
        if uuid not in self._tasks:
            self._tasks[uuid] = asyncio.create_task(self._write(uuid))

    async def _write(self, uuid: str) -> None:
        delay, waited = _FIRST_DELAY, 0.0
        try:
            while uuid in self._wanted:
                instance, config = self._wanted.pop(uuid)
                try:
                    await incus.set_config(instance.project, instance.name, config)
                    delay = _FIRST_DELAY
                except incus.IncusError as error:
                    if error.code == 404 or waited > _GIVE_UP_SECONDS:
                        log.debug("%s: no status: %s", instance.lxc_name, error)
                        continue
                    self._wanted.setdefault(uuid, (instance, config))
                    await asyncio.sleep(delay)
                    waited += delay
                    delay = min(delay * 2, _LAST_DELAY)
        finally:
            del self._tasks[uuid]
