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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.kernel.safe_open import open_directory, read_link, set_link
from inx_sidecar.kernel.syscalls import opened
from inx_sidecar.nix.store_paths import STORE_PATH

_LINK: Final = re.compile(r"system-([1-9][0-9]{0,8})-link")
_SEAL: Final = re.compile(r"system-([1-9][0-9]{0,8})-seal")
_LAST: Final = 999_999_999
_SOURCE: Final = "system-source"
_PINNED: Final = "system-pinned"
MAX_ENTRIES: Final = 10_000
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


@dataclass(frozen=True)
class Select:
    """Make generation `number` the current one; `pinned`: `user.inx.generation` chose it."""

    number: int
    pinned: bool

    def apply(self, dir_fd: int) -> int:
        set_link(dir_fd, "system", f"system-{self.number}-link")
        if self.pinned:
            set_link(dir_fd, _PINNED, str(self.number))
        else:
            _remove_link(dir_fd, _PINNED)
        return self.number


@dataclass(frozen=True)
class Append:
    """Make `toplevel` the current generation: a new one, unless the current or the newest has it.

    Old generations are removed so that `keep` remain; None keeps all.
    """

    toplevel: str
    fingerprint: str
    keep: int | None
    seal: str = ""

    def apply(self, dir_fd: int) -> int:
        present = read_links(dir_fd)
        # As in Nix, the system of the current or the newest generation makes no new generation.
        candidates = (present.current, present.newest)
        number = next((n for n in candidates if n and present.links[n] == self.toplevel), None)
        if number is None:
            number = _next_number(dir_fd, present)
            set_link(dir_fd, f"system-{number}-link", self.toplevel)
        if self.seal:
            set_link(dir_fd, f"system-{number}-seal", self.seal)
        set_link(dir_fd, "system", f"system-{number}-link")
        set_link(dir_fd, _SOURCE, self.fingerprint)
        _remove_link(dir_fd, _PINNED)
        if self.keep is not None:
            Prune(self.keep).apply(dir_fd)
        return number


@dataclass(frozen=True)
class Prune:
    """Remove the oldest generations so that `keep` remain; the current one is never removed."""

    keep: int

    def apply(self, dir_fd: int) -> int:
        present = read_links(dir_fd)
        current = present.current or 0
        for old in to_prune(present.links, current, self.keep):
            _remove_generation(dir_fd, old)
        return current


@dataclass(frozen=True)
class Restore:
    """Undo a change of a profile, after an activation that failed.

    The current generation, its pin and the fingerprint become again what they were. The generation
    that is current now is removed if it is none of `numbers`, the generations before the change.
    """

    number: int
    pinned: bool
    fingerprint: str | None
    numbers: tuple[int, ...]

    def apply(self, dir_fd: int) -> int:
        new = read_links(dir_fd).current
        Select(self.number, self.pinned).apply(dir_fd)
        if self.fingerprint is None:
            _remove_link(dir_fd, _SOURCE)
        else:
            set_link(dir_fd, _SOURCE, self.fingerprint)
        if new is not None and new not in self.numbers:
            _remove_generation(dir_fd, new)
        return self.number


@dataclass(frozen=True)
class Seal:
    """Give generations new seals, then apply `then`, if any.

    `seals` has the system and the seal of each generation, by its number; one that names another
    system by now is left alone.
    """

    seals: Mapping[int, tuple[str, str]]
    then: Select | Append | None = None

    def apply(self, dir_fd: int) -> int:
        for number, (system, seal) in self.seals.items():
            if read_link(dir_fd, f"system-{number}-link") == system:
                set_link(dir_fd, f"system-{number}-seal", seal)
        return self.then.apply(dir_fd) if self.then is not None else 0


@dataclass(frozen=True)
class DropSeals:
    """Remove the seals `numbers` that have no generation, then apply `then`, if any.

    Something else in the place of a seal, such as a directory, stays.
    """

    numbers: tuple[int, ...]
    then: Select | Append | Seal | None = None

    def apply(self, dir_fd: int) -> int:
        for number in self.numbers:
            seal = f"system-{number}-seal"
            gone = read_link(dir_fd, f"system-{number}-link") is None
            if gone and read_link(dir_fd, seal) is not None:
                _remove_link(dir_fd, seal)
        return self.then.apply(dir_fd) if self.then is not None else 0


