"""Fetch what an instance names and this host lacks, as after a move, and tell what is lost.

A start never waits for it. An isolated container has not seen what it names beyond its systems: so
nothing is fetched for it. When all is done, a key of the instance tells the member of the cluster
that had it before, which keeps its roots until then (`moved_instances`).
"""

import asyncio
import logging
import time
from typing import Final

from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.builds.fetch import fetch
from inx_sidecar.config.settings import load_settings
from inx_sidecar.container import bootstrap
from inx_sidecar.incus import members
from inx_sidecar.incus.api import IncusError
from inx_sidecar.incus.arrival import RESTORED, was_elsewhere
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.links import indirect_roots
from inx_sidecar.nix import generations
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots.link_log import LinkLog, describe_root
from inx_sidecar.roots.link_roots import LINKS, parse_root_name
from inx_sidecar.roots.mirror import Mirror
from inx_sidecar.roots.missing_record import MissingRecord, after_fetch, roots_to_try
from inx_sidecar.roots.system_roots import add_system_roots, system_roots

# So many store paths are asked for by one program; then another instance has its turn.
_BATCH: Final = 20
_AT_ONCE: Final = 4
# A fetch that is done by then is not told.
_QUIET_SECONDS: Final = 3.0
# The subject of notes in the status.
_SUBJECT: Final = "missing"


class MissingPaths:
    def __init__(self, gc: GcClient, statuses: StatusWriter) -> None:
        self._gc = gc
        self._statuses = statuses
        # By uuid. One for each instance: a task that was cancelled stays until it has ended.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)
        # The instances of which all that they brought is registered by now.
        self._ready: set[str] = set()
        # Of the instances that run and were looked at since they started.
        self._records: dict[str, MissingRecord] = {}
        # Of these, the ones whose other members know, or are not to be told before the next start.
        self._told: set[str] = set()

    def ready(self, uuid: str) -> None:
        """What the instance brought in its root file system is registered, and was compared."""
        self._ready.add(uuid)

    def compared(self, instance: Instance, mirror: Mirror) -> None:
        """The links of `instance`, which runs, were compared by `mirror`.

        The first time after it has its system, look at what is missing; later, look whether
        something that was lost is there.
        """
        uuid = instance.uuid
        if uuid in self._tasks:
            return
        record = self._records.get(uuid)
        if record is None or uuid not in self._told:
            if uuid in self._ready and not _waits_for_system(uuid):
                self._tasks[uuid] = asyncio.create_task(self._run(instance, mirror))
        elif record.lost:
            self._keep(instance, record, record.without(_absent(instance, mirror)))

    def end(self, uuid: str) -> None:
        """The instance stops. What was not fetched by now is tried at its next start."""
        self._records.pop(uuid, None)
        self._told.discard(uuid)
        self._ready.discard(uuid)
        if uuid in self._tasks:
            self._tasks[uuid].cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, instance: Instance, mirror: Mirror) -> None:
        uuid, restored = instance.uuid, instance.config.get(RESTORED, "")
        try:
            member = await _this_member()
            if uuid not in self._records and not instance.isolated:
                await self._look(instance, mirror, restored, member or "")
            self._records.setdefault(uuid, MissingRecord(restored, time.time()))
            if member:
                self._statuses.tell_arrival(instance, member)
            if member is not None:  # else after the next comparison
                self._told.add(uuid)
        except (InxError, OSError) as error:
            instance_log(instance.lxc_name).error("what it names is not fetched: %s", error)
        except Exception:
            instance_log(instance.lxc_name).exception("fetching ended in a bug")
        else:
            return
        finally:
            del self._tasks[uuid]
        # Not again before the next start.
        self._records[uuid] = MissingRecord(restored, time.time())
        self._told.add(uuid)

    async def _look(self, instance: Instance, mirror: Mirror, restored: str, member: str) -> None:
        record = MissingRecord.load(instance.uuid)
        if was_elsewhere(member, instance.config):
            record = None  # it names what it got there, too
        absent = _absent(instance, mirror)
        tried = roots_to_try(record, absent, restored, time.time())
        if record is not None and record.restored == restored and not tried:
            self._keep(instance, record, record.without(absent))
            return
        wanted = sorted(set(tried.values()))
        reason = await self._fetch(instance, wanted)
        valid = valid_paths(wanted)
        if valid:
            await mirror.compare(None)
            present = generations.read(instance.rootfs, instance.name)
            await add_system_roots(self._gc, instance, present, None)
        self._tell(instance, tried, valid, reason)
        self._keep(instance, record, after_fetch(record, tried, valid, restored, time.time()))

    async def _fetch(self, instance: Instance, wanted: list[str]) -> str:
        """Fetch what there is; the first reason why not all of `wanted` came."""
        loop, reason = asyncio.get_running_loop(), ""
        text = f"fetching {len(wanted)} store paths that it names"
        timer = loop.call_later(_QUIET_SECONDS, self._show, instance, text)
        try:
            for batch in (wanted[at : at + _BATCH] for at in range(0, len(wanted), _BATCH)):
                async with self._turns:
                    failure = await fetch(instance.uuid, batch, load_settings())
                reason = reason or failure
        finally:
            timer.cancel()
        return reason

    def _keep(
        self, instance: Instance, before: MissingRecord | None, record: MissingRecord
    ) -> None:
        """Save the record if it is new, and show it."""
        self._records[instance.uuid] = record
        if record != before:
            record.save(instance.uuid)
        self._show(instance, record.text(instance.lxc_name))

    def _show(self, instance: Instance, text: str) -> None:
        self._statuses.set_note(instance, _SUBJECT, text)

    def _tell(
        self, instance: Instance, tried: dict[str, str], valid: frozenset[str], reason: str
    ) -> None:
        """Log the name of each path that came, and of each one that is lost."""
        names = {parse_root_name(root)[0] for root in tried if root.startswith(LINKS)}
        texts = indirect_roots.read(instance.uuid, names)
        log = LinkLog(instance.lxc_name)

        def line(root: str) -> str:
            named = describe_root(root, texts) if root.startswith(LINKS) else root
            return f"{named} -> {tried[root]}"

        log.lines(f"fetched: {line(root)}" for root, path in tried.items() if path in valid)
        log.lines(
            (f"lost: {line(root)}" for root, path in tried.items() if path not in valid),
            logging.ERROR,
        )
        if reason and not valid.issuperset(tried.values()):
            log.journal.error("what is lost was not fetched: %s", reason)


async def _this_member() -> str | None:
    """None if Incus does not tell."""
    try:
        return await members.this_member()
    except IncusError:
        return None


def _waits_for_system(uuid: str) -> bool:
    """Its build may fetch or make what is missing."""
    try:
        return bootstrap.is_waiting(uuid)
    except FileNotFoundError:
        return True  # it stops


def _absent(instance: Instance, mirror: Mirror) -> dict[str, str]:
    """The roots of generations and of links that cannot be made, as their store paths are not
    here, generations first."""
    named = system_roots(generations.read(instance.rootfs, instance.name))
    valid = valid_paths(named.values())
    systems = {root: path for root, path in named.items() if path not in valid}
    return {**systems, **mirror.absent}
