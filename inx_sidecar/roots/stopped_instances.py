"""Instances that do not run: what they registered last is rooted, deleted snapshots let go."""

import logging

from inx_sidecar.base.errors import InxError
from inx_sidecar.config import settings
from inx_sidecar.links import indirect_roots
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots, lineage
from inx_sidecar.roots.inventory import Inventory, ListedInstance, Owner
from inx_sidecar.roots.mirror import Mirror
from inx_sidecar.roots.offline_roots import offline_roots
from inx_sidecar.roots.snapshot_roots import deleted_snapshots, drop_deleted_snapshots

log = logging.getLogger(__name__)


class StoppedInstances:
    def __init__(self, gc: GcClient) -> None:
        self._gc = gc
        # What was registered when an instance was last looked at: it is looked at again only when
        # that has changed.
        self._looked_at: dict[Owner, dict[str, indirect_roots.Mark]] = {}

    async def add_registered(self, lxc_name: str, uuid: str, rootfs: str) -> None:
        """Root what was registered and has no root yet, as right before the instance stopped."""
        try:
            mirror = Mirror(lxc_name, uuid, rootfs, None, settings.max_roots(), self._gc)
            known = self._looked_at.get((lxc_name, uuid), {})
            mirror.registrations.known = dict(known)
            names = await mirror.changed()
            if not names:
                return
            await mirror.add_registered(names)
            if not mirror.resolver.incomplete:
                self._looked_at[lxc_name, uuid] = mirror.registrations.known
        except (InxError, OSError) as error:
            log.debug("%s", error)

    async def compare(self, item: ListedInstance, inventory: Inventory | None) -> None:
        """Drop what is not needed any more if there is an `inventory` that is still current."""
        await self.add_registered(*item.owner, item.rootfs)
        if inventory is None:
            return
        gone = deleted_snapshots(*item.owner)
        copied = lineage.has_roots_of_source(item.owner)
        if gone or copied:
            # The instance may have been restored from one of them.
            names = await offline_roots(item.lxc_name, item.rootfs, settings.max_roots())
            if names is not None:
                await direct_roots.add(self._gc, *item.owner, names)
                # A copy may have been made before the snapshot was deleted.
                if await inventory.is_current():
                    await drop_deleted_snapshots(*item.owner, gone)
                    if copied:
                        await lineage.drop_roots_of_source(item.owner)

    def forget(self, uuid: str) -> None:
        for owner in [owner for owner in self._looked_at if owner[1] == uuid]:
            del self._looked_at[owner]
