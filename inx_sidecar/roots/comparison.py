"""Add the missing roots of one running instance, and drop those that it does not need any more."""

from dataclasses import dataclass

from inx_sidecar.config import settings
from inx_sidecar.incus.instance import Instance
from inx_sidecar.nix import generations
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots, lineage, system_roots
from inx_sidecar.roots.inventory import Inventory
from inx_sidecar.roots.mirror import Mirror
from inx_sidecar.roots.snapshot_roots import (
    deleted_snapshots,
    drop_deleted_snapshots,
    root_new_snapshots,
)


@dataclass(frozen=True)
class Outcome:
    """How a comparison of all roots ended: why nothing was dropped, and what failed; both empty if
    all is well."""

    running: int
    reason: str
    complaint: str

    @property
    def incomplete(self) -> bool:
        return bool(self.reason or self.complaint)

    def __str__(self) -> str:
        line = f"compared {self.running} running instances"
        return f"{line}; nothing was dropped: {self.reason}" if self.reason else line


async def compare_running(
    gc: GcClient, mirror: Mirror, instance: Instance | None, inventory: Inventory | None
) -> None:
    """Add the roots that are missing. Drop those that are not wanted, if there is an `inventory`
    that is still current: another instance or a snapshot may name what this one drops.

    InstanceError if the container has ended; RootError or OSError if not all could be compared.
    """
    owner = mirror.lxc_name, mirror.uuid

    async def may_drop() -> bool:
        """Asked after the look and before the drop."""
        if inventory is None or not await inventory.is_current():
            return False
        await root_new_snapshots(gc, *owner, settings.max_roots())
        return True

    await mirror.compare(may_drop)
    if instance is None:
        return
    present = generations.read(mirror.rootfs, instance.name)
    await system_roots.add_system_roots(gc, instance, present, None)
    rooted = system_roots.read_rooted(*owner)
    # What the instance shows now, and what it will show after its next start.
    listed = inventory.included(mirror.uuid) if inventory else set()
    included = {*instance.included, *listed}
    shown = system_roots.shown_to(instance)
    unwanted = system_roots.unwanted_roots(present, included, rooted, shown)
    gone = deleted_snapshots(*owner)
    known = mirror.imported and not mirror.resolver.incomplete
    copied = known and lineage.has_roots_of_source(owner)
    if (unwanted or gone or copied) and await may_drop():
        direct_roots.drop(*owner, unwanted)
        await drop_deleted_snapshots(*owner, gone)
        if copied:
            await lineage.drop_roots_of_source(owner)
