"""What a path in the Nix store looks like, and which ones the store holds.

Validity is read from Nix's own database: it works with the daemon stopped and takes well under a
millisecond. Schema 10 of `ValidPaths` and `Refs` is unchanged since Nix 2.0 (libstore/schema.sql).
"""

import os
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import SystemMissingError, UnsupportedError

# Nix's base 32 leaves out e, o, t and u; names are checked as in libstore/path.cc.
STORE_PATH: Final = re.compile(
    r"/nix/store/[0-9a-df-np-sv-z]{32}-(?!\.\.?(?:-|/|$))[A-Za-z0-9+._?=-]{1,211}"
)
# The first part of a query: the ids of all that the paths need, themselves included.
CLOSURE: Final = """
    with recursive closure(id) as (
        select id from ValidPaths where path in ({})
        union select reference from Refs join closure on referrer = closure.id
    )
"""
_NAMED: Final = re.compile(r"(?:/nix/store/)?[0-9a-df-np-sv-z]{32}-[A-Za-z0-9+._?=-]+")
_BELOW: Final = re.compile(rf"({STORE_PATH.pattern})(?:/.*)?", re.DOTALL)


def store_path_of(target: str) -> str | None:
    """The store path that a link with this text holds, as Nix sees it (libstore/gc.cc, findRoots):
    what lies below a store path counts as that path."""
    match = _BELOW.fullmatch(target)
    return match[1] if match else None


def listed(text: str) -> tuple[str, ...]:
    """The store paths in a list with blanks or commas between them; what is none is left out."""
    return tuple(word for word in re.split(r"[\s,]+", text) if STORE_PATH.fullmatch(word))


def redact_store_paths(text: str) -> str:
    """`text` without the names of store paths: for those who may not learn which there are."""
    return _NAMED.sub(f"{paths.STORE}/...", text)


def valid_paths(candidates: Iterable[str]) -> frozenset[str]:
    """Those of `candidates` that Nix knows as complete."""
    wanted = [path for path in set(candidates) if STORE_PATH.fullmatch(path)]
    if not wanted:
        return frozenset()
    try:
        with closing(sqlite3.connect(f"file:{paths.NIX_DB}?mode=ro", uri=True, timeout=5)) as db:
            return frozenset(
                path
                for path in wanted
                if db.execute("select 1 from ValidPaths where path = ?", (path,)).fetchone()
            )
    except sqlite3.Error as error:
        raise UnsupportedError(f"cannot read Nix's database {paths.NIX_DB}: {error}") from None


def resolve(path: str, instance: str) -> str:
    """The store path of the toplevel that `path`, a store path or a link on the host, leads to."""
    if STORE_PATH.fullmatch(path):
        return path  # perhaps not there yet: it may be fetched
    try:
        target = os.path.realpath(path, strict=True)
    except OSError as error:
        reason = error.strerror
        raise SystemMissingError(f"the system {path!r} of {instance!r}: {reason}") from None
    if not STORE_PATH.fullmatch(target):
        raise SystemMissingError(
            f"the system {path!r} of {instance!r} leads to {target!r}, which is no store path"
        )
    return target


def check_toplevel(path: str, what: str) -> None:
    """Refuse a store path that is not a NixOS system; `what` names it in the message."""
    if not os.path.lexists(f"{path}/init"):
        raise SystemMissingError(f"{what} is {path}, which is not a NixOS system: it has no 'init'")
