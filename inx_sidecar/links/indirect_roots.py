"""The paths that Nix clients of an instance registered as GC roots: `auto/NAME -> path inside`.

Nix calls them indirect roots (libstore/gc.cc, addIndirectRoot): NAME is the SHA-1 of the path in
Nix's base 32; the path is any text that the client sent. Only the directory on the host counts. The
container's own gcroots/auto has a copy, so that snapshots, copies and exports carry it; the
container can write that copy.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.kernel.safe_open import open_directory, replace_link
from inx_sidecar.kernel.syscalls import opened

NAME: Final = re.compile(r"[0-9a-df-np-sv-z]{32}")
_DIGITS: Final = "0123456789abcdfghijklmnpqrsvwxyz"
_LENGTH: Final = 32

# Inode number and change time: a link that replaces another one may get the former inode number.
Mark = tuple[int, int]
_AUTO: Final = "auto"
# At most this many entries that are no registrations are skipped in the container's own directory.
_MAX_OTHERS: Final = 1000


def name_of(path: str) -> str:
    """What Nix calls the link for `path` in gcroots/auto (libutil/hash.cc, printHash32)."""
    number = int.from_bytes(hashlib.sha1(os.fsencode(path)).digest(), "little")
    return "".join(_DIGITS[number >> 5 * place & 31] for place in reversed(range(_LENGTH)))


def names(uuid: str) -> dict[str, Mark]:
    """All names, each with a mark that changes when its path is registered again. The temporary
    names of links that Nix is about to rename are left out."""
    return marks(uuid, (name for name in _listed(uuid) if NAME.fullmatch(name)))


def marks(uuid: str, some: Iterable[str]) -> dict[str, Mark]:
    """The marks of those of the names `some` that exist."""
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
    """The registered paths of those of the names `some` that exist."""
    found = {}
    for name in some:
        try:
            found[name] = os.readlink(f"{paths.auto_dir(uuid)}/{name}")
        except OSError:
            continue  # it is gone, or is no link
    return found


def put(uuid: str, path: str) -> None:
    with opened(os.open(paths.auto_dir(uuid), os.O_PATH | os.O_DIRECTORY)) as auto:
        replace_link(auto, name_of(path), path)


def import_from(rootfs: str, lxc_name: str, uuid: str, most: int) -> None:
    """Register what the copy in the root file system names and the host does not know: an instance
    that was copied, imported or restored brings it along. OSError if that cannot be read."""
    with opened(os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        brought = read_inside(root, lxc_name, most)
    known = names(uuid)
    for path in brought:
        if name_of(path) not in known:
            put(uuid, path)


def forget(uuid: str, some: Iterable[str]) -> None:
    for name in some:
        try:
            os.unlink(f"{paths.auto_dir(uuid)}/{name}")
        except FileNotFoundError:
            pass


def read_inside(root: int, instance: str, most: int) -> list[str]:
    """The paths in the container's own copy, at most `most`; a name that is not that of its path is
    left out."""
    try:
        place = open_directory(root, f"{paths.GCROOTS_INSIDE}/{_AUTO}", instance)
    except (FileNotFoundError, InstanceError):
        return []
    found: list[str] = []
    with opened(place), opened(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)) as auto:
        with os.scandir(auto) as entries:
            for count, entry in enumerate(entries):
                if len(found) == most or count > 2 * most + _MAX_OTHERS:
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
    """Change the container's own copy; only in a child that has become the container's root."""
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
