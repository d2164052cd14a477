"""The instances that Incus has on this host, and whether that list can be relied on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from inx_sidecar.base import paths
from inx_sidecar.incus import api as incus
from inx_sidecar.incus import members
from inx_sidecar.incus.instance import SEALED, UUID, lxc_name_of, project_and_name
from inx_sidecar.incus.status_keys import ELSEWHERE
from inx_sidecar.nix.store_paths import split_store_paths

# Name, as LXC has it, and uuid: both, since an import may have the uuid of another instance, and a
# new instance the name of one that was deleted.
Owner = tuple[str, str]


@dataclass(frozen=True)
class ListedInstance:
    """An instance that Incus has.

    `ours`: it uses the hooks. `ran`: it, or the instance that it was copied from, ran with inx.
    `include`: the store paths that it shows in addition to its system. `sealed`: the uuid of the
    instance that its generations were given to, "" if that is not known. `image`: the fingerprint
    of the image that it, or the instance that it was copied from, was made from. `arrived`: it was
    moved here from a member of the cluster without inx, and its status still says so.
    """

    lxc_name: str
    uuid: str
    ours: bool
    ran: bool
    include: tuple[str, ...] = ()
    sealed: str = ""
    image: str = ""
    project: str = "default"
    arrived: bool = False

    @classmethod
    def of(cls, api: Mapping[str, Any]) -> Self:
        name, project = api["name"], api["project"]
        config = api["expanded_config"]
        sealed = config.get(SEALED, "")
        return cls(
            lxc_name_of(project, name),
            config.get("volatile.uuid", ""),
            f"{paths.HOOKS}/" in config.get("raw.lxc", ""),
            bool(config.get("user.inx.status") or sealed),
            split_store_paths(config.get("user.inx.store.include", "")),
            sealed if UUID.fullmatch(sealed) else "",
            config.get("volatile.base_image", ""),
            project,
            config.get("user.inx.status", "").startswith(ELSEWHERE),
        )

    @property
    def place(self) -> tuple[str, str]:
        """The project and the name in Incus."""
        return project_and_name(self.lxc_name)

    @property
    def owner(self) -> Owner:
        return self.lxc_name, self.uuid

    @property
    def rootfs(self) -> str:
        return f"{paths.INCUS_CONTAINERS}/{self.lxc_name}/rootfs"

    def version(self) -> tuple[int, int, str]:
        """Changes whenever Incus writes backup.yaml, for example when a copy is refreshed; then it
        has the key of its source, too."""
        try:
            status = os.stat(f"{paths.INCUS_CONTAINERS}/{self.lxc_name}/backup.yaml")
        except OSError:
            return (0, 0, self.sealed)
        return status.st_ino, status.st_mtime_ns, self.sealed


@dataclass(frozen=True)
class Inventory:
    """All instances, or the reason why they are not known.

    `entries` are the names in Incus' directory of containers, read before Incus was asked.
    """

    instances: tuple[ListedInstance, ...]
    entries: frozenset[str]
    reason: str = ""

    @property
    def owners(self) -> set[Owner]:
        return {item.owner for item in self.instances}

    @property
    def uuids(self) -> set[str]:
        return {item.uuid for item in self.instances}

    def included(self, uuid: str) -> set[str]:
        return {path for item in self.instances if item.uuid == uuid for path in item.include}

    async def is_current(self) -> bool:
        """True if no instance was made since this inventory, and Incus is not making one."""
        try:
            return (
                not self.reason
                and container_entries() <= self.entries
                and not await members.is_creating()
            )
        except incus.IncusError:
            return False


async def take_inventory() -> Inventory:
    entries = container_entries()
    try:
        if await members.is_creating():
            return Inventory((), entries, "Incus is at work")
        listed = tuple(map(ListedInstance.of, await members.list_own_instances()))
    except incus.IncusError as error:
        return Inventory((), entries, str(error))
    return Inventory(listed, entries)


def container_entries() -> frozenset[str]:
    """The names in Incus' directory of containers. Incus makes an entry here before it lists the
    instance."""
    try:
        return frozenset(os.listdir(paths.INCUS_CONTAINERS))
    except FileNotFoundError:
        return frozenset()
