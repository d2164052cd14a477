"""What a sidecar leaves in /run/inx/UUID for the one that comes after it."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self

from inx_sidecar.base import paths
from inx_sidecar.incus.instance import Facts, Instance

# These count from start to stop, whatever the configuration says meanwhile.
_FIXED: Final = ("user.inx.store", "user.inx.store.include", "user.inx.daemon")


@dataclass(frozen=True)
class Running:
    """A container that was attached, and what has been done to it since.

    `mapped`: its store shows mapped owners. `fixed`: the keys that count from start to stop.
    `booted` is the system that PID 1 runs, `active` the one last activated, if another, `profile`
    what its profile led to then. `shown`: the systems whose closures an isolated container sees.
    `mark` is of the spec that was carried out last, or failed, `text` the status that it left.
    `tried` is that of one whose activation was begun and did not end well. `undo`: what is to be
    taken back if a generation that was made never became active.
    `claims`: its static addresses and the networks that they are on.
    """

    facts: Facts
    pid: int
    started: int
    mapped: bool
    fixed: Mapping[str, str] = field(default_factory=dict)
    booted: str = ""
    active: str = ""
    profile: str = ""
    shown: tuple[str, ...] = ()
    mark: str = ""
    text: str = ""
    tried: str = ""
    undo: Mapping[str, Any] | None = None
    claims: tuple[str, ...] = ()

    @property
    def system(self) -> str:
        return self.active or self.booted or self.profile

    @classmethod
    def of(cls, instance: Instance, pid: int, mapped: bool, claims: Iterable[str] = ()) -> Self:
        fixed = {key: instance.config[key] for key in _FIXED if key in instance.config}
        return cls(instance.facts, pid, started(pid), mapped, fixed, claims=tuple(sorted(claims)))

    def as_started(self, instance: Instance) -> Instance:
        """`instance` with what counts until it stops."""
        config = {key: value for key, value in instance.config.items() if key not in _FIXED}
        return replace(instance, config=config | dict(self.fixed))

    @classmethod
    def load(cls, uuid: str) -> Self | None:
        """What was remembered, if that very process still runs."""
        try:
            with open(_path(uuid)) as file:
                saved = json.load(file)
            lists = {key: tuple(saved.get(key, ())) for key in ("shown", "claims")}
            found = cls(**saved | lists | {"facts": Facts(**saved["facts"])})
            return found if started(found.pid) == found.started else None
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def amend(cls, uuid: str, **more: Any) -> None:
        """Remember `more` of what runs, if it still does."""
        running = cls.load(uuid)
        if running is not None:
            replace(running, **more).save(uuid)

    def save(self, uuid: str) -> None:
        path = _path(uuid)
        with open(f"{path}.new", "w") as file:
            json.dump(asdict(self), file)
        os.rename(f"{path}.new", path)


def started(pid: int) -> int:
    """When the process began, in clock ticks since boot: tells it from a later one (proc(5))."""
    with open(f"/proc/{pid}/stat", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def _path(uuid: str) -> str:
    return f"{paths.run_dir(uuid)}/running.json"
