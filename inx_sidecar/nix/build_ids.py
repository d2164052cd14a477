"""User ids for the builds of each instance: no other instance, and nobody else, has them.

/var/lib/inx/build-ids has a link for each range of ids. Its name is the first id, its text the uuid
of the instance. A link is made in one step, so a range never has two instances. Threads of the
sidecar, the only process that writes here, take turns.
"""

import os
import pwd
import threading
from collections.abc import Callable, Iterable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError

# Each instance has so many, used or not, so that `builds_per_instance` can be changed.
IDS: Final = 32
# Between the ids of 16 bits and those that useradd gives to users of containers (SUB_UID_MIN in
# login.defs(5)); systemd's docs/UIDS-GIDS.md calls them unused.
_REGION: Final = 100_000 - 65_536

_turn: Final = threading.Lock()


def take(uuid: str, first: int, is_deleted: Callable[[str], bool]) -> range:
    """The ids of instance `uuid`, within the region that begins with `first`.

    Ids of an instance for which `is_deleted` is true are given away again. UnsupportedError if no
    range is free.
    """
    with _turn:
        return _take(uuid, first, is_deleted)


def _take(uuid: str, first: int, is_deleted: Callable[[str], bool]) -> range:
    os.makedirs(paths.BUILD_IDS, mode=0o700, exist_ok=True)
    owners = {int(name): os.readlink(f"{paths.BUILD_IDS}/{name}") for name in _ranges()}
    region = range(first, first + _REGION - IDS + 1, IDS)
    own = [start for start, owner in owners.items() if owner == uuid and start in region]
    if own:
        return range(min(own), min(own) + IDS)
    for start, owner in owners.items():
        if owner == uuid or is_deleted(owner):
            os.unlink(f"{paths.BUILD_IDS}/{start}")
    taken = [range(int(name), int(name) + IDS) for name in _ranges()]
    taken += _subordinate_ids()
    for start in region:
        ids = range(start, start + IDS)
        if not any(_overlap(ids, other) for other in taken) and not any(map(_is_user, ids)):
            os.symlink(uuid, f"{paths.BUILD_IDS}/{start}")
            return ids
    raise UnsupportedError(
        f"no user ids for the builds of {uuid} are free from {first} on; set 'first_build_id' in "
        f"{paths.CONFIG}"
    )


def _ranges() -> list[str]:
    return [name for name in os.listdir(paths.BUILD_IDS) if name.isdecimal()]


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _is_user(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _subordinate_ids() -> Iterable[range]:
    """The ids in /etc/subuid (subuid(5)): USER:FIRST:COUNT."""
    try:
        with open("/etc/subuid") as file:
            rows = [line.strip().split(":") for line in file]
    except OSError:
        return []
    return [
        range(int(row[1]), int(row[1]) + int(row[2]))
        for row in rows
        if len(row) == 3 and row[1].isdecimal() and row[2].isdecimal()
    ]
