"""The closure of store paths: these paths and all that they refer to, directly or not.

The closure is read from Nix's database, which takes some milliseconds for a thousand paths. If the
database cannot be read, as with a new schema, `nix-store` is asked. The caller roots the paths
first, so that no part of the closure is collected before it is used.
"""

import asyncio
import logging
import re
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import closing
from typing import Final, NamedTuple

from inx_sidecar.base import paths
from inx_sidecar.base.errors import SystemMissingError, UnsupportedError
from inx_sidecar.base.process import run
from inx_sidecar.nix.store_paths import CLOSURE_QUERY, STORE_PATH

# A container may make a closure of any size.
_COMPARED_MAX: Final = 100_000
# So many registrations are read in less than ten milliseconds.
_READ_AT_ONCE: Final = 2000
# SQLite takes at least so many parameters (https://www.sqlite.org/limits.html, since 3.32).
_PARAMETERS_MAX: Final = 30_000
# Whoever may use a Nix daemon of this host can add any text to the signatures of any path
# (libstore/daemon.cc, AddSignatures).
_SIGNATURES_MAX: Final = 8192
_SIGNATURE: Final = re.compile(rb"[!-9;-~]+:[A-Za-z0-9+/]+={0,2}")

log = logging.getLogger(__name__)


async def closure_of(wanted: Sequence[str]) -> frozenset[str]:
    """The closure of `wanted`.

    SystemMissingError if one of the paths is not valid; UnsupportedError if neither the database
    nor `nix-store` gives an answer.
    """
    try:
        found = _read_from_database(wanted)
    except sqlite3.Error as error:
        log.warning("cannot read Nix's database %s (%s): asking nix-store", paths.NIX_DB, error)
        found = await _ask_nix_store(wanted)
    for path in wanted:
        if path not in found:
            raise SystemMissingError(f"{path} is not in the store")
    return found


async def sizes_of(systems: Sequence[str]) -> list[dict[str, int]]:
    """The store paths in the closure of each of `systems`, with their sizes in bytes.

    A thread reads them: twenty thousand paths take half a second. SystemMissingError if one of
    `systems` is not valid; UnsupportedError if the database cannot be read, or a closure has too
    many paths.
    """
    return await asyncio.to_thread(_read_sizes, systems)


def _read_sizes(systems: Sequence[str]) -> list[dict[str, int]]:
    query = CLOSURE_QUERY.format("?") + "select path, narSize from closure join ValidPaths using "
    found = []
    try:
        with closing(sqlite3.connect(f"file:{paths.NIX_DB}?mode=ro", uri=True, timeout=5)) as db:
            for system in systems:
                rows = db.execute(f"{query} (id) limit ?", (system, _COMPARED_MAX + 1))
                found.append({path: size or 0 for path, size in rows})
    except sqlite3.Error as error:
        raise UnsupportedError(f"cannot read Nix's database {paths.NIX_DB}: {error}") from None
    for system, sizes in zip(systems, found, strict=True):
        if not sizes:
            raise SystemMissingError(f"{system} is not in the store")
        if len(sizes) > _COMPARED_MAX:
            raise UnsupportedError(f"the closure of {system} has over {_COMPARED_MAX} store paths")
    return found


class Registration(NamedTuple):
    """What Nix's database says of a valid path: the name of the path, the hash and the size of its
    archive, when it was registered, signatures and content address (libstore/path-info.hh).

    `references` are names. The deriver is left out: it is the name of another path. So are texts
    among the signatures that are none (NAME:BASE64), and all of them if they are too long.
    """

    name: str
    nar_hash: str
    registered: int
    size: int | None
    signatures: str
    content_address: str
    references: tuple[str, ...]


async def registrations_of(names: Collection[str]) -> list[Registration]:
    """The registrations of the store paths that have these names, in the order of the names.

    References to other paths are left out. SystemMissingError if one is not valid;
    UnsupportedError if the database cannot be read.
    """
    if len(names) <= _READ_AT_ONCE:
        return _read_registrations(names)
    return await asyncio.to_thread(_read_registrations, names)


def _read_registrations(names: Collection[str]) -> list[Registration]:
    wanted = [f"{paths.STORE}/{name}" for name in sorted(names)]
    rows: list[tuple[int, str, str, int, int | None, bytes | None, str | None]] = []
    references = defaultdict(list)
    try:
        with closing(sqlite3.connect(f"file:{paths.NIX_DB}?mode=ro", uri=True, timeout=5)) as db:
            for start in range(0, len(wanted), _PARAMETERS_MAX):
                part = wanted[start : start + _PARAMETERS_MAX]
                query = (
                    "select id, path, hash, registrationTime, narSize, "
                    f"case when length(cast(sigs as blob)) <= {_SIGNATURES_MAX} "
                    "then cast(sigs as blob) end, ca from ValidPaths "
                    f"where path in ({','.join('?' * len(part))})"
                )
                rows += db.execute(query, part)
            name_of = {number: path.rpartition("/")[2] for number, path, *_ in rows}
            db.execute("pragma temp_store = memory")
            db.execute("create temp table wanted (id integer primary key)")
            db.executemany("insert into wanted values (?)", ((number,) for number in name_of))
            query = "select referrer, reference from wanted join Refs on referrer = wanted.id"
            for referrer, reference in db.execute(query):
                if reference in name_of:
                    references[referrer].append(name_of[reference])
    except sqlite3.Error as error:
        raise UnsupportedError(f"cannot read Nix's database {paths.NIX_DB}: {error}") from None
    if len(rows) < len(wanted):
        gone = min({*wanted} - {path for _, path, *_ in rows})
        raise SystemMissingError(f"{gone} is not in the store")
    found = [
        Registration(
            name_of[number], nar_hash, registered, size, _signatures(sigs or b""), ca or "",
            tuple(sorted(references[number])),
        )
        for number, _, nar_hash, registered, size, sigs, ca in rows
    ]  # fmt: skip
    return sorted(found)


def _signatures(text: bytes) -> str:
    return b" ".join(word for word in text.split(b" ") if _SIGNATURE.fullmatch(word)).decode()


def _read_from_database(wanted: Sequence[str]) -> frozenset[str]:
    query = CLOSURE_QUERY.format(",".join("?" * len(wanted)))
    with closing(sqlite3.connect(f"file:{paths.NIX_DB}?mode=ro", uri=True, timeout=5)) as db:
        rows = db.execute(f"{query} select path from ValidPaths where id in closure", wanted)
        return frozenset(path for (path,) in rows)


async def _ask_nix_store(wanted: Sequence[str]) -> frozenset[str]:
    lines: list[str] = []
    argv = ["nix-store", "--query", "--requisites", "--", *wanted]
    done = await run(argv, on_line=lines.append)
    if done.status != 0:
        raise UnsupportedError(f"cannot tell what {wanted[0]} needs: {done.output}")
    return frozenset(line for line in lines if STORE_PATH.fullmatch(line))
