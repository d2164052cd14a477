"""The generations of a container's system: links of a Nix profile in the container's rootfs.

`system` -> `system-N-link` -> store path, as Nix writes them. So snapshots, copies and exports
carry the system and its history, and `nix-env --list-generations` and `nixos-rebuild --rollback`
work inside. Three more kinds of links are inx's own: `system-source` has a fingerprint of the
source that was built last, `system-pinned` says that `user.inx.generation` chose the current
generation, and `system-N-seal` shows that inx wrote generation N (seals.py).

The container can write all of these links. inx reads their text and never follows them, and writes
them only in a process that has become the container's root.
"""

import heapq
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.kernel.safe_open import open_listable, open_rootfs, read_link
from inx_sidecar.kernel.syscalls import opened
from inx_sidecar.nix.store_paths import STORE_PATH

LINK: Final = re.compile(r"system-([1-9][0-9]{0,8})-link")
_SEAL: Final = re.compile(r"system-([1-9][0-9]{0,8})-seal")
SOURCE: Final = "system-source"
PINNED: Final = "system-pinned"
_MAX_ENTRIES: Final = 10_000
# The host looks at so many generations, the newest, and at the current one.
_MOST: Final = 1000


@dataclass(frozen=True)
class Generations:
    """What the links of a profile say.

    `links` has the system of each generation whose link names a top-level store path. `current` is
    the number of the current generation. `fingerprint` is that of the source that was built last.
    `left_seals` has the numbers of seals that have no generation, as after `nix-env
    --delete-generations`.
    """

    links: Mapping[int, str] = field(default_factory=dict)
    current: int | None = None
    fingerprint: str | None = None
    pinned: bool = False
    seals: Mapping[int, str] = field(default_factory=dict)
    left_seals: tuple[int, ...] = ()

    def with_valid_seals(self, counts: Callable[[str, str], bool]) -> "Generations":
        """The generations for whose system and seal `counts` is true."""
        links = {
            number: system
            for number, system in self.links.items()
            if number in self.seals and counts(system, self.seals[number])
        }
        return replace(self, links=links, current=self.current if self.current in links else None)

    @property
    def system(self) -> str | None:
        return None if self.current is None else self.links[self.current]

    @property
    def newest(self) -> int | None:
        return max(self.links, default=None)


def read(rootfs: str, instance: str) -> Generations:
    """The newest generations in `rootfs`, the root file system of a running or stopped instance.

    InstanceError if the profile cannot be read; a missing one has no generations.
    """
    with opened(open_rootfs(rootfs, instance)) as root:
        try:
            profiles = open_listable(root, paths.PROFILES_INSIDE, instance)
        except FileNotFoundError:
            return Generations()
    with opened(profiles):
        return read_links(profiles, instance, _MOST)


def read_links(
    dir_fd: int, instance: str = "the instance", most: int = _MAX_ENTRIES
) -> Generations:
    """The generations in the profile directory `dir_fd`: the current one, and the newest, `most` of
    them. InstanceError if the directory has too many files."""
    numbers: set[int] = set()
    sealed: set[int] = set()
    with os.scandir(dir_fd) as entries:
        for count, entry in enumerate(entries):
            if count == _MAX_ENTRIES:
                raise InstanceError(
                    f"/{paths.PROFILES_INSIDE} of {instance!r} holds over {_MAX_ENTRIES} entries; "
                    "remove what does not belong there"
                )
            if match := LINK.fullmatch(entry.name):
                numbers.add(int(match[1]))
            elif match := _SEAL.fullmatch(entry.name):
                if entry.is_symlink():
                    sealed.add(int(match[1]))
    selected = LINK.fullmatch(os.path.basename(read_link(dir_fd, "system") or ""))
    chosen = {int(selected[1])} & numbers if selected else set()
    links: dict[int, str] = {}
    for number in chosen.union(heapq.nlargest(most, numbers)):
        target = read_link(dir_fd, f"system-{number}-link")
        if target and STORE_PATH.fullmatch(target):
            links[number] = target
    seals = {number: read_link(dir_fd, f"system-{number}-seal") for number in links}
    return Generations(
        links=links,
        current=next(iter(chosen & links.keys()), None),
        fingerprint=read_link(dir_fd, SOURCE),
        pinned=read_link(dir_fd, PINNED) is not None,
        seals={number: seal for number, seal in seals.items() if seal is not None},
        left_seals=tuple(heapq.nsmallest(most, sealed - numbers)),
    )
