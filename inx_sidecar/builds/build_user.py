"""The user who evaluates the configuration of an instance.

An evaluation of Nix code reads files and runs git with the rights of its user. So a source on this
host is evaluated as the one user who owns all of it, provided that nobody else, beside root, could
have put it there. Every other source is evaluated as the unprivileged `build_user`.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base.errors import BuildError, UnsupportedError
from inx_sidecar.config.settings import Settings
from inx_sidecar.config.spec import Flake, NixFile, Source

# As the kernel: path_resolution(7).
_MAX_LINKS: Final = 40
_WRITABLE_BY_OTHERS: Final = 0o022


@dataclass(frozen=True)
class BuildUser:
    """A user of the host, as passwd(5) describes one."""

    name: str
    uid: int
    gid: int
    home: str


def build_user_of(source: Source, settings: Settings) -> BuildUser:
    """The user who evaluates and builds `source`.

    BuildError if the flake does not exist, UnsupportedError if the user does not exist.
    """
    match source:
        case Flake():
            directory = source.directory()
            place = None if directory is None else f"{directory}/flake.nix"
            # Nix would search the directories above, which may be anybody's.
            if place is not None and not os.path.exists(place):
                raise BuildError(f"there is no {place}")
        case NixFile():
            place = source.path
        case _:
            place = None
    owner = None if place is None else sole_owner(place)
    try:
        entry = pwd.getpwnam(settings.build_user) if owner is None else pwd.getpwuid(owner)
    except KeyError:
        user = settings.build_user if owner is None else f"{owner}, who owns {place}"
        raise UnsupportedError(f"there is no user {user}, to build as") from None
    return BuildUser(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def sole_owner(path: str) -> int | None:
    """The id of the only user, beside root, who decides what `path` leads to; None if several do.

    A user who owns or may write to a directory or a link on the way could exchange what lies below
    it between this look and the evaluation, and have it evaluated with another user's rights.
    """
    owners: set[int] = set()
    for step in _steps(path):
        try:
            status = os.lstat(step)
        except OSError:
            return None
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        writable = status.st_mode & _WRITABLE_BY_OTHERS and not stat.S_ISLNK(status.st_mode)
        if writable and not sticky:
            return None
        owners.add(status.st_uid)
    # In a sticky directory nobody can exchange another user's file, but everybody can add a file
    # for the flake or the Nix file to import.
    end = os.path.realpath(path)
    directory = end if os.path.isdir(end) else os.path.dirname(end)
    others = owners - {0}
    if len(others) > 1 or os.stat(directory).st_mode & _WRITABLE_BY_OTHERS:
        return None
    return others.pop() if others else 0


def _steps(path: str) -> Iterator[str]:
    """Every directory and link that a lookup of `path` passes, and its end."""
    remaining = _components(path)
    current = ""
    links = 0
    yield "/"
    while remaining:
        component = remaining.pop()
        if component == "..":
            current = os.path.dirname(current)
            continue
        step = f"{current}/{component}"
        yield step
        if os.path.islink(step) and links < _MAX_LINKS:
            links += 1
            target = os.readlink(step)
            current = "" if target.startswith("/") else current
            remaining += _components(target)
        else:
            current = step


def _components(path: str) -> list[str]:
    """The components of `path`, the first one last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]
