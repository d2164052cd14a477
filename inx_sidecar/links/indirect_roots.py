"""The paths that Nix clients of an instance registered as GC roots: `auto/NAME -> path inside`.

Nix writes them (libstore/gc.cc, addIndirectRoot): NAME is the SHA-1 of the path in Nix's base 32,
the path is whatever text the client sent. The directory on the host is what counts. A copy lives in
the container's own gcroots/auto, so that snapshots, copies and exports carry it; the container can
write that one.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.kernel.rootfs import open_directory, replace_link
from inx_sidecar.kernel.syscalls import opened

NAME: Final = re.compile(r"[0-9a-df-np-sv-z]{32}")
_DIGITS: Final = "0123456789abcdfghijklmnpqrsvwxyz"
_LENGTH: Final = 32

# A link that takes another's place may get the inode number of one before it.
Mark = tuple[int, int]
_AUTO: Final = "auto"
# So many entries that are none of ours may stand in the container's own directory.
_OTHERS: Final = 1000


def name_of(path: str) -> str:
    """What Nix calls the link for `path` in gcroots/auto (libutil/hash.cc, printHash32)."""
    number = int.from_bytes(hashlib.sha1(os.fsencode(path)).digest(), "little")
    return "".join(_DIGITS[number >> 5 * place & 31] for place in reversed(range(_LENGTH)))


def names(uuid: str) -> dict[str, Mark]:
    """Names, and what tells whether a path was registered again. Unfinished links are none."""
    return marks(uuid, (name for name in _listed(uuid) if NAME.fullmatch(name)))


def marks(uuid: str, some: Iterable[str]) -> dict[str, Mark]:
    """The same for those of `some` that are there."""
    found = {}
    for name in some:
        try:
            status = os.lstat(f"{paths.auto_dir(uuid)}/{name}")
        except FileNotFoundError:
            continue
        found[name] = status.st_ino, status.st_ctime_ns
    return found


def _listed(uuid: str) -> list[str]:
    try:
        return os.listdir(paths.auto_dir(uuid))
    except FileNotFoundError:
        return []


def read(uuid: str, some: Iterable[str]) -> dict[str, str]:
    """The registered paths by name, those of `some` that are there."""
    found = {}
    for name in some:
        try:
            found[name] = os.readlink(f"{paths.auto_dir(uuid)}/{name}")
        except OSError:
            continue  # gone, or never a link
    return found


def put(uuid: str, path: str) -> None:
    with opened(os.open(paths.auto_dir(uuid), os.O_PATH | os.O_DIRECTORY)) as auto:
        replace_link(auto, name_of(path), path)


def forget(uuid: str, some: Iterable[str]) -> None:
    for name in some:
        try:
            os.unlink(f"{paths.auto_dir(uuid)}/{name}")
        except FileNotFoundError:
            pass


def read_inside(root: int, instance: str, most: int) -> list[str]:
    """The paths that the container's own copy names, at most `most`; nothing of it is trusted."""
    try:
        place = open_directory(root, f"{paths.GCROOTS_INSIDE}/{_AUTO}", instance)
    except (FileNotFoundError, InstanceError):
        return []
    found: list[str] = []
    with opened(place), opened(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)) as auto:
        with os.scandir(auto) as entries:
            for count, entry in enumerate(entries):
                if len(found) == most or count > 2 * most + _OTHERS:
                    break
                if NAME.fullmatch(entry.name):
                    try:
                        path = os.readlink(entry.name, dir_fd=auto)
                    except OSError:
                        continue
                    if name_of(path) == entry.name:
                        found.append(path)
    return found


def write_inside(root: int, instance: str, add: Iterable[str], remove: Iterable[str]) -> None:
    """Keep the container's own copy; only in a child that has become the container's root."""
    place = f"{paths.GCROOTS_INSIDE}/{_AUTO}"
    with opened(open_directory(root, place, instance, make=True)) as auto:
        for path in add:
            name = name_of(path)
            if not _is(auto, name, path):
                replace_link(auto, name, path)
        for path in remove:
            try:
                os.unlink(name_of(path), dir_fd=auto)
            except FileNotFoundError:
                pass


def _is(auto: int, name: str, path: str) -> bool:
    try:
        return os.readlink(name, dir_fd=auto) == path
    except OSError:
        return False
