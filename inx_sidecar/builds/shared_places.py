"""Which directories of the host can be written from inside instances, as Incus describes it.

The root of a container writes files as any user of the host into a disk device with `shift=true`,
and the root of a virtual machine or a privileged container does so into every disk device. So what
such a file says, and whose it is, proves nothing. Devices that are `readonly` and instances that do
not run count as well: they may have been written before.

Programs of root also write other people's text into files of root: Incus keeps the console of a
container, Nix the log of a build. So the directories of such files count as shared.
"""

import asyncio
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from inx_sidecar.base import paths
from inx_sidecar.incus import api, members
from inx_sidecar.kernel.mount_table import Mount, Place, places_below

# LXC skips blanks and tabs. A newline in these would take quadratic time on many empty lines.
_ENTRY: Final = re.compile(r"^[ \t]*lxc\.mount\.entry[ \t]*=[ \t]*(.*)$", re.MULTILINE)
# Files that LXC reads in addition, with mounts that are not known here.
_MORE_FILES: Final = re.compile(r"^[ \t]*lxc\.(include|mount|mount\.fstab)[ \t]*=", re.MULTILINE)


@dataclass(frozen=True)
class Shared:
    """`source` is a path of the host, or what Incus calls a source of storage; None if it is not
    known. `by` names who shares it."""

    source: str | None
    by: str


ALWAYS: Final = (
    Shared(paths.STORE, "any instance may add files to the Nix store, which has"),
    # The places of pools and volumes that are mounted there belong to it.
    Shared(paths.INCUS, "the storage of Incus has"),
    *(
        Shared(place, f"programs of root write the text of others below {place}, which has")
        for place in paths.WRITTEN_FOR_OTHERS
    ),
)


async def ask_incus() -> list[Shared]:
    """What instances share now. IncusError if Incus does not say."""
    found = await asyncio.gather(
        members.list_own_instances(), api.list_profiles(), api.list_storage_pools()
    )
    return describe(*found)


def describe(
    instances: Iterable[Mapping[str, Any]],
    profiles: Iterable[Mapping[str, Any]],
    pools: Iterable[Mapping[str, Any]],
) -> list[Shared]:
    """What these objects of Incus' API share; each source once."""
    found: dict[str | None, Shared] = {shared.source: shared for shared in ALWAYS}
    for kind, objects in (("instance", instances), ("profile", profiles)):
        for each in objects:
            where = f"the {kind} {each['name']!r}"
            if (project := each.get("project") or "default") != "default":
                where += f" in the project {project!r}"
            for shared in _shared_by(each, where):
                found.setdefault(shared.source, shared)
    for pool in pools:
        source = (pool.get("config") or {}).get("source")
        if source:
            found.setdefault(source, Shared(source, f"the storage pool {pool['name']!r} has"))
    return list(found.values())


def _shared_by(each: Mapping[str, Any], where: str) -> Iterator[Shared]:
    devices = each.get("expanded_devices") or each.get("devices") or {}
    for name, device in devices.items():
        source = str(device.get("source", ""))
        if device.get("type") == "disk" and source.startswith("/"):
            yield Shared(source, f"the disk device {name!r} of {where} shares")
    config = each.get("expanded_config") or each.get("config") or {}
    raw = str(config.get("raw.lxc", ""))
    for source in _entry_sources(raw):
        yield Shared(source, f"raw.lxc of {where} shares")
    if _MORE_FILES.search(raw):
        yield Shared(None, f"raw.lxc of {where} reads another file, which may share")


def _entry_sources(raw: str) -> Iterator[str]:
    """Host paths in lxc.mount.entry: the source, and options such as lowerdir= and upperdir="""
    for line in _ENTRY.findall(raw):
        fields = line.split()
        for text in fields[:1] + fields[3:4]:
            plain = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
            for word in re.split("[=,:]" if text is not fields[0] else "\n", plain):
                if word.startswith("/"):
                    yield word


def places_of(mounts: Sequence[Mount], source: str) -> list[Place]:
    """Where the files of `source` lie; none if there are none now. OSError if that is not known.

    A source of storage may be a directory, a block device, a ZFS dataset or an LVM volume group.
    """
    if not source.startswith("/"):
        volumes = f"/dev/mapper/{source.replace('-', '--')}-"
        return [
            mount.place
            for mount in mounts
            if f"{mount.source}/".startswith(f"{source}/") or mount.source.startswith(volumes)
        ]
    try:
        real = os.path.realpath(source, strict=True)
        status = os.stat(real)
    except FileNotFoundError:
        return []
    if stat.S_ISBLK(status.st_mode):
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        return [
            Place(mount.device, "/")
            for mount in mounts
            if mount.device == number or os.path.realpath(mount.source) == real
        ]
    return places_below(mounts, real)
