"""Follow Incus' events: an instance whose configuration may have changed is updated.

An event only says which instance to look at; one task at a time looks at an instance.
"""

import asyncio
import functools
import logging
import os
from collections.abc import Mapping
from typing import Any, Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import ConfigError, InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.config.keys import asked_for
from inx_sidecar.incus import api as incus
from inx_sidecar.incus import members
from inx_sidecar.incus.events import Event, listen
from inx_sidecar.incus.instance import Instance, parse_instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances.lifecycle import Lifecycle
from inx_sidecar.instances.retries import BURST_SECONDS, Pace, Retries

# After so many seconds without an event all instances are looked at: an event may have been lost.
_QUIET_SECONDS: Final = 600.0
# A connection that was lost is tried again after these delays; after the first one again if it
# lasted longer than the last one.
_FIRST_DELAY: Final = 0.2
_LAST_DELAY: Final = 30.0

# Project and name of an instance.
_Key = tuple[str, str]
_ALL: Final[_Key] = ("", "")
# A start reads backup.yaml. On a restart, Incus writes that file from what it knew when the restart
# was requested, so the configuration can be newer. So each start is followed by a look.
_CHANGES: Final = ("instance-updated", "instance-started", "instance-restarted")

log = logging.getLogger(__name__)


class ConfigWatch:
    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._changed: set[_Key] = set()
        self._tasks: dict[_Key, asyncio.Task[None]] = {}
        # The last error of each instance: the same error is logged once.
        self._logged: dict[_Key, str] = {}
        self._retries = Retries()
        self._pace_of_all = Pace()
        self._member = ""

    async def follow(self) -> None:
        """Follow events until this task is cancelled."""
        delay = _FIRST_DELAY
        loop = asyncio.get_running_loop()
        while True:
            begin = loop.time()
            try:
                async for event in listen(_QUIET_SECONDS):
                    key = affected_by(event, self._member)
                    if key is not None:
                        self._look_at(*key)
            except InxError as error:
                log.debug("%s", error)
            except Exception:
                log.exception("following Incus' events ended in a bug")
            if loop.time() - begin > _LAST_DELAY:
                delay = _FIRST_DELAY
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_DELAY)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _look_at(self, project: str, name: str) -> None:
        key = project, name
        self._changed.add(key)
        if key not in self._tasks:
            self._tasks[key] = task = asyncio.create_task(self._look_while_changed(*key))
            task.add_done_callback(lambda _: self._tasks.pop(key))

    async def _look_while_changed(self, project: str, name: str) -> None:
        while (project, name) in self._changed:
            await asyncio.sleep(self._pause_before(project, name))
            self._changed.discard((project, name))
            try:
                if (project, name) == _ALL:
                    await self._look_at_all()
                else:
                    await self._update(project, name)
            except incus.IncusError as error:
                instance_log(name).debug("%s", error)  # in most cases the instance was deleted
            except Exception:
                instance_log(name).exception("looking at it ended in a bug")

    def _pause_before(self, project: str, name: str) -> float:
        if (project, name) != _ALL:
            return BURST_SECONDS
        return self._pace_of_all.next_pause(asyncio.get_running_loop().time())

    async def _look_at_all(self) -> None:
        """Ask Incus once for all instances of this host, and only if one of ours runs."""
        self._member = await members.announce()
        if any(Running.load(uuid) for uuid in os.listdir(paths.RUN)):
            for api in await members.list_own_instances():
                if running_instance(api) is not None:
                    self._look_at(api["project"], api["name"])

    async def _update(self, project: str, name: str) -> None:
        key = project, name
        instance = running_instance(await incus.get_instance(*key))
        if instance is None:
            self._logged.pop(key, "")
            self._retries.succeeded(key)
            return
        wish = wish_of(instance)
        if self._retries.must_wait(key, wish):
            return
        logged = self._logged.pop(key, "")
        try:
            await self._lifecycle.update(instance)
        except InxError as error:
            self._logged[key] = str(error)
            if logged != str(error):
                instance_log(instance.lxc_name).error("%s", error)
            if not isinstance(error, ConfigError):
                look_again = functools.partial(self._look_at, project, name)
                self._retries.failed(key, wish, error, look_again)
                return
        self._retries.succeeded(key)


def affected_by(event: Event | None, member: str = "") -> _Key | None:
    """Project and name of the instance that `event` may have changed; two empty texts mean all
    instances, None means no instance. No event means that events may have been lost.

    `member` is the name of this host in its cluster, or "". Instances of other members tell events
    here as well.
    """
    if event is None or event.action.startswith(("profile-", "project-", "cluster-")):
        return _ALL
    if event.action in _CHANGES and members.may_be_here(event.location, member):
        return (event.project, event.name) if event.name else _ALL
    return None


def wish_of(instance: Instance) -> object:
    """What `instance` is asked to be, and which start of it."""
    running = Running.load(instance.uuid)
    return asked_for(instance.config), running.started if running is not None else 0


def running_instance(api: Mapping[str, Any]) -> Instance | None:
    """The instance that Incus describes by `api`, if it runs with inx."""
    running = Running.load(api["expanded_config"].get("volatile.uuid", ""))
    if running is None:
        return None
    instance = running.as_started(parse_instance(api, running.facts))
    # An import may have the uuid of an instance that runs.
    return instance if instance.lxc_name == running.facts.lxc_name else None
