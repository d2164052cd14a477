"""Remove the roots and the state of instances that Incus does not have any more.

Roots of an instance that was moved to another member of the cluster may stay (`moved_instances`).
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.journal import instance_log
from inx_sidecar.incus.running_record import Running
from inx_sidecar.roots import direct_roots, moved_instances
from inx_sidecar.roots.inventory import Inventory, Owner, container_entries, take_inventory
from inx_sidecar.roots.moved_instances import DELETED, MovedInstances

# Nothing waits longer for a member of the cluster that does not answer.
_PATIENCE_SECONDS: Final = 5.0
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class DeletedInstances:
    """`forget` is called with each uuid that Incus does not list and whose state is on the disk,
    `compare_soon` when Incus can be asked again for what was not known."""

    def __init__(
        self, forget: Callable[[str], Awaitable[None]], compare_soon: Callable[[], None]
    ) -> None:
        self._forget = forget
        self.moved = MovedInstances(compare_soon)
        self._task: asyncio.Task[None] | None = None

    async def remove(self, inventory: Inventory) -> None:
        """Remove what belongs to no instance of `inventory`.

        Another member of the cluster may not answer. Then this goes on by itself: a collection
        waits for the comparison of all roots.
        """
        if self._task is not None and not self._task.done():
            return
        self._task = asyncio.create_task(self._remove(inventory))
        done, _ = await asyncio.wait([self._task], timeout=_PATIENCE_SECONDS)
        for task in done:
            task.result()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _remove(self, inventory: Inventory) -> None:
        state = {*os.listdir(paths.STATE), *os.listdir(paths.RUN)}
        present = direct_roots.owners()
        for owner in present & inventory.owners:
            moved_instances.unmark(owner)
        owners = owners_without_instance(present, inventory, container_entries())
        uuids = uuids_without_instance(state, inventory)
        # A container that runs exists, whatever uuid its instance was given meanwhile.
        uuids = {uuid for uuid in uuids if Running.load(uuid) is None}
        owners = {owner for owner in owners if Running.load(owner[1]) is None}
        fates = await self.moved.fates({each for each in owners if each[1] not in inventory.uuids})
        if not owners and not uuids:
            return
        # All candidates predate this listing, so an instance that was just made appears in it and
        # is spared.
        again = await take_inventory()
        if again.reason:
            return
        for owner in owners - again.owners:
            fate = fates.get(owner, DELETED)
            if fate.stay and owner[1] not in again.uuids:
                moved_instances.mark(owner, fate.member)
                continue
            await direct_roots.remove(*owner)
            moved = f"on the member {fate.member!r}" if fate.member else "deleted"
            why = "renamed" if owner[1] in again.uuids else moved
            instance_log(owner[0]).info("roots dropped: the instance is %s", why)
        # State is about this host alone: it does not wait for another member that has the instance.
        unknown = {uuid for (_, uuid), fate in fates.items() if fate.stay and not fate.member}
        for uuid in uuids - again.uuids - unknown:
            await self._forget(uuid)


def owners_without_instance(
    owners: set[Owner], inventory: Inventory, entries: frozenset[str]
) -> set[Owner]:
    """The `owners` of roots that Incus does not list. An instance that is on the disk (`entries`)
    under a name that is not listed is just being made: its roots stay."""
    listed_names = {item.lxc_name for item in inventory.instances}
    return {
        (name, uuid)
        for name, uuid in owners - inventory.owners
        if name in listed_names or name not in entries
    }


def uuids_without_instance(directories: Iterable[str], inventory: Inventory) -> set[str]:
    """The uuids among the names of `directories` that Incus does not list."""
    return {name for name in directories if _UUID.fullmatch(name)} - inventory.uuids
