"""Follow Incus' events: an instance whose configuration may have changed is updated.

An event only says which instance to look at; one task at a time looks at an instance.
"""

import asyncio
import functools
import logging
from collections.abc import Mapping
from typing import Any, Final

from inx_sidecar.base.errors import ConfigError, InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.config.keys import asked_for, configured
from inx_sidecar.config.settings import Settings, load_settings
from inx_sidecar.incus import api as incus
from inx_sidecar.incus import members
from inx_sidecar.incus.events import Event, listen
from inx_sidecar.incus.instance import Instance, LxcFacts, parse_instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status_keys import ELSEWHERE
from inx_sidecar.incus.update_key import PENDING
from inx_sidecar.instances.event_effects import ALL, Key, affected_by, changed_in_cluster
from inx_sidecar.instances.lifecycle import Lifecycle
from inx_sidecar.instances.missing_hooks import (
    lacks_hooks,
    may_use_inx,
    problem_of,
    shipped_raw_lxc,
    was_told,
)
from inx_sidecar.instances.retries import BURST_SECONDS, Pace, Repeats, Retries
from inx_sidecar.instances.rollout import Rollouts, Turn, order_of
from inx_sidecar.instances.stopped_status import is_failed

# After so many seconds without an event all instances are looked at: an event may have been lost.
_QUIET_SECONDS: Final = 600.0
# A connection that was lost is tried again after these delays; after the first one again if it
# lasted longer than the last one.
_FIRST_DELAY: Final = 0.2
_LAST_DELAY: Final = 30.0

# A move tells its event before it ends.
_AFTER_MOVE_SECONDS: Final = (1.0, 5.0, 20.0)
# A look at all instances for which some wait is tried again after so long.
_RETRY_SECONDS: Final = 5.0
_POWER: Final = "volatile.last_state.power"

log = logging.getLogger(__name__)


