"""What snapshots of an instance name stays: roots `snapshots/SNAPSHOT/...` until it is deleted.

A snapshot does not change. Its roots are read from its root file system when it is first seen; if
that is not mounted, all that the instance holds at that moment is taken, since nothing is dropped
from the instance before its snapshots have been seen.
"""

import os
from collections.abc import Mapping
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.journal import about
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.offline_roots import offline_roots
from inx_sidecar.roots.system_roots import INCLUDED

SNAPSHOTS: Final = "snapshots/"


def present(lxc_name: str) -> dict[str, str]:
    """The snapshots on the disk: a key that no later one of the same name has, and the place."""
    parent = f"{paths.INCUS_SNAPSHOTS}/{lxc_name}"
    found = {}
    try:
        with os.scandir(parent) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                # The device tells apart what has one number on all of btrfs' subvolumes.
                identity = f"{status.st_dev:x}-{status.st_ino:x}"
                found[f"{entry.name}.{identity}.{status.st_ctime_ns:x}"] = entry.path
    except FileNotFoundError:
        pass
    return found


def held(lxc_name: str, uuid: str) -> set[str]:
    """The keys of the snapshots that have roots, not always all of them."""
    try:
        return set(os.listdir(f"{direct_roots.directory(lxc_name, uuid)}/{SNAPSHOTS}"))
    except FileNotFoundError:
        return set()


async def hold(
    gc: GcClient, lxc_name: str, uuid: str, current: Mapping[str, str], most: int
) -> None:
    """Root what new snapshots name; `current` are the roots of the instance itself."""
    there = present(lxc_name)
    for key in there:
        if os.path.exists(_seen(lxc_name, uuid, key)):
            continue
        rootfs = f"{there[key]}/rootfs"
        names = await offline_roots(lxc_name, rootfs, most)
        # Which of the included paths its configuration names, only Incus knows.
        included = {path for root, path in current.items() if root.startswith(INCLUDED)}
        named = set(current.values()) if names is None else included | set(names.values())
        place = f"{SNAPSHOTS}{key}/"
        wanted = {f"{place}{os.path.basename(path)[:32]}": path for path in named}
        await direct_roots.add(gc, lxc_name, uuid, wanted)
        direct_roots.make(lxc_name, uuid, place)
        with open(_seen(lxc_name, uuid, key), "w"):
            pass


def _seen(lxc_name: str, uuid: str, key: str) -> str:
    """A file, which is no root, that is there once all roots of the snapshot are."""
    return f"{direct_roots.directory(lxc_name, uuid)}/{SNAPSHOTS}{key}/seen"


def gone(lxc_name: str, uuid: str) -> list[str]:
    """The keys of snapshots that have roots and are no more."""
    return sorted(held(lxc_name, uuid) - present(lxc_name).keys())


def drop(lxc_name: str, uuid: str) -> None:
    """Drop the roots of snapshots that are gone."""
    for key in gone(lxc_name, uuid):
        direct_roots.remove(lxc_name, uuid, f"{SNAPSHOTS}{key}")
        about(lxc_name).info("roots of snapshot %s dropped", name_of(key))


def name_of(key: str) -> str:
    """The name that Incus gave the snapshot."""
    return key.rsplit(".", 2)[0]
