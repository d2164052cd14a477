"""/run/inx/UUID/running.json: what a sidecar records of a running instance for its successor.

A sidecar that is upgraded reads the file that the older version wrote.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self

from inx_sidecar.base import paths
from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.kernel.process_times import process_start_time as process_start_time

# Keys whose values at the start hold until the instance stops, whatever its configuration says.
_FIXED: Final = ("user.inx.store", "user.inx.store.include", "user.inx.daemon")
# Names that fields had in older versions.
_FORMER_NAMES: Final = {
    "profile": "profile_system",
    "shown": "visible_systems",
    "mark": "spec_digest",
    "text": "status_text",
    "tried": "attempted_digest",
}
_LISTS: Final = ("visible_systems", "claims")


@dataclass(frozen=True)
class Running:
    """A container whose mounts are attached, and what has been done to it since.

    `started`: when process `pid` began, in clock ticks since boot.
    `mapped`: the container sees the store's owners mapped to its own user ids.
    `fixed`: the keys, with their values, that hold from start to stop.
    `booted`: the system that PID 1 runs.
    `active`: the system that was activated last, if it is not the booted one.
    `current`: what /run/current-system inside led to at the last look, as the container's root
    wrote it; empty if not known. It is shown and kept; nothing else follows from it.
    `profile_system`: the system that the profile led to when the last spec was carried out.
    `visible_systems`: the systems whose closures an isolated container sees.
    `spec_digest`: the digest of the last spec that was carried out, or that failed.
    `status_text`: the status that this spec left.
    `update`: the value of user.inx.update that was dealt with last, as `update_key.shown` gives it;
    None if not known.
    `boot_text`: what the status says instead of `status_text` as long as the system is not up.
    `attempted_digest`: the digest of a spec whose activation began and did not succeed.
    `undo`: the profile to restore if the generation that was made last never becomes active.
    `claims`: static addresses of the instance, each with the network that it is on.
    `sealed`: this start has given each generation whose seal counts the seal of this instance.
    `view`: the directory that has the entries of what a store of its own shows; empty without such
    a store. `view_device`: the device number of the overlay over it (kernel/superblocks.py).
    `incomplete`: how many paths that were built inside this start has made invalid, since they need
    others that are not shown. `former`: how many systems and included paths the start shows that it
    does not need.
    """

    facts: LxcFacts
    pid: int
    started: int
    mapped: bool
    fixed: Mapping[str, str] = field(default_factory=dict)
    booted: str = ""
    active: str = ""
    current: str = ""
    profile_system: str = ""
    visible_systems: tuple[str, ...] = ()
    spec_digest: str = ""
    status_text: str = ""
    update: str | None = None
    boot_text: str = ""
    attempted_digest: str = ""
    undo: Mapping[str, Any] | None = None
    claims: tuple[str, ...] = ()
    sealed: bool = False
    view: str = ""
    view_device: int = 0
    incomplete: int = 0
    former: int = 0

    @property
    def system(self) -> str:
        """The system that runs, as far as inx knows."""
        return self.active or self.booted or self.profile_system

    @classmethod
    def of(cls, instance: Instance, pid: int, mapped: bool, claims: Iterable[str] = ()) -> Self:
        """The record of `instance`, whose init is process `pid`, right after its mounts are
        attached."""
        fixed = {key: instance.config[key] for key in _FIXED if key in instance.config}
        start_time = process_start_time(pid)
        return cls(instance.facts, pid, start_time, mapped, fixed, claims=tuple(sorted(claims)))

    def as_started(self, instance: Instance) -> Instance:
        """`instance` with the values of `fixed` in place of what its configuration says now."""
        config = {key: value for key, value in instance.config.items() if key not in _FIXED}
        return replace(instance, config=config | dict(self.fixed))

    @classmethod
    def load(cls, uuid: str) -> Self | None:
        """The record of instance `uuid`; None if there is none or its process has ended."""
        found = cls.read(uuid)
        try:
            runs = found is not None and process_start_time(found.pid) == found.started
        except (OSError, ValueError):
            return None
        return found if runs else None

    @classmethod
    def read(cls, uuid: str) -> Self | None:
        """As `load`, also if the process has ended, as at the hook stop."""
        try:
            with open(_path(uuid)) as file:
                return cls._from_json(json.load(file))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @classmethod
    def _from_json(cls, saved: Mapping[str, Any]) -> Self:
        """KeyError or TypeError if a needed field is missing, or a field is not known."""
        values = {_FORMER_NAMES.get(name, name): value for name, value in saved.items()}
        values |= {name: tuple(values.get(name, ())) for name in _LISTS}
        return cls(**values | {"facts": LxcFacts(**values["facts"])})

    @classmethod
    def amend(cls, uuid: str, **fields: Any) -> None:
        """Replace `fields` in the record of instance `uuid`, unless it has ended."""
        running = cls.load(uuid)
        if running is not None:
            replace(running, **fields).save(uuid)

    def save(self, uuid: str) -> None:
        path = _path(uuid)
        with open(f"{path}.new", "w") as file:
            json.dump(asdict(self), file)
        os.rename(f"{path}.new", path)


def name_of(uuid: str) -> str:
    """The name of the running instance `uuid`, as LXC has it; the uuid if there is no record."""
    running = Running.load(uuid)
    return running.facts.lxc_name if running else uuid


def _path(uuid: str) -> str:
    return f"{paths.run_dir(uuid)}/running.json"