class ConfigWatch:
    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._changed: set[Key] = set()
        # What Incus has listed of an instance, as long as no event tells that it was changed since
        # the list was asked for. `_told` has the instances that events were about since then.
        self._listed: dict[Key, Mapping[str, Any]] = {}
        self._told: set[Key] = set()
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        # Instances that have just stopped, and nobody had asked Incus for that.
        self._ended: set[Key] = set()
        # The last error of each instance: the same error is logged once.
        self._logged: dict[Key, str] = {}
        self._retries = Retries()
        self._repeats = Repeats()
        self._pace_of_all = Pace()
        self._rollouts = Rollouts()
        self._member = ""
        lifecycle.reconciler.on_arrival = self._look_at

    async def follow(self) -> None:
        """Follow events until this task is cancelled."""
        delay = _FIRST_DELAY
        loop = asyncio.get_running_loop()
        while True:
            begin = loop.time()
            try:
                async for event in listen(_QUIET_SECONDS):
                    self._tell_cluster(event)
                    if event is not None and self._lifecycle.reconciler.awaits(*event.place):
                        self._lifecycle.reconciler.compare_soon()
                    elsewhere = self._lifecycle.cluster.placement.may_tell
                    key = affected_by(event, self._member, elsewhere)
                    if key is not None:
                        if event is not None and event.by_itself:
                            self._ended.add(key)
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

    def _tell_cluster(self, event: Event | None) -> None:
        """Let the members of the cluster be looked at, if they or networks may have changed."""
        what = changed_in_cluster(event)
        if what is not None:
            self._lifecycle.cluster.look_soon(what)
        elif event is not None and event.action.startswith("network-"):
            self._lifecycle.cluster.networks_changed()
        elif event is not None and event.action == "instance-migrated":
            if self._lifecycle.cluster.placement.looks_after_others:
                for seconds in _AFTER_MOVE_SECONDS:
                    loop = asyncio.get_running_loop()
                    loop.call_later(seconds, self._look_at, event.project, event.name)

    def _look_at(self, project: str, name: str) -> None:
        key = project, name
        self._changed.add(key)
        self._told.add(key)
        self._listed.pop(key, None)
        if key not in self._tasks:
            self._tasks[key] = task = asyncio.create_task(self._look_while_changed(*key))
            task.add_done_callback(lambda _: self._tasks.pop(key))

    async def _look_while_changed(self, project: str, name: str) -> None:
        while (project, name) in self._changed:
            await asyncio.sleep(self._pause_before(project, name))
            self._changed.discard((project, name))
            try:
                if (project, name) == ALL:
                    await self._look_at_all()
                else:
                    await self._update(project, name)
            except InxError as error:
                instance_log(name).debug("%s", error)  # in most cases the instance was deleted
                if (project, name) == ALL and self._rollouts.waiting:
                    asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._look_at, *ALL)
            except Exception:
                instance_log(name).exception("looking at it ended in a bug")

    def _pause_before(self, project: str, name: str) -> float:
        if (project, name) != ALL:
            return BURST_SECONDS
        return self._pace_of_all.next_pause(asyncio.get_running_loop().time())

    async def _look_at_all(self) -> None:
        """Ask Incus once for all instances of this host."""
        self._member = await members.this_member()
        wanted = shipped_raw_lxc()
        self._told.clear()
        listed = await members.list_own_instances()
        running: dict[Key, Instance] = {}
        for api in listed:
            may_lack = may_use_inx(api) and (lacks_hooks(api, wanted) or was_told(api))
            # A later change of a failed one is found by what it is now.
            text = api["expanded_config"].get("user.inx.status", "")
            is_past = text.startswith((*PENDING, ELSEWHERE)) or is_failed(text)
            key = api["project"], api["name"]
            instance = running_instance(api)
            if instance is not None:
                running[key] = instance
            if may_lack or is_past or instance is not None:
                is_newest = key not in self._told
                self._look_at(*key)
                if is_newest:
                    self._listed[key] = api
        self._rollouts.expect(
            {key: (order_of(item.config), wish_of(item)) for key, item in running.items()},
            *_limits(),
        )

    async def _update(self, project: str, name: str) -> None:
        turn = self._rollouts.take((project, name))
        try:
            await self._update_in_turn(project, name, turn)
        finally:
            if turn is not None and not turn.taken:
                turn.end()

    async def _update_in_turn(self, project: str, name: str, turn: Turn | None) -> None:
        key = project, name
        by_itself = key in self._ended
        self._ended.discard(key)
        api = self._listed.pop(key, None) or await incus.get_instance(*key)
        if not members.is_here(api, self._member):
            await self._lifecycle.cluster.placement.tell(api)
            return
        instance = running_instance(api)
        if instance is None:
            self._logged.pop(key, "")
            self._retries.succeeded(key)
            self._repeats.forget(key)
            self._rollouts.forget(key)
            await self._look_at_stopped(api, by_itself=by_itself)
            return
        look_again = functools.partial(self._look_at, project, name)
        if turn is None and self._repeats.must_wait(key, seen_in(instance), look_again):
            return
        wish = wish_of(instance)
        self._rollouts.of(project).notice(order_of(instance.config), *_limits())
        if self._rollouts.must_wait_for_all(key, api, turn):
            self._look_at(*ALL)
            return
        if self._retries.must_wait(key, wish):
            return
        logged = self._logged.pop(key, "")
        try:
            await self._lifecycle.update(instance, turn)
        except InxError as error:
            if turn is not None and not turn.taken:
                turn.end(failed=True)
            self._logged[key] = str(error)
            if logged != str(error):
                instance_log(instance.lxc_name).error("%s", error)
            if not isinstance(error, ConfigError):
                self._retries.failed(key, wish, error, look_again)
                return
        self._retries.succeeded(key)

    async def _look_at_stopped(self, api: Mapping[str, Any], *, by_itself: bool) -> None:
        """Let the status say what the next start will not get over, and that PID 1 has ended."""
        if not may_use_inx(api):
            return
        # When Incus itself shuts down, it stops its instances without a requestor, and notes that
        # they ran (incus cmd/incusd/instances.go, instancesShutdown).
        by_itself = by_itself and api["expanded_config"].get(_POWER) != "RUNNING"
        wanted, problem = shipped_raw_lxc(), ""
        has_hooks = not lacks_hooks(api, wanted)
        if not has_hooks:
            problem = problem_of(api, await incus.list_profiles(), wanted)
        instance = parse_instance(api, LxcFacts("", "", ""))
        if running_instance(api) is None:  # it may have been started meanwhile
            self._lifecycle.tell_stopped(
                instance, problem, has_hooks=has_hooks, by_itself=by_itself
            )


def _limits() -> tuple[int, int]:
    """The settings max_failures and max_builds. Settings that are wrong fail each update by
    themselves."""
    try:
        settings = load_settings()
    except ConfigError:
        settings = Settings()
    return settings.max_failures, settings.max_builds


def wish_of(instance: Instance) -> object:
    """What `instance` is asked to be, and which start of it."""
    running = Running.load(instance.uuid)
    return asked_for(instance.config), running.started if running is not None else 0


def seen_in(instance: Instance) -> object:
    """All that `instance` is configured to be, and which start of it: without what inx and Incus
    write."""
    running = Running.load(instance.uuid)
    return configured(instance.config), running.started if running is not None else 0


def running_instance(api: Mapping[str, Any]) -> Instance | None:
    """The instance that Incus describes by `api`, if it runs with inx."""
    running = Running.load(api["expanded_config"].get("volatile.uuid", ""))
    if running is None:
        return None
    instance = running.as_started(parse_instance(api, running.facts))
    # An import may have the uuid of an instance that runs.
    return instance if instance.lxc_name == running.facts.lxc_name else None
