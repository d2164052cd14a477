"""What changed in the directory of an instance's registrations since the last look.

A container may have any number of registrations made. So the event loop looks at a small directory
alone; at a larger one, a forked child looks.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from inx_sidecar.base import paths
from inx_sidecar.kernel import forked
from inx_sidecar.links.indirect_roots import NAME, Mark, marks

# The event loop looks at so many entries in about two milliseconds.
_FEW: Final = 500


@dataclass(frozen=True)
class Changes:
    """`made`: the registrations that were made, or made again, since they were known with their
    marks; the oldest first. `gone`: the known ones that do not exist any more.

    `overfull`: the directory has too many entries, and the changes are not known.
    """

    made: dict[str, Mark]
    gone: frozenset[str]
    overfull: bool = False


async def find_changes(uuid: str, lxc_name: str, known: Mapping[str, Mark], most: int) -> Changes:
    """The changes of the registrations of an instance, of which the marks in `known` are known.

    If the directory has more than `most` entries, it is overfull. OSError or MountError if it
    cannot be looked at.
    """
    names = _first_names(uuid, min(most, _FEW))
    if names is not None:
        return _changes(known, marks(uuid, names))

    def look() -> forked.Result:
        every = _first_names(uuid, most)
        if every is None:
            return None, []
        found = _changes(known, marks(uuid, every))
        return [list(found.made.items()), list(found.gone)], []

    action = f"listing what {lxc_name!r} has registered"
    answer, _ = await forked.run_in_child(look, action)
    return _parse(answer)


def _first_names(uuid: str, most: int) -> list[str] | None:
    """The names in the directory of registrations; None if it has more than `most` entries.

    The temporary names of links that Nix is about to rename are left out.
    """
    try:
        with os.scandir(paths.auto_dir(uuid)) as entries:
            names = [entry.name for entry in islice(entries, most + 1)]
    except FileNotFoundError:
        return []
    return None if len(names) > most else [name for name in names if NAME.fullmatch(name)]


def _changes(known: Mapping[str, Mark], now: Mapping[str, Mark]) -> Changes:
    made = sorted(
        ((name, mark) for name, mark in now.items() if known.get(name) != mark),
        key=lambda item: item[1],
    )
    return Changes(dict(made), frozenset(known.keys() - now.keys()))


def _parse(answer: Any) -> Changes:
    if answer is None:
        return Changes({}, frozenset(), overfull=True)
    made, gone = answer
    return Changes(dict(made), frozenset(gone))
