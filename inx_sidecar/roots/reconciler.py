"""Keep the GC roots of all instances equal to what the instances name.

`sync` compares everything with what exists, so that a lost event, or a crash at any point, heals.
Roots are added first. Roots are dropped only if Incus says which instances there are, Incus is not
making one, and every copy and snapshot has been read: it may name what another instance drops.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.config import settings
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.links.registration_copy import import_registrations
from inx_sidecar.links.resolver import InitProcess
from inx_sidecar.nix.daemon import NixDaemon
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.comparison import Outcome, compare_running
from inx_sidecar.roots.comparison_errors import ComparisonErrors
from inx_sidecar.roots.comparison_turns import ComparisonTurns
from inx_sidecar.roots.deleted_instances import DeletedInstances
from inx_sidecar.roots.initial_roots import InitialRoots
from inx_sidecar.roots.inventory import Inventory, ListedInstance, take_inventory
from inx_sidecar.roots.link_roots import LINKS
from inx_sidecar.roots.mirror import Mirror
from inx_sidecar.roots.missing_paths import MissingPaths
from inx_sidecar.roots.registration_watch import RegistrationWatch
from inx_sidecar.roots.repeat_temp_roots import repeat_temp_roots
from inx_sidecar.roots.stopped_instances import StoppedInstances

_AT_ONCE: Final = 8
# What an instance links is compared longer than that only in the background: nothing waits for it.
_PATIENCE_SECONDS: Final = 5.0
# The subject of notes in the status.
_ROOTS: Final = "roots"

log = logging.getLogger(__name__)


class RootReconciler:
    """`forget` is called with the uuid of each instance that was deleted; `daemon_of` gives the Nix
    daemon of an instance; `settle` returns when what was activated inside by now has its roots."""

    def __init__(
        self,
        gc: GcClient,
        statuses: StatusWriter,
        forget: Callable[[str], Awaitable[None]],
        daemon_of: Callable[[str], NixDaemon],
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        self._gc = gc
        self._statuses = statuses
        self._forget_instance = forget
        self._deleted = DeletedInstances(self._forget, lambda: self.compare_soon())
        self._daemon_of = daemon_of
        self._settle = settle
        # For an instance that `arrived`: Incus tells of a move before it has ended.
        self.on_arrival: Callable[[str, str], None] = lambda _project, _name: None
        self._instances: dict[str, Instance] = {}
        self._watch = RegistrationWatch(self._add_registered)
        self._complaints = ComparisonErrors(self._show_complaint)
        self._initial = InitialRoots(gc, self._complaints, self._runs)
        self._stopped = StoppedInstances(gc)
        self._missing = MissingPaths(gc, statuses)
        self._tasks: set[asyncio.Task[None]] = set()
        # First comparisons of instances that have just started, with their uuids.
        self._imports: dict[asyncio.Task[None], str] = {}
        # By uuid: comparisons that run. Nothing waits for one that takes long, or for an instance
        # with a file system that does not answer.
        self._apart: dict[str, asyncio.Task[None]] = {}
        self._turns = ComparisonTurns(
            self._compare_all,
            lambda: any(mirror.resolver.incomplete for mirror in self._watch.mirrors),
        )
        self.compare_soon = self._turns.compare_soon
        self.sync = self._turns.sync
        self.keep_comparing = self._turns.keep_comparing

    def open(self) -> None:
        """Begin to watch; before any other call."""
        self._watch.open()
        for directory in (paths.INCUS_CONTAINERS, paths.INCUS_SNAPSHOTS):
            self._watch.watch_directory(directory, self.compare_soon)

    def awaits(self, project: str, name: str) -> bool:
        """Whether roots wait for a change of this instance, which another member has."""
        return self._deleted.moved.awaits(project, name)

    def begin(self) -> None:
        """Called once the instances that run are known."""
        running = {(mirror.lxc_name, mirror.uuid) for mirror in self._watch.mirrors}
        task = asyncio.create_task(repeat_temp_roots(self._gc, running))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def instance_started(self, instance: Instance, running: Running) -> None:
        """From now on the links of the instance are mirrored."""
        self._instances[instance.uuid] = instance
        process = InitProcess(running.pid, running.started)
        self._watch.begin(
            Mirror(
                instance.lxc_name, instance.uuid, instance.rootfs, process, settings.max_roots(),
                self._gc, self._daemon_of(instance.uuid),
            )
        )  # fmt: skip
        task = asyncio.create_task(self._import_registrations(instance))
        self._imports[task] = instance.uuid
        task.add_done_callback(self._imports.pop)

    async def instance_stopped(self, instance: Instance) -> None:
        """Root what was registered last; it is looked up in the root file system."""
        self._watch.end(instance.uuid)
        self._missing.end(instance.uuid)
        self._instances.pop(instance.uuid, None)
        await self._stopped.add_registered(instance.lxc_name, instance.uuid, instance.rootfs)

    async def drain(self) -> str:
        """Return when all that is registered, or activated inside, by now is rooted."""
        await self._settle()
        await self._watch.drain()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._watch.wait_for(self._imports.items())
        await self._gc.add_temp_roots()
        return ""

    async def close(self) -> None:
        tasks: list[asyncio.Task[Any]] = [*self._tasks, *self._imports, *self._apart.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._turns.close()
        await self._deleted.close()
        await self._missing.close()
        await self._watch.close()
        self._gc.close()

    async def _compare_all(self) -> Outcome:
        self._complaints.begin_comparison()
        await self.drain()
        inventory = await take_inventory()
        reason = await self._initial.add(inventory)
        may_drop = inventory if not reason else None
        mirrors = self._watch.mirrors
        turns = asyncio.Semaphore(_AT_ONCE)

        async def compare(mirror: Mirror) -> None:
            if mirror.unresponsive or mirror.times.comparison > _PATIENCE_SECONDS:
                self._begin_apart(mirror, may_drop)
                return
            async with turns:
                apart = self._begin_apart(mirror, may_drop)
                done, _ = await asyncio.wait([apart], timeout=_PATIENCE_SECONDS)
                for task in done:
                    task.result()

        await asyncio.gather(*(compare(m) for m in mirrors if m.uuid not in self._apart))
        for item in inventory.instances:
            if item.arrived:
                self.on_arrival(*item.place)
            if item.ours and not self._runs(item):
                await self._stopped.compare(item, may_drop)
        if may_drop is not None:
            await self._deleted.remove(may_drop)
        # The complaints are read now: the next comparison may begin before the caller continues.
        return Outcome(len(mirrors), reason, self._complaints.first)

    def _begin_apart(self, mirror: Mirror, inventory: Inventory | None) -> asyncio.Task[None]:
        """Compare in a task of its own, so that the comparison of all need not wait for it."""
        task = asyncio.create_task(self._compare_one(mirror, inventory))
        self._apart[mirror.uuid] = task
        task.add_done_callback(lambda _: self._apart.pop(mirror.uuid))
        return task

    async def _compare_one(self, mirror: Mirror, inventory: Inventory | None) -> None:
        instance = self._instances.get(mirror.uuid)
        try:
            await compare_running(self._gc, mirror, instance, inventory)
            if instance is not None and self._watch.get(mirror.uuid) is mirror:
                self._missing.compared(instance, mirror)
        except InstanceError as error:
            log.debug("%s", error)  # the container ended meanwhile
        except (InxError, OSError) as error:
            self._complaints.add(mirror.uuid, mirror.lxc_name, error)
        else:
            mirror.problem = ""
        self._show_status(mirror)

    async def _add_registered(self, mirror: Mirror, names: set[str], list_all: bool) -> None:
        was_incomplete = mirror.resolver.incomplete
        try:
            await mirror.add_registered(names | await mirror.changed() if list_all else names)
        except InstanceError as error:
            log.debug("%s", error)  # the container ended: its hook stop looks again
        except (InxError, OSError) as error:
            self._complaints.add(mirror.uuid, mirror.lxc_name, error)
            self.compare_soon()
        except Exception:
            instance_log(mirror.lxc_name).exception("adding roots ended in a bug")
        # A comparison looks again at what does not answer, and is then repeated every few seconds
        # by itself: further registrations of that instance must not cause comparisons of all.
        became_incomplete = mirror.resolver.incomplete and not was_incomplete
        if became_incomplete or mirror.may_gain_room():
            self.compare_soon()
        self._show_status(mirror)

    async def _import_registrations(self, instance: Instance) -> None:
        """An instance that was copied or restored brings registered paths in its root file
        system."""
        mirror = self._watch.get(instance.uuid)
        owner = instance.lxc_name, instance.uuid
        try:
            # A store of its own has a collector of its own, whose registrations these are.
            if not instance.own:
                await import_registrations(instance.rootfs, *owner, settings.max_roots())
            if mirror is not None:
                await mirror.compare(None)
                mirror.imported = True
                self._missing.ready(instance.uuid)
            direct_roots.make_directory(*owner, LINKS)
        except (InxError, OSError) as error:
            instance_log(instance.lxc_name).error("%s", error)
        if mirror is not None:
            self._show_status(mirror)
        self.compare_soon()

    async def _forget(self, uuid: str) -> None:
        await self._forget_instance(uuid)
        self._stopped.forget(uuid)

    def _show_complaint(self, uuid: str, text: str) -> None:
        mirror = self._watch.get(uuid)
        if mirror is not None:
            mirror.problem = text
            self._show_status(mirror)

    def _show_status(self, mirror: Mirror) -> None:
        instance = self._instances.get(mirror.uuid)
        if instance is not None:
            self._statuses.set_note(instance, _ROOTS, mirror.status())

    def _runs(self, item: ListedInstance) -> bool:
        mirror = self._watch.get(item.uuid)
        return mirror is not None and mirror.lxc_name == item.lxc_name
