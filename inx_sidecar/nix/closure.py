"""All that store paths need to work: their closure, themselves included.

Read from Nix's database, some milliseconds for a thousand paths; by `nix-store` if that cannot be
read, as when its schema has changed. The paths have to be rooted before: else some of what is found
may be gone when it is used.
"""

import logging
import sqlite3
from collections.abc import Sequence
from contextlib import closing

from inx_sidecar.base import paths
from inx_sidecar.base.errors import SystemMissingError, UnsupportedError
from inx_sidecar.base.process import run
from inx_sidecar.nix.store import CLOSURE, STORE_PATH

log = logging.getLogger(__name__)


async def closure(wanted: Sequence[str]) -> frozenset[str]:
    """The store paths that `wanted` need, and these; SystemMissingError if one is not valid."""
    try:
        found = _from_database(wanted)
    except sqlite3.Error as error:
        log.warning("cannot read Nix's database %s (%s): asking nix-store", paths.NIX_DB, error)
        found = await _from_nix_store(wanted)
    for path in wanted:
        if path not in found:
            raise SystemMissingError(f"{path} is not in the store")
    return found


def _from_database(wanted: Sequence[str]) -> frozenset[str]:
    query = CLOSURE.format(",".join("?" * len(wanted)))
    with closing(sqlite3.connect(f"file:{paths.NIX_DB}?mode=ro", uri=True, timeout=5)) as db:
        rows = db.execute(f"{query} select path from ValidPaths where id in closure", wanted)
        return frozenset(path for (path,) in rows)


async def _from_nix_store(wanted: Sequence[str]) -> frozenset[str]:
    lines: list[str] = []
    argv = ["nix-store", "--query", "--requisites", "--", *wanted]
    done = await run(argv, on_line=lines.append)
    if done.status != 0:
        raise UnsupportedError(f"cannot tell what {wanted[0]} needs: {done.output}")
    return frozenset(line for line in lines if STORE_PATH.fullmatch(line))
