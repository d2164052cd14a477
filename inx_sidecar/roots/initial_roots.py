"""The first roots of instances that were copied, imported, renamed or restored, and of snapshots.

Such an instance names store paths before it runs here for the first time.
"""

import os
from collections.abc import Callable

from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.config import settings
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots, system_roots
from inx_sidecar.roots.comparison_errors import ComparisonErrors
from inx_sidecar.roots.inventory import Inventory, ListedInstance, Owner
from inx_sidecar.roots.link_roots import LINKS
from inx_sidecar.roots.offline_roots import offline_roots
from inx_sidecar.roots.snapshot_roots import root_new_snapshots

_Version = tuple[int, int]


class InitialRoots:
    """`runs` tells whether the links of an instance are mirrored."""

    def __init__(
        self, gc: GcClient, complaints: ComparisonErrors, runs: Callable[[ListedInstance], bool]
    ) -> None:
        self._gc = gc
        self._complaints = complaints
        self._runs = runs
        self._read: dict[Owner, _Version] = {}
        # Names of instances that could not be read at the last comparison.
        self._unreadable: set[str] = set()

    async def add(self, inventory: Inventory) -> str:
        """Add the roots of the instances in `inventory`. Returns the reason why no root of any
        instance may be dropped, empty if all instances could be read."""
        reason = inventory.reason
        unreadable = set()
        for item in (item for item in inventory.instances if item.ours):
            try:
                if not await self._add_if_new(item, inventory.owners):
                    unreadable.add(item.lxc_name)
                    continue
                await system_roots.add_included_roots(self._gc, *item.owner, item.include)
                await root_new_snapshots(self._gc, *item.owner, settings.max_roots())
            except (InxError, OSError) as error:
                # The other instances are compared nevertheless.
                reason = str(error)
                self._complaints.add(item.uuid, item.lxc_name, error)
        for name in unreadable - self._unreadable:
            instance_log(name).warning(
                "its storage is not mounted, and what it may need is not known: no root of any "
                "instance is dropped until it has been started once"
            )
        self._unreadable = unreadable
        if unreadable:
            reason = f"{min(unreadable)!r} is a copy that has never been started"
        return reason

    async def _add_if_new(self, item: ListedInstance, listed: set[Owner]) -> bool:
        """False if it is not known what the instance names."""
        version = item.version()
        fresh = not os.path.isdir(f"{direct_roots.directory(*item.owner)}/{LINKS}")
        if must_read(fresh, self._runs(item), self._read.get(item.owner), version):
            if await self._add_one(item, listed):
                self._read[item.owner] = version
            elif fresh:
                return False
        return True

    async def _add_one(self, item: ListedInstance, listed: set[Owner]) -> bool:
        """False if it is not known what the instance names."""
        names = await offline_roots(item.lxc_name, item.rootfs, settings.max_roots())
        former = former_names(item, direct_roots.owners(), listed)
        if names is None and item.ran and not former:
            return False
        wanted = dict(names or {})
        for name in former:
            wanted = direct_roots.read(direct_roots.directory(name, item.uuid)) | wanted
        await direct_roots.add(self._gc, *item.owner, wanted)
        direct_roots.make_directory(*item.owner, LINKS)
        return True


def must_read(fresh: bool, runs: bool, last_read: _Version | None, version: _Version) -> bool:
    """Whether the root file system of an instance has to be read: if the instance is `fresh` (it
    has no roots yet), or if it does not run and Incus has written it since the last read."""
    return fresh or (not runs and last_read != version)


def former_names(item: ListedInstance, owners: set[Owner], listed: set[Owner]) -> list[str]:
    """The names that the instance had before, by the `owners` of roots. Not that of a `listed`
    instance: an import may have the uuid of the instance that was exported."""
    return sorted(name for name, uuid in owners - listed if uuid == item.uuid)
