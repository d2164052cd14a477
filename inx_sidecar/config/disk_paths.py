"""Where no disk device of an instance may be mounted: over files that inx reads and writes there.

The sidecar reads generations and roots in the root file system, which alone snapshots, copies and
exports of the instance contain. A volume over one of these directories would hide what a container
writes.
"""

import posixpath
from collections.abc import Iterable, Mapping
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import ConfigError

_NEEDED: Final = (
    paths.STORE_INSIDE,
    paths.PROFILES_INSIDE,
    f"{paths.GCROOTS_INSIDE}/auto",
    "nix/var/nix/daemon-socket",
    paths.BOOT_INSIDE,
)
# What inx and Nix write for a store of its own.
_NEEDED_BY_OWN: Final = (
    *_NEEDED,
    paths.UPPER_INSIDE,
    paths.WORK_INSIDE,
    paths.SHOWN_INSIDE,
    f"{paths.GCROOTS_INSIDE}/inx",
    "nix/var/nix/db",
)


def disk_problem(devices: Mapping[str, Mapping[str, str]], *, own: bool) -> str:
    """One sentence on a disk device that is in the way, empty if there is none. `own`: the instance
    has a store of its own."""
    needed = _NEEDED_BY_OWN if own else _NEEDED
    for name, device in sorted(devices.items()):
        place = posixpath.normpath(f"/{device.get('path', '')}").lstrip("/")
        if device.get("type") == "disk" and place and _hides(place, needed):
            return (
                f"the disk device {name!r} is mounted at /{place}, which would hide the system or "
                f"the roots of the instance; give it another path, or remove it"
            )
    return ""


def check_disks(
    devices: Mapping[str, Mapping[str, str]], instance: str, *, own: bool = False
) -> None:
    """ConfigError if a disk device of `instance` is in the way."""
    problem = disk_problem(devices, own=own)
    if problem:
        raise ConfigError(f"{instance!r}: {problem}")


def _hides(place: str, needed: Iterable[str]) -> bool:
    """Whether a mount at `place` hides one of `needed`; /dev is LXC's in any case."""
    return any(f"{path}/".startswith(f"{place}/") for path in needed) and place != "dev"
