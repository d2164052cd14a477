"""What can be changed in the generations of a container: a value says what, and `apply` does it.

Only a process that has become the container's root applies a change.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.kernel.safe_open import read_link, set_link
from inx_sidecar.nix.generations import LINK, PINNED, SOURCE, Generations, read_links

_LAST: Final = 999_999_999


@dataclass(frozen=True)
class Select:
    """Make generation `number` the current one; `pinned`: `user.inx.generation` chose it."""

    number: int
    pinned: bool

    def apply(self, dir_fd: int) -> int:
        set_link(dir_fd, "system", f"system-{self.number}-link")
        if self.pinned:
            set_link(dir_fd, PINNED, str(self.number))
        else:
            _remove_link(dir_fd, PINNED)
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
        set_link(dir_fd, SOURCE, self.fingerprint)
        _remove_link(dir_fd, PINNED)
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
            _remove_link(dir_fd, SOURCE)
        else:
            set_link(dir_fd, SOURCE, self.fingerprint)
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


def _next_number(dir_fd: int, present: Generations) -> int:
    """The number after that of every generation, and of every entry that has a generation's name.

    _LAST does not count, so that a link of this name, which the container made, does not stop inx
    from making generations; InstanceError if it is a generation.
    """
    matches = (LINK.fullmatch(name) for name in os.listdir(dir_fd))
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
