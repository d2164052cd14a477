"""Roots of a copy whose root file system is mounted only while it runs, as on ZFS, LVM and Ceph.

What such a copy names is known without a look at it. Incus copies the key SEALED, so the copy has
the uuid of the instance that it was made from, and so have other copies of that instance which have
not started yet. All that these hold is rooted for the copy, in COPIED, before anything is dropped.
If it is not known what the instance was made from, that is all that any instance holds. Once the
instance runs, its own links are compared, and COPIED is removed.
"""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base.errors import RootError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.incus import api as incus
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.inventory import Inventory, ListedInstance, Owner
from inx_sidecar.roots.snapshot_roots import has_snapshots

COPIED: Final = "copied/"
# A file, which is no root, with the keys that copies of this instance or of its snapshots may have
# besides its uuid, one a line. An empty line: its first start may not have written the key yet.
_FORMER_KEYS: Final = "former-keys"
# The empty image that inx installs has 300 bytes. The files of an instance that ran have more.
_EMPTY_IMAGE_BYTES: Final = 512


@dataclass(frozen=True)
class Relative:
    """Who has roots here. `keys` are the values of SEALED in its copies, as far as they are known;
    `listed`: Incus has the instance."""

    owner: Owner
    keys: frozenset[str]
    listed: bool = True


def relatives_of(
    key: str, uuid: str, relatives: Iterable[Relative], *, may_have_files: bool
) -> set[Owner] | None:
    """Whose roots hold all that the instance `uuid` names, which has the value `key` of SEALED and
    has not run here; None if that is not known.

    An instance that Incus does not list any more may have been copied right before it was deleted.
    """
    if key and key != uuid:
        found = {each.owner for each in relatives if not each.listed or key in each.keys}
        return found if any(owner[1] == key for owner in found) else None
    if key or may_have_files:
        return None  # moved here, imported, or copied from an instance without the key
    return {each.owner for each in relatives if "" in each.keys}


def needs_roots(item: ListedInstance, *, fresh: bool) -> bool:
    """Whether COPIED has to be made for an instance that does not run and cannot be read: if it has
    no roots, or was refreshed, by which Incus gives it the key of its source."""
    if fresh:
        return True
    place = direct_roots.directory(*item.owner)
    taken = os.path.isdir(f"{place}/{COPIED}") and item.sealed in former_keys(item.owner)
    return item.sealed not in ("", item.uuid) and not taken


async def add_roots_of_source(gc: GcClient, item: ListedInstance, inventory: Inventory) -> None:
    """Root all that `item` may name; the other instances have their roots already."""
    files = await _may_have_files(item)
    relatives = _relatives(inventory)
    found = relatives_of(item.sealed, item.uuid, relatives, may_have_files=files)
    sources = {each.owner for each in relatives} if found is None else found
    held: set[str] = set()
    for source in sources - {item.owner}:
        held.update((await direct_roots.read_in_turns(direct_roots.directory(*source))).values())
    if held or files:
        wanted = {f"{COPIED}{os.path.basename(path)[:32]}": path for path in held}
        await direct_roots.add(gc, *item.owner, wanted)
        direct_roots.make_directory(*item.owner, COPIED)
        if item.sealed:
            add_former_key(item.owner, item.sealed)
        log = instance_log(item.lxc_name)
        until = "until it has been started once"
        if found is None:
            log.warning(
                "its storage is not mounted, and it is not known what it was made from: it keeps "
                "all that any instance keeps now, %s", until,
            )  # fmt: skip
        else:
            log.info(
                "its storage is not mounted: it keeps all that its source keeps now, %s", until
            )


def has_roots_of_source(owner: Owner) -> bool:
    return os.path.isdir(f"{direct_roots.directory(*owner)}/{COPIED}")


async def drop_roots_of_source(owner: Owner) -> None:
    """The root file system of the instance was read: its own roots hold what it names."""
    await direct_roots.remove(*owner, COPIED)
    instance_log(owner[0]).info("roots of its source dropped: its own links are known")


def former_keys(owner: Owner) -> set[str]:
    try:
        with open(f"{direct_roots.directory(*owner)}/{_FORMER_KEYS}") as file:
            return set(file.read().split("\n")[:-1])
    except FileNotFoundError:
        return set()


def add_former_key(owner: Owner, key: str) -> None:
    """Note that copies of the instance may have `key`, also when Incus has its next key."""
    present = former_keys(owner)
    if key in present:
        return
    place = direct_roots.directory(*owner)
    try:
        os.makedirs(place, exist_ok=True)
        with open(f"{place}/.{_FORMER_KEYS}", "w") as file:
            file.write("".join(f"{each}\n" for each in sorted({*present, key})))
        os.rename(f"{place}/.{_FORMER_KEYS}", f"{place}/{_FORMER_KEYS}")
    except OSError as error:
        raise RootError(f"cannot write {place}/{_FORMER_KEYS}: {error.strerror}") from None


async def forget_former_keys(inventory: Inventory) -> None:
    """Forget the former keys of instances that have a key of their own now, if no copy was made
    since `inventory`, all of which has its roots. Snapshots may have a former key."""
    old = [
        f"{direct_roots.directory(*item.owner)}/{_FORMER_KEYS}"
        for item in inventory.instances
        if item.sealed == item.uuid
        and former_keys(item.owner)
        and not has_roots_of_source(item.owner)
        and not has_snapshots(*item.owner)
    ]
    if old and await inventory.is_current():
        for path in old:
            # One that stays, as on a file system that is read-only, only keeps more.
            with contextlib.suppress(OSError):
                os.unlink(path)


def _relatives(inventory: Inventory) -> list[Relative]:
    listed = {item.owner: item for item in inventory.instances}
    found = []
    for owner in direct_roots.owners():
        item = listed.get(owner)
        keys = {owner[1], *former_keys(owner)} | ({item.sealed} - {""} if item else set())
        found.append(Relative(owner, frozenset(keys), listed=item is not None))
    return found


async def _may_have_files(item: ListedInstance) -> bool:
    """Whether the root file system of a new instance may have links."""
    if item.ran or not item.image:
        return item.ran
    try:
        image = await incus.get_image(item.project, item.image)
    except incus.IncusError:
        return True  # the image may be deleted by now
    ours = any(alias.get("name") == "inx" for alias in image.get("aliases") or ())
    return not (ours and int(image["size"]) <= _EMPTY_IMAGE_BYTES)
