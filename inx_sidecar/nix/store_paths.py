"""The syntax of store paths, and which store paths are valid.

Validity is read from Nix's own database, which works while the daemon is stopped, in well under a
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
from inx_sidecar.kernel.syscalls import (
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
    opened,
)

# Nix's base 32 leaves out e, o, t and u; names are checked as in libstore/path.cc.
STORE_PATH: Final = re.compile(
    r"/nix/store/[0-9a-df-np-sv-z]{32}-(?!\.\.?(?:-|/|$))[A-Za-z0-9+._?=-]{1,211}"
)
# The first part of a query; `closure` has the ids of the closure of the paths at the placeholder.
CLOSURE_QUERY: Final = """
    with recursive closure(id) as (
        select id from ValidPaths where path in ({})
        union select reference from Refs join closure on referrer = closure.id
    )
"""
_ELF: Final = b"\x7fELF"
_NO_LINKS: Final = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_IN_TEXT: Final = re.compile(r"(?:/nix/store/)?[0-9a-df-np-sv-z]{32}-[A-Za-z0-9+._?=-]+")
_AT_OR_BELOW: Final = re.compile(rf"({STORE_PATH.pattern})(?:/.*)?", re.DOTALL)


def store_path_of(target: str) -> str | None:
    """The store path that a link with the text `target` roots; None if it roots nothing.

    As in Nix (libstore/gc.cc, findRoots), a path below a store path roots that store path.
    """
    match = _AT_OR_BELOW.fullmatch(target)
    return match[1] if match else None


def split_store_paths(text: str) -> tuple[str, ...]:
    """The store paths in `text`, separated by blanks or commas; other words are ignored."""
    return tuple(word for word in re.split(r"[\s,]+", text) if STORE_PATH.fullmatch(word))


def redact_store_paths(text: str) -> str:
    """`text` without the names of store paths, for readers who must not learn these names."""
    return _IN_TEXT.sub(f"{paths.STORE}/...", text)


def valid_paths(candidates: Iterable[str]) -> frozenset[str]:
    """The valid store paths among `candidates`; UnsupportedError without Nix's database."""
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


def database_version() -> tuple[int, ...]:
    """What changes whenever somebody writes Nix's database: to the file, or to SQLite's log."""
    version: list[int] = []
    for path in (paths.NIX_DB, f"{paths.NIX_DB}-wal"):
        try:
            status = os.stat(path)
        except OSError:
            version.append(0)
        else:
            version += status.st_ino, status.st_size, status.st_mtime_ns
    return tuple(version)


def resolve_toplevel(path: str, instance: str) -> str:
    """The store path that `path`, a store path or a link on the host, leads to.

    A store path need not exist yet. SystemMissingError if a link leads nowhere or elsewhere;
    `instance` is for error texts.
    """
    if STORE_PATH.fullmatch(path):
        return path  # it may be fetched later
    try:
        target = os.path.realpath(path, strict=True)
    except OSError as error:
        reason = error.strerror
        raise SystemMissingError(
            f"the system {path!r} of {instance!r}: {reason}; correct user.inx.system, or make the "
            "link, as by 'nix-build --out-link'"
        ) from None
    if not STORE_PATH.fullmatch(target):
        raise SystemMissingError(
            f"the system {path!r} of {instance!r} leads to {target!r}, which is no store path; "
            "a source goes into user.inx.flake or user.inx.file"
        )
    return target


def is_in(path: str, name: str) -> bool:
    """Whether the store path `path`, a directory, has an entry `name`, which may have steps.

    No link in it is followed. Every container may add store paths: links in them may lead, by
    /proc/PID/root, into the file systems of a container, which need not answer.
    """
    store, own_name = os.path.split(path)
    try:
        with opened(os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
            flags = os.O_PATH | os.O_NOFOLLOW
            with opened(openat2(directory, f"{own_name}/{name}", flags, _NO_LINKS)):
                return True
    except OSError:
        return False


def check_toplevel(path: str, subject: str) -> None:
    """SystemMissingError if `path` is not a NixOS system that a container can boot.

    `subject` is the beginning of the error.
    """
    if not is_in(path, "init"):
        raise SystemMissingError(
            f"{subject} is {path}, which is not a NixOS system: it has no 'init'; name what "
            "config.system.build.toplevel gives"
        )
    # With nixos-init, init is systemd, and only the initrd makes what systemd needs. Without
    # nixos-init, hooks/init runs prepare-root (nixpkgs, nixos/modules/system/activation).
    if is_in(path, "initrd") and not is_in(path, "prepare-root") and _is_elf(path, "init"):
        raise SystemMissingError(
            f"{subject} is {path}, which boots by an initrd only; set boot.isContainer = true and "
            "system.nixos-init.enable = false in its configuration"
        )


def _is_elf(path: str, name: str) -> bool:
    """Whether the file `name` of the store path `path` is a binary program (elf(5))."""
    try:
        with opened(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)) as directory:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
            with opened(openat2(directory, name, flags, _NO_LINKS)) as fd:
                return os.read(fd, len(_ELF)) == _ELF
    except OSError:
        return False
