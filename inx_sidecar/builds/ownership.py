"""The one user who decides what a path leads to."""

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final

# As the kernel: path_resolution(7).
_MAX_LINKS: Final = 40
_MAX_ENTRIES: Final = 200_000
_WRITABLE_BY_OTHERS: Final = 0o022


def sole_owner(path: str) -> int | None:
    """The id of the only user, beside root, who decides what `path` leads to; None if several do.

    A user who owns or may write to a directory or a link on the way could exchange what lies below
    it between this look and the evaluation, and have it evaluated with another user's rights.
    """
    owners: set[int] = set()
    for step in steps_to(path):
        try:
            status = os.lstat(step)
        except OSError:
            return None
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        writable = status.st_mode & _WRITABLE_BY_OTHERS and not stat.S_ISLNK(status.st_mode)
        if (writable and not sticky) or has_other_names(status):
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


def has_other_names(status: os.stat_result) -> bool:
    """Whether a file has hard links: one of them may lie where an instance can write."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink > 1


def only_owner(paths: Iterable[str]) -> int | None:
    """The id of the only user, beside root, who decides what any of `paths` leads to; None if
    several do."""
    owners = {sole_owner(path) for path in paths}
    others = owners - {0}
    if len(others) > 1:
        return None
    return others.pop() if others else 0


def entry_of_others(tree: str, owner: int, *, is_git: bool = False) -> str:
    """A file or a directory below `tree` that a user beside root and `owner` can change, or that
    has hard links; empty if there is none.

    Objects of git may have hard links: a clone of a directory makes them. `is_git` says that `tree`
    is a directory of git. A tree with more entries than can be looked at counts as changed.
    """
    left = _MAX_ENTRIES
    objects: tuple[str, ...] = ()
    for place, directories, files in os.walk(tree):
        left -= len(directories) + len(files)
        if left < 0:
            return f"the {_MAX_ENTRIES} files and more of {tree}"
        in_git = is_git or "/.git/" in f"{place.removeprefix(tree)}/"
        if in_git and "HEAD" in files and "objects" in directories:
            objects += (f"{place}/objects/",)
        for name in (*directories, *files):
            try:
                status = os.lstat(f"{place}/{name}")
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(status.st_mode):
                continue
            if status.st_uid not in (0, owner) or status.st_mode & _WRITABLE_BY_OTHERS:
                return f"{place}/{name}"
            if has_other_names(status) and not f"{place}/".startswith(objects):
                return f"{place}/{name}, which has hard links"
    return ""


def steps_to(path: str) -> Iterator[str]:
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
