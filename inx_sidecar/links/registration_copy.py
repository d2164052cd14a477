"""The copy of its registrations in the root file system of an instance, in its own gcroots/auto.

Snapshots, copies and exports carry it. The container can write it, and may fill it: so the event
loop reads a small one alone; a forked child reads a larger one.
"""

import os
from collections.abc import Iterable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.safe_open import open_directory, set_link
from inx_sidecar.kernel.syscalls import opened
from inx_sidecar.links import indirect_roots
from inx_sidecar.links.indirect_roots import NAME, name_of

_PLACE: Final = f"{paths.GCROOTS_INSIDE}/auto"
# The event loop reads so many entries in a few milliseconds.
_FEW: Final = 500
# At most so many entries that are no registrations are skipped.
_MAX_OTHERS: Final = 1000
_SECONDS: Final = 60.0


async def import_registrations(rootfs: str, lxc_name: str, uuid: str, most: int) -> None:
    """Register what the copy names and the host does not know: an instance that was copied,
    imported or restored brings it along. OSError or MountError if that cannot be done."""
    paths_inside, complete = _read(rootfs, lxc_name, _FEW)
    if complete:
        _register(uuid, paths_inside)
        return

    def import_all() -> forked.Result:
        _register(uuid, _read(rootfs, lxc_name, most)[0])
        return None, []

    action = f"reading which roots {lxc_name!r} brings along"
    await forked.run_in_child(import_all, action, _SECONDS)


async def read_copy(rootfs: str, lxc_name: str, most: int) -> list[str]:
    """The paths in the copy, at most `most`; a name that is not that of its path is left out.

    FileNotFoundError if the root file system is not mounted.
    """
    found, complete = _read(rootfs, lxc_name, min(most, _FEW))
    if complete or most <= _FEW:
        return found

    def read_all() -> forked.Result:
        return _read(rootfs, lxc_name, most)[0], []

    every, _ = await forked.run_in_child(read_all, f"reading the roots of {lxc_name!r}", _SECONDS)
    return list(every)


def write_copy(root: int, instance: str, add: Iterable[str], remove: Iterable[str]) -> None:
    """Change the copy below `root`; only in a child that has become the container's root."""
    with opened(open_directory(root, _PLACE, instance, make=True)) as auto:
        for path in add:
            set_link(auto, name_of(path), path)
        for path in remove:
            try:
                os.unlink(name_of(path), dir_fd=auto)
            except FileNotFoundError:
                pass


def _read(rootfs: str, instance: str, most: int) -> tuple[list[str], bool]:
    """As `read_copy`, and whether that is all that the copy has."""
    with opened(os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        try:
            place = open_directory(root, _PLACE, instance)
        except (FileNotFoundError, InstanceError):
            return [], True
    found: list[str] = []
    with opened(place), opened(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)) as auto:
        with os.scandir(auto) as entries:
            for count, entry in enumerate(entries):
                if len(found) == most or count > 2 * most + _MAX_OTHERS:
                    return found, False
                if NAME.fullmatch(entry.name):
                    try:
                        path = os.readlink(entry.name, dir_fd=auto)
                    except OSError:
                        continue
                    if name_of(path) == entry.name:
                        found.append(path)
    return found, True


def _register(uuid: str, paths_inside: Iterable[str]) -> None:
    for path in paths_inside:
        if not indirect_roots.exists(uuid, path):
            indirect_roots.put(uuid, path)
