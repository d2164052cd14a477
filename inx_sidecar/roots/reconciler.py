"""The GC roots of all instances: those that run, are stopped, were copied, renamed or deleted.

`sync` compares everything with what is there, so that a lost event or a crash at any point heals.
Roots are added first. They are dropped only if Incus says which instances there are, is not busy
with one, and every copy and snapshot has been seen: it may name what another instance lets go.
"""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, InxError, RootError
from inx_sidecar.base.journal import about
from inx_sidecar.config import settings
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.kernel.syscalls import opened
from inx_sidecar.links import indirect_roots
from inx_sidecar.links.resolver import Process
from inx_sidecar.nix import generations
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots, inventory, snapshot_roots, system_roots
from inx_sidecar.roots.inventory import Comparison, Inventory, ListedInstance
from inx_sidecar.roots.mirror import LINKS, Mirror
from inx_sidecar.roots.offline_roots import offline_roots
from inx_sidecar.roots.watch import Watch

_PERIOD_SECONDS: Final = 600.0
_SOON_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 5.0
_AT_ONCE: Final = 8
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

log = logging.getLogger(__name__)


class RootReconciler:
    """`forget` is called with the uuid of an instance that was deleted."""

    def __init__(
        self, gc: GcClient, statuses: StatusWriter, forget: Callable[[str], Awaitable[None]]
    ) -> None:
        self._gc = gc
        self._statuses = statuses
        self._forget = forget
        self._instances: dict[str, Instance] = {}
        self._watch = Watch(self._take)
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._syncing = asyncio.Lock()
        self._waiting: asyncio.Task[Comparison] | None = None
        self._unread: set[str] = set()
        self._tried: dict[tuple[str, str], dict[str, indirect_roots.Mark]] = {}
        self._adopted: dict[tuple[str, str], tuple[int, int]] = {}
        # By uuid: those of the comparison before this one, not to repeat them, and of this one.
        self._said: dict[str, str] = {}
        self._complaints: dict[str, str] = {}
        self._apart: dict[str, asyncio.Task[None]] = {}
        self._reason = ""

    def open(self) -> None:
        """Before anything else."""
        self._watch.open()
        for directory in (paths.INCUS_CONTAINERS, paths.INCUS_SNAPSHOTS):
            self._watch.directory(directory, self.soon)

    def begin(self) -> None:
        """Once what runs is attached."""
        self._spawn(self._tell_again())

    def attach(self, instance: Instance, running: Running) -> None:
        """The instance runs: its links are roots from now on."""
        self._instances[instance.uuid] = instance
        process = Process(running.pid, running.started)
        self._watch.begin(self._mirror(instance.lxc_name, instance.uuid, instance.rootfs, process))
        self._spawn(self._welcome(instance))

    async def detach(self, instance: Instance) -> None:
        """It stops: what it registered last is looked up in its root file system."""
        self._watch.end(instance.uuid)
        self._instances.pop(instance.uuid, None)
        await self._look_at_stopped(instance.lxc_name, instance.uuid, instance.rootfs)

    async def drain(self) -> str:
        """Until all that is registered by now is rooted."""
        await self._watch.drain()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._gc.add_temp_roots()
        return ""

    async def sync(self) -> str:
        """Compare everything; a line on what there is then. RootError if some could not be."""
        try:
            compared = await self._compare_all()
        except OSError as error:
            self.soon()
            raise RootError(f"cannot compare all roots: {error}") from None
        except InxError:
            self.soon()
            raise
        if compared.again:
            self.soon()
        if compared.complaint:
            raise RootError(compared.complaint)
        return str(compared)

    async def _compare_all(self) -> Comparison:
        # One that runs may have passed what the caller asks about; one that waits will not.
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._sync_in_turn())
        return await asyncio.shield(self._waiting)

    def soon(self) -> None:
        """Instances came, went or changed."""
        self._wake.set()

    async def keep_syncing(self) -> None:
        """Forever: when something changed, and now and then."""
        while True:
            again = _AGAIN_SECONDS
            try:
                compared = await self._compare_all()
                hanging = any(mirror.hanging for mirror in self._watch.mirrors)
                if not (compared.again or hanging):
                    again = _PERIOD_SECONDS
            except (InxError, OSError) as error:
                log.error("cannot compare all roots: %s", error)
            except Exception:
                log.exception("comparing roots ended in a bug")
            try:
                async with asyncio.timeout(again):
                    await self._wake.wait()
                await asyncio.sleep(_SOON_SECONDS)  # what comes in bursts is seen at once
            except TimeoutError:
                pass
            self._wake.clear()

    async def close(self) -> None:
        tasks = [*self._tasks, *self._apart.values(), *([self._waiting] if self._waiting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._watch.close()
        self._gc.close()

    async def _sync_in_turn(self) -> Comparison:
        async with self._syncing:
            self._waiting = None
            return await self._sync()

    async def _sync(self) -> Comparison:
        self._said, self._complaints = self._complaints, {}
        await self.drain()
        found = await inventory.take()
        self._reason = found.reason
        await self._adopt(found)
        drop = found if not self._reason else None
        turns = asyncio.Semaphore(_AT_ONCE)

        async def compare(mirror: Mirror) -> None:
            async with turns:
                await self._compare(mirror, drop)

        mirrors = self._watch.mirrors
        for mirror in mirrors:
            if mirror.slow and mirror.uuid not in self._apart:
                self._compare_apart(mirror, drop)
        waited = [m for m in mirrors if not m.slow and m.uuid not in self._apart]
        await asyncio.gather(*(compare(mirror) for mirror in waited))
        await self._look_at_the_stopped(found, drop=drop is not None)
        if drop is not None:
            await self._bury(drop)
        # Taken now: the next comparison may begin before the caller hears of this one.
        return Comparison(len(mirrors), self._reason, min(self._complaints.values(), default=""))

    async def _adopt(self, found: Inventory) -> None:
        """Root what copies, imports, renamed instances and new snapshots name."""
        unread = set()
        for item in (item for item in found.instances if item.ours):
            try:
                if not await self._adopt_if_new(item, found.owners):
                    unread.add(item.lxc_name)
                    continue
                name, uuid = item.lxc_name, item.uuid
                await system_roots.add_included_roots(self._gc, name, uuid, item.include)
                current = direct_roots.read(direct_roots.directory(name, uuid))
                await snapshot_roots.hold(self._gc, name, uuid, current, settings.max_roots())
            except (InxError, OSError) as error:
                # Others are compared all the same; nothing is dropped.
                self._reason = str(error)
                self._complain(item.uuid, item.lxc_name, error)
        for name in unread - self._unread:
            about(name).warning(
                "its storage is not mounted, and what it may need is not known: no root of any "
                "instance is dropped until it has been started once"
            )
        self._unread = unread
        if unread:
            self._reason = f"{min(unread)!r} is a copy that has never been started"

    async def _adopt_if_new(self, item: ListedInstance, listed: set[tuple[str, str]]) -> bool:
        """False if nobody can say what it names."""
        key, written = (item.lxc_name, item.uuid), item.written()
        fresh = not os.path.isdir(f"{direct_roots.directory(*key)}/{LINKS}")
        changed = not self._runs(item) and self._adopted.get(key) != written
        if fresh or changed:
            if await self._adopt_one(item, listed):
                self._adopted[key] = written
            elif fresh:
                return False
        return True

    async def _adopt_one(self, item: ListedInstance, listed: set[tuple[str, str]]) -> bool:
        """False if nobody can say what it names."""
        name, uuid = item.lxc_name, item.uuid
        found = await offline_roots(name, item.rootfs, settings.max_roots())
        # Not one that Incus still has: an import may have the uuid of what was exported.
        former = [owner for owner, its in direct_roots.owners() - listed if its == uuid]
        if found is None and item.ran and not former:
            return False
        wanted = dict(found or {})
        for owner in former:
            wanted = direct_roots.read(direct_roots.directory(owner, uuid)) | wanted
        await direct_roots.add(self._gc, name, uuid, wanted)
        direct_roots.make(name, uuid, LINKS)
        return True

    def _compare_apart(self, mirror: Mirror, found: Inventory | None) -> None:
        """What a file system in the container keeps waiting makes nobody else wait."""
        task = asyncio.create_task(self._compare(mirror, found))
        self._apart[mirror.uuid] = task
        task.add_done_callback(lambda _: self._apart.pop(mirror.uuid))

    async def _compare(self, mirror: Mirror, found: Inventory | None) -> None:
        name, uuid = mirror.lxc_name, mirror.uuid

        async def may_drop() -> bool:
            """After a look, and before a drop: did a copy or a snapshot come up meanwhile?"""
            if found is None or not await found.holds():
                return False
            current = direct_roots.read(direct_roots.directory(name, uuid))
            await snapshot_roots.hold(self._gc, name, uuid, current, settings.max_roots())
            return True

        try:
            await mirror.compare(may_drop)
            instance = self._instances.get(uuid)
            if instance is not None:
                present = generations.read(mirror.rootfs, instance.name)
                await system_roots.add_system_roots(self._gc, instance, present, None)
                rooted = direct_roots.read(direct_roots.directory(name, uuid))
                # What it shows, and what it will.
                included = {*instance.included, *(found.included(uuid) if found else ())}
                unwanted = system_roots.superfluous(present, included, rooted)
                if (unwanted or snapshot_roots.gone(name, uuid)) and await may_drop():
                    direct_roots.drop(name, uuid, unwanted)
                    snapshot_roots.drop(name, uuid)
        except InstanceError as error:
            log.debug("%s", error)  # it ended meanwhile
        except (InxError, OSError) as error:
            self._complain(uuid, name, error)
        else:
            mirror.trouble = ""
        self._tell(mirror)

    async def _look_at_the_stopped(self, found: Inventory, *, drop: bool) -> None:
        for item in found.instances:
            name, uuid = item.lxc_name, item.uuid
            if item.ours and not self._runs(item):
                await self._look_at_stopped(name, uuid, item.rootfs)
                if drop and snapshot_roots.gone(name, uuid):
                    # It may have been restored from one of them.
                    names = await offline_roots(name, item.rootfs, settings.max_roots())
                    if names is not None:
                        await direct_roots.add(self._gc, name, uuid, names)
                        snapshot_roots.drop(name, uuid)

    async def _look_at_stopped(self, lxc_name: str, uuid: str, rootfs: str) -> None:
        """What was registered right before it stopped has no root yet."""
        names = indirect_roots.names(uuid)
        # Again only if something was registered, or registered again.
        if not names or self._tried.get((lxc_name, uuid)) == names:
            return
        try:
            mirror = self._mirror(lxc_name, uuid, rootfs, None)
            await mirror.take(names)
            if not mirror.hanging:
                self._tried[lxc_name, uuid] = names
        except (InxError, OSError) as error:
            log.debug("%s", error)

    async def _bury(self, found: Inventory) -> None:
        """Remove all that belongs to instances that Incus has no more."""
        names = {item.lxc_name for item in found.instances}
        owners = {
            (name, uuid)
            for name, uuid in direct_roots.owners() - found.owners
            # Of the same name: another one. Not listed, but on the disk: just being made.
            if name in names or not os.path.lexists(f"{paths.INCUS_CONTAINERS}/{name}")
        }
        left = {uuid for uuid in os.listdir(paths.STATE) if _UUID.fullmatch(uuid)}
        left |= {uuid for uuid in os.listdir(paths.RUN) if _UUID.fullmatch(uuid)}
        # What runs is there, whatever uuid it was given meanwhile.
        left = {uuid for uuid in left - found.uuids if Running.load(uuid) is None}
        owners = {(name, uuid) for name, uuid in owners if Running.load(uuid) is None}
        if not owners and not left:
            return
        # They were there before this second list: what is new is on it.
        again = await inventory.take()
        if again.reason:
            return
        for name, uuid in owners - again.owners:
            direct_roots.remove(name, uuid)
            why = "renamed" if uuid in again.uuids else "deleted"
            about(name).info("roots dropped: the instance is %s", why)
        for uuid in left - again.uuids:
            await self._forget(uuid)
            for key in [key for key in self._tried if key[1] == uuid]:
                del self._tried[key]

    async def _tell_again(self) -> None:
        """The sidecar before this one may have died between a root and telling the collector.

        Not of links, which may be gone: the first look at each instance that runs tells of them.
        """
        running = {(mirror.lxc_name, mirror.uuid) for mirror in self._watch.mirrors}
        try:
            for owner in direct_roots.owners():
                present = direct_roots.read(direct_roots.directory(*owner))
                await self._gc.add_temp_roots(
                    path
                    for root, path in present.items()
                    if owner not in running or not root.startswith(LINKS)
                )
        except (InxError, OSError) as error:
            log.error("%s", error)

    async def _welcome(self, instance: Instance) -> None:
        """A copy, or one that was restored, brings registered paths along."""
        mirror = self._watch.get(instance.uuid)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            with opened(os.open(instance.rootfs, flags)) as root:
                brought = indirect_roots.read_inside(root, instance.lxc_name, settings.max_roots())
            names = indirect_roots.names(instance.uuid)
            for text in brought:
                if indirect_roots.name_of(text) not in names:
                    indirect_roots.put(instance.uuid, text)
            if mirror is not None:
                await mirror.compare(None)
            direct_roots.make(instance.lxc_name, instance.uuid, LINKS)
        except (InxError, OSError) as error:
            about(instance.lxc_name).error("%s", error)
        if mirror is not None:
            self._tell(mirror)
        self.soon()

    async def _take(self, mirror: Mirror, names: set[str]) -> None:
        try:
            await mirror.take(names)
        except InstanceError as error:
            log.debug("%s", error)  # it ended: its stop hook looks again
        except (InxError, OSError) as error:
            self._complain(mirror.uuid, mirror.lxc_name, error)
            self.soon()
        except Exception:
            about(mirror.lxc_name).exception("taking roots ended in a bug")
        if mirror.crowded:
            self.soon()
        self._tell(mirror)

    def _complain(self, uuid: str, lxc_name: str, error: Exception) -> None:
        """Once: it is tried again and again."""
        mirror = self._watch.get(uuid)
        if mirror is not None:
            mirror.trouble = str(error)
            self._tell(mirror)
        said = self._said.get(uuid) or self._complaints.get(uuid)
        self._complaints[uuid] = str(error)
        if said != str(error):
            about(lxc_name).error("%s", error)

    def _tell(self, mirror: Mirror) -> None:
        instance = self._instances.get(mirror.uuid)
        if instance is not None:
            self._statuses.set_note(instance, mirror.status())

    def _runs(self, item: ListedInstance) -> bool:
        mirror = self._watch.get(item.uuid)
        return mirror is not None and mirror.lxc_name == item.lxc_name

    def _mirror(self, lxc_name: str, uuid: str, rootfs: str, process: Process | None) -> Mirror:
        return Mirror(lxc_name, uuid, rootfs, process, settings.max_roots(), self._gc)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
