"""How much of the store each instance keeps alone: what a collection would delete without it."""

import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, TypeVar

from inx_sidecar.base import paths
from inx_sidecar.nix.store_paths import store_path_of

_Owner = TypeVar("_Owner")

_IDENTITY: Final = "select id from ValidPaths where path = ?"
_REFERENCES: Final = "select reference from Refs where referrer = ?"
_SHARED: Final = -1


def held_bytes(
    db: sqlite3.Connection, roots: Mapping[_Owner, Collection[str]], others: Collection[str]
) -> dict[_Owner, int]:
    """The size of what only the roots of one owner keep, in bytes of its NAR serialisation.

    `roots` and `others` are store paths; `others` are those of the host itself. A path that is not
    valid has no size. sqlite3.Error if Nix's database cannot be read.
    """
    owners = list(roots)
    # The id of each path that has a root, and the number of its only owner.
    only: dict[int, int] = {}
    _mark(db, only, others, _SHARED)
    for number, owner in enumerate(owners):
        _mark(db, only, roots[owner], number)
    sizes = dict.fromkeys(owners, 0)
    for identity, size in db.execute("select id, narSize from ValidPaths"):
        if (number := only.get(identity, _SHARED)) != _SHARED:
            sizes[owners[number]] += size or 0
    return sizes


def _mark(db: sqlite3.Connection, only: dict[int, int], roots: Iterable[str], number: int) -> None:
    """Note in `only` that an owner keeps the closure of `roots`.

    Each path is entered at most twice, by its first owner and by its second one: what a shared path
    refers to is shared already.
    """
    waiting = [row[0] for path in roots if (row := db.execute(_IDENTITY, (path,)).fetchone())]
    while waiting:
        identity = waiting.pop()
        before = only.get(identity)
        if before in (number, _SHARED):
            continue
        only[identity] = number if before is None else _SHARED
        waiting += (reference for (reference,) in db.execute(_REFERENCES, (identity,)))


def host_roots() -> set[str]:
    """The store paths that roots of the host keep, without those of inx.

    Nix looks at the same places (libstore/gc.cc, findRootsNoTemp). What only processes use is left
    out: it is kept for a moment.
    """
    places = [f"{paths.NIX_STATE}/gcroots", f"{paths.NIX_STATE}/profiles"]
    return set(_found(places))


def _found(places: list[str]) -> Iterator[str]:
    while places:
        try:
            entries = list(os.scandir(places.pop()))
        except OSError:
            continue  # it was removed meanwhile
        for entry in entries:
            if entry.is_symlink():
                yield from filter(None, [_rooted(entry.path)])
            elif entry.is_dir(follow_symlinks=False) and entry.path != paths.GCROOTS:
                places.append(entry.path)


def _rooted(link: str) -> str | None:
    """The store path that `link` roots, by itself or by the link that it names."""
    try:
        target = os.path.join(os.path.dirname(link), os.readlink(link))
        return store_path_of(target) or store_path_of(os.readlink(target))
    except OSError:
        return None
