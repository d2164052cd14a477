"""The paths that Nix clients of an instance registered as GC roots: `auto/NAME -> path inside`.

Nix calls them indirect roots (libstore/gc.cc, addIndirectRoot): NAME is the SHA-1 of the path in
Nix's base 32; the path is any text that the client sent. Only the directory on the host counts.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.kernel.safe_open import replace_link
from inx_sidecar.kernel.syscalls import opened

NAME: Final = re.compile(r"[0-9a-df-np-sv-z]{32}")
_DIGITS: Final = "0123456789abcdfghijklmnpqrsvwxyz"
_LENGTH: Final = 32

# Change time and inode number: a link that replaces another one may get the former inode number.
# One number for both takes half of the memory, and the larger mark is the later one.
Mark = int


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
        found[name] = status.st_ctime_ns << 64 | status.st_ino
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


def exists(uuid: str, path: str) -> bool:
    return os.path.lexists(f"{paths.auto_dir(uuid)}/{name_of(path)}")


def put(uuid: str, path: str) -> None:
    with opened(os.open(paths.auto_dir(uuid), os.O_PATH | os.O_DIRECTORY)) as auto:
        replace_link(auto, name_of(path), path)


def forget(uuid: str, some: Iterable[str]) -> None:
    for name in some:
        try:
            os.unlink(f"{paths.auto_dir(uuid)}/{name}")
        except FileNotFoundError:
            pass
