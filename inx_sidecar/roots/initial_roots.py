"""The first roots of instances that were copied, imported, renamed or restored, and of snapshots.

Such an instance names store paths before it runs here for the first time. They are read in its root
file system; if that is not mounted, they are among those of its source (lineage.py).
"""

import os
from collections.abc import Callable

from inx_sidecar.base.errors import InxError
from inx_sidecar.config import settings
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots, lineage, system_roots
from inx_sidecar.roots.comparison_errors import ComparisonErrors
from inx_sidecar.roots.inventory import Inventory, ListedInstance, Owner
from inx_sidecar.roots.link_roots import LINKS
from inx_sidecar.roots.offline_roots import offline_roots
from inx_sidecar.roots.snapshot_roots import root_new_snapshots

_Version = tuple[int, int, str]


class InitialRoots:
    """`runs` tells whether the links of an instance are mirrored."""

    def __init__(
        self, gc: GcClient, complaints: ComparisonErrors, runs: Callable[[ListedInstance], bool]
    ) -> None:
        self._gc = gc
        self._complaints = complaints
        self._runs = runs
        self._read: dict[Owner, _Version] = {}

    async def add(self, inventory: Inventory) -> str:
        """Add the roots of the instances in `inventory`. Returns the reason why no root of any
        instance may be dropped, empty if all instances have their roots."""
        reason = inventory.reason
        unreadable: list[ListedInstance] = []

        async def add_one(item: ListedInstance, *, readable: bool) -> str:
            """The reason why it failed, or ""."""
            try:
                if readable and not await self._add_if_new(item, inventory.owners):
                    unreadable.append(item)
                    return ""
                if not readable:
                    await lineage.add_roots_of_source(self._gc, item, inventory)
                    self._note_read(item, item.version())
                await system_roots.add_included_roots(self._gc, *item.owner, item.include)
                await root_new_snapshots(self._gc, *item.owner, settings.max_roots())
            except (InxError, OSError) as error:
                # The other instances are compared nevertheless.
                self._complaints.add(item.uuid, item.lxc_name, error)
                return str(error)
            return ""

        for item in inventory.instances:
            if item.ours:
                reason = await add_one(item, readable=True) or reason
        # A copy gets the roots of its source, so the source has to have them.
        for item in unreadable if not reason else ():
            reason = await add_one(item, readable=False) or reason
        if not reason:
            await lineage.forget_former_keys(inventory)
        return reason

    async def _add_if_new(self, item: ListedInstance, listed: set[Owner]) -> bool:
        """False if the instance names what is not known, since it cannot be read."""
        fresh = not os.path.isdir(f"{direct_roots.directory(*item.owner)}/{LINKS}")
        runs, version = self._runs(item), item.version()
        if not must_read(fresh, runs, self._read.get(item.owner), version):
            return True
        names = await offline_roots(item.lxc_name, item.rootfs, settings.max_roots())
        former = former_names(item, direct_roots.owners(), listed)
        wanted = dict(names or {})
        for name in former:
            wanted = direct_roots.read(direct_roots.directory(name, item.uuid)) | wanted
            for key in lineage.former_keys((name, item.uuid)):
                lineage.add_former_key(item.owner, key)
        await direct_roots.add(self._gc, *item.owner, wanted)
        if names is None and not runs and lineage.needs_roots(item, fresh=fresh and not former):
            return False
        self._note_read(item, version)
        return True

    def _note_read(self, item: ListedInstance, version: _Version) -> None:
        direct_roots.make_directory(*item.owner, LINKS)
        self._read[item.owner] = version


def must_read(fresh: bool, runs: bool, last_read: _Version | None, version: _Version) -> bool:
    """Whether the root file system of an instance has to be read: if the instance is `fresh` (it
    has no roots yet), or if it does not run and Incus has written it since the last read."""
    return fresh or (not runs and last_read != version)


def former_names(item: ListedInstance, owners: set[Owner], listed: set[Owner]) -> list[str]:
    """The names that the instance had before, by the `owners` of roots. Not that of a `listed`
    instance: an import may have the uuid of the instance that was exported."""
    return sorted(name for name, uuid in owners - listed if uuid == item.uuid)
