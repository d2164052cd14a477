"""Each snapshot has roots `snapshots/SNAPSHOT/...` for the store paths in its root file system.

A snapshot does not change. Its roots are read from its root file system when the snapshot is first
seen. If that file system is not mounted, all that the instance holds at that moment is rooted for
the snapshot: nothing is dropped from the instance before its snapshots have been seen.
"""

import os
from collections.abc import Iterable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.journal import instance_log
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.offline_roots import offline_roots
from inx_sidecar.roots.system_roots import INCLUDED

SNAPSHOTS: Final = "snapshots/"


async def root_new_snapshots(gc: GcClient, lxc_name: str, uuid: str, most: int) -> None:
    """Root what new snapshots name."""
    new = {
        key: place
        for key, place in _on_disk(lxc_name).items()
        if not os.path.exists(_seen_mark(lxc_name, uuid, key))
    }
    if not new:
        return
    current = await direct_roots.read_in_turns(direct_roots.directory(lxc_name, uuid))
    for key, place in new.items():
        names = await offline_roots(lxc_name, f"{place}/rootfs", most)
        # Only Incus knows which included paths the configuration of the snapshot names.
        included = {path for root, path in current.items() if root.startswith(INCLUDED)}
        named = set(current.values()) if names is None else included | set(names.values())
        within = f"{SNAPSHOTS}{key}/"
        wanted = {f"{within}{os.path.basename(path)[:32]}": path for path in named}
        await direct_roots.add(gc, lxc_name, uuid, wanted)
        direct_roots.make_directory(lxc_name, uuid, within)
        with open(_seen_mark(lxc_name, uuid, key), "w"):
            pass


def deleted_snapshots(lxc_name: str, uuid: str) -> list[str]:
    """The keys of snapshots that have roots and do not exist any more."""
    return sorted(_rooted(lxc_name, uuid) - _on_disk(lxc_name).keys())


async def drop_deleted_snapshots(lxc_name: str, uuid: str, keys: Iterable[str]) -> None:
    """Drop the roots of the snapshots `keys`, which did not exist when Incus had no copy that is
    new."""
    for key in keys:
        await direct_roots.remove(lxc_name, uuid, f"{SNAPSHOTS}{key}")
        instance_log(lxc_name).info("roots of snapshot %s dropped", snapshot_name(key))


def has_snapshots(lxc_name: str, uuid: str) -> bool:
    return bool(_on_disk(lxc_name) or _rooted(lxc_name, uuid))


def snapshot_name(key: str) -> str:
    """The name that Incus gave the snapshot."""
    return key.rsplit(".", 2)[0]


def _on_disk(lxc_name: str) -> dict[str, str]:
    """The directories of the snapshots that exist, by key. The key has the inode number and the
    change time, so a later snapshot of the same name has another key."""
    parent = f"{paths.INCUS_SNAPSHOTS}/{lxc_name}"
    found = {}
    try:
        with os.scandir(parent) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                # All btrfs subvolumes have one inode number; their device numbers differ.
                identity = f"{status.st_dev:x}-{status.st_ino:x}"
                found[f"{entry.name}.{identity}.{status.st_ctime_ns:x}"] = entry.path
    except FileNotFoundError:
        pass
    return found


def _rooted(lxc_name: str, uuid: str) -> set[str]:
    """The keys of the snapshots that have roots, not always all of them."""
    try:
        return set(os.listdir(f"{direct_roots.directory(lxc_name, uuid)}/{SNAPSHOTS}"))
    except FileNotFoundError:
        return set()


def _seen_mark(lxc_name: str, uuid: str, key: str) -> str:
    """A file, which is no root: it exists once all roots of the snapshot do."""
    return f"{direct_roots.directory(lxc_name, uuid)}/{SNAPSHOTS}{key}/seen"
