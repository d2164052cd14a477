"""Hear from Incus what changed, and have it looked at: each instance by one task at a time."""

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any, Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import ConfigError, InxError
from inx_sidecar.base.journal import about
from inx_sidecar.incus import api as incus
from inx_sidecar.incus.events import listen
from inx_sidecar.incus.instance import Instance, instance_of
from inx_sidecar.incus.running import Running
from inx_sidecar.instances.lifecycle import Lifecycle

# Lost events heal after so long; a connection that was lost is tried again after these times.
_QUIET_SECONDS: Final = 600.0
_FIRST_DELAY: Final = 0.2
_LAST_DELAY: Final = 30.0
# What kept us from deciding, and is no fault of the configuration, may pass.
_AGAIN_SECONDS: Final = 10.0
# Changes come in bursts, and often before a restart, which looks by itself.
_SETTLE_SECONDS: Final = 0.3

_ALL: Final = ("", "")
# After a start what Incus holds may not be what it has said at the start: it writes backup.yaml
# from what it knew when a restart was asked for.
_CHANGES: Final = ("instance-updated", "instance-started", "instance-restarted")

log = logging.getLogger(__name__)


class Follower:
    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        # By project and name: what to look at again, and who does.
        self._changed: set[tuple[str, str]] = set()
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        # What was said of it last, not to repeat it each time.
        self._said: dict[tuple[str, str], str] = {}

    async def follow(self) -> None:
        """Forever."""
        delay = _FIRST_DELAY
        while True:
            try:
                async for event in listen(_QUIET_SECONDS):
                    delay = _FIRST_DELAY
                    if event is None or event.action.startswith(("profile-", "project-")):
                        self._look_at(*_ALL)
                    elif event.action in _CHANGES:
                        self._look_at(event.project, event.name)
            except InxError as error:
                log.debug("%s", error)
            except Exception:
                log.exception("following Incus' events ended in a bug")
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_DELAY)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _look_at_all(self) -> None:
        """Incus is asked once for all, and only if some run that it may concern."""
        if any(Running.load(uuid) for uuid in os.listdir(paths.RUN)):
            for api in await incus.instances():
                if _running(api) is not None:
                    self._look_at(api["project"], api["name"])

    def _look_at(self, project: str, name: str) -> None:
        key = project, name
        self._changed.add(key)
        if key not in self._tasks:
            self._tasks[key] = task = asyncio.create_task(self._look(*key))
            task.add_done_callback(lambda _: self._tasks.pop(key))

    async def _look(self, project: str, name: str) -> None:
        while (project, name) in self._changed:
            await asyncio.sleep(_SETTLE_SECONDS)
            self._changed.discard((project, name))
            try:
                await self._look_once(project, name)
            except incus.IncusError as error:
                about(name).debug("%s", error)  # deleted, as a rule
            except Exception:
                about(name).exception("looking at it ended in a bug")

    async def _look_once(self, project: str, name: str) -> None:
        if (project, name) == _ALL:
            await self._look_at_all()
            return
        said = self._said.pop((project, name), "")
        found = _running(await incus.instance(project, name))
        if found is None:
            return
        try:
            await self._lifecycle.update(found)
        except InxError as error:
            self._said[project, name] = str(error)
            if said != str(error):
                about(found.lxc_name).error("%s", error)
            if not isinstance(error, ConfigError):
                loop = asyncio.get_running_loop()
                loop.call_later(_AGAIN_SECONDS, self._look_at, project, name)


def _running(api: Mapping[str, Any]) -> Instance | None:
    """The instance, if it runs with inx."""
    running = Running.load(api["expanded_config"].get("volatile.uuid", ""))
    if running is None:
        return None
    found = running.as_started(instance_of(api, running.facts))
    return found if found.lxc_name == running.facts.lxc_name else None
