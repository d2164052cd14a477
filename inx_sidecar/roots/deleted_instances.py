"""Remove the roots and the state of instances that Incus does not have any more."""

import os
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.journal import instance_log
from inx_sidecar.incus.running_record import Running
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.inventory import Inventory, Owner, container_entries, take_inventory

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def remove_deleted(inventory: Inventory, forget: Callable[[str], Awaitable[None]]) -> None:
    """Remove the roots of owners that `inventory` does not list; call `forget` with each uuid that
    it does not list and whose state is on the disk."""
    state = {*os.listdir(paths.STATE), *os.listdir(paths.RUN)}
    owners = owners_without_instance(direct_roots.owners(), inventory, container_entries())
    uuids = uuids_without_instance(state, inventory)
    # A container that runs exists, whatever uuid its instance was given meanwhile.
    uuids = {uuid for uuid in uuids if Running.load(uuid) is None}
    owners = {owner for owner in owners if Running.load(owner[1]) is None}
    if not owners and not uuids:
        return
    # All candidates predate this listing, so an instance that was just made appears in it and is
    # spared.
    again = await take_inventory()
    if again.reason:
        return
    for name, uuid in owners - again.owners:
        await direct_roots.remove(name, uuid)
        why = "renamed" if uuid in again.uuids else "deleted"
        instance_log(name).info("roots dropped: the instance is %s", why)
    for uuid in uuids - again.uuids:
        await forget(uuid)


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