Change = Select | Append | Prune | Restore | Seal | DropSeals


def to_prune(numbers: Iterable[int], current: int, keep: int) -> list[int]:
    """The generations to remove so that `keep` remain: the oldest, never the current one."""
    others = sorted(set(numbers) - {current}, reverse=True)
    return sorted(others[keep - 1 :])


def read(rootfs: str, instance: str) -> Generations:
    """The newest generations in `rootfs`, the root file system of a running or stopped instance.

    InstanceError if the profile cannot be read; a missing one has no generations.
    """
    try:
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InstanceError(f"cannot open {rootfs} of {instance!r}: {error.strerror}") from None
    with opened(root):
        try:
            place = open_directory(root, paths.PROFILES_INSIDE, instance)
        except FileNotFoundError:
            return Generations()
    with opened(place):
        profiles = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    with opened(profiles):
        return read_links(profiles, instance, _MOST)


def read_links(dir_fd: int, instance: str = "the instance", most: int = MAX_ENTRIES) -> Generations:
    """The generations in the profile directory `dir_fd`: the current one, and the newest, `most` of
    them. InstanceError if the directory has too many files."""
    numbers: set[int] = set()
    sealed: set[int] = set()
    with os.scandir(dir_fd) as entries:
        for count, entry in enumerate(entries):
            if count == MAX_ENTRIES:
                raise InstanceError(
                    f"/{paths.PROFILES_INSIDE} of {instance!r} holds over {MAX_ENTRIES} entries; "
                    "remove what does not belong there"
                )
            if match := _LINK.fullmatch(entry.name):
                numbers.add(int(match[1]))
            elif match := _SEAL.fullmatch(entry.name):
                if entry.is_symlink():
                    sealed.add(int(match[1]))
    selected = _LINK.fullmatch(os.path.basename(read_link(dir_fd, "system") or ""))
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
        fingerprint=read_link(dir_fd, _SOURCE),
        pinned=read_link(dir_fd, _PINNED) is not None,
        seals={number: seal for number, seal in seals.items() if seal is not None},
        left_seals=tuple(heapq.nsmallest(most, sealed - numbers)),
    )


def newest_links(names: Iterable[str]) -> set[str]:
    """Those of `names` that are links of generations: the newest, as many as the host looks at."""
    numbers = {int(match[1]) for name in names if (match := _LINK.fullmatch(name))}
    return {f"system-{number}-link" for number in heapq.nlargest(_MOST, numbers)}


def from_texts(texts: Mapping[str, str]) -> Generations:
    """The generations whose links have `texts`, by name."""
    matches = {name: _LINK.fullmatch(name) for name in texts}
    return Generations(
        {
            int(match[1]): texts[name]
            for name, match in matches.items()
            if match and STORE_PATH.fullmatch(texts[name])
        }
    )


def _next_number(dir_fd: int, present: Generations) -> int:
    """The number after that of every generation, and of every entry that has a generation's name.

    _LAST does not count, so that a link of this name, which the container made, does not stop inx
    from making generations; InstanceError if it is a generation.
    """
    matches = (_LINK.fullmatch(name) for name in os.listdir(dir_fd))
    numbers = {int(match[1]) for match in matches if match}
    number = 1 + max(numbers - {_LAST}, default=0)
    if number > _LAST or _LAST in present.links:
        raise InstanceError(
            f"/{paths.PROFILES_INSIDE}/system-{_LAST}-link leaves no number for a new generation; "
            "remove it"
        )
    return number


def _remove_generation(dir_fd: int, number: int) -> None:
    _remove_link(dir_fd, f"system-{number}-link")
    _remove_link(dir_fd, f"system-{number}-seal")


def _remove_link(dir_fd: int, name: str) -> None:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return  # a file system that is read-only refuses the removal of what is not there, too
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
