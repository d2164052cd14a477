"""Which instances there are: what Incus says, and when its word can be relied on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from inx_sidecar.base import paths
from inx_sidecar.incus import api as incus
from inx_sidecar.nix.store import listed


@dataclass(frozen=True)
class ListedInstance:
    """An instance that Incus has; `ours` if it uses the hooks, `ran` if it, or what it was copied
    from, ran with inx; `include` are the store paths that it shows in addition to its system."""

    lxc_name: str
    uuid: str
    ours: bool
    ran: bool
    include: tuple[str, ...] = ()

    @classmethod
    def of(cls, api: Mapping[str, Any]) -> Self:
        name, project = api["name"], api["project"]
        config = api["expanded_config"]
        return cls(
            name if project == "default" else f"{project}_{name}",
            config.get("volatile.uuid", ""),
            f"{paths.HOOKS}/" in config.get("raw.lxc", ""),
            bool(config.get("user.inx.status")),
            listed(config.get("user.inx.store.include", "")),
        )

    @property
    def rootfs(self) -> str:
        return f"{paths.INCUS_CONTAINERS}/{self.lxc_name}/rootfs"

    def written(self) -> tuple[int, int]:
        """Changes whenever Incus wrote the instance anew, as a refreshed copy or a restored one."""
        try:
            status = os.stat(f"{paths.INCUS_CONTAINERS}/{self.lxc_name}/backup.yaml")
        except OSError:
            return (0, 0)
        return status.st_ino, status.st_mtime_ns


@dataclass(frozen=True)
class Inventory:
    """All instances, or the reason why nothing can be said; `entries` of Incus' directory of
    containers, from before."""

    instances: tuple[ListedInstance, ...]
    entries: frozenset[str]
    reason: str = ""

    @property
    def owners(self) -> set[tuple[str, str]]:
        return {(item.lxc_name, item.uuid) for item in self.instances}

    @property
    def uuids(self) -> set[str]:
        return {item.uuid for item in self.instances}

    def included(self, uuid: str) -> set[str]:
        return {path for item in self.instances if item.uuid == uuid for path in item.include}

    async def holds(self) -> bool:
        """Nothing came up since, and Incus is not making anything."""
        try:
            return not self.reason and _entries() <= self.entries and not await incus.at_work()
        except incus.IncusError:
            return False


@dataclass(frozen=True)
class Comparison:
    """How a comparison of all roots ended: why nothing was dropped, and what did not work; both
    empty if all is well."""

    running: int
    reason: str
    complaint: str

    @property
    def again(self) -> bool:
        return bool(self.reason or self.complaint)

    def __str__(self) -> str:
        line = f"compared {self.running} running instances"
        return f"{line}; nothing was dropped: {self.reason}" if self.reason else line


async def take() -> Inventory:
    entries = _entries()
    try:
        if await incus.at_work():
            return Inventory((), entries, "Incus is at work")
        listed = tuple(ListedInstance.of(instance) for instance in await incus.instances())
    except incus.IncusError as error:
        return Inventory((), entries, str(error))
    return Inventory(listed, entries)


def _entries() -> frozenset[str]:
    try:
        return frozenset(os.listdir(paths.INCUS_CONTAINERS))
    except FileNotFoundError:
        return frozenset()
