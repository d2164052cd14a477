"""What a sidecar leaves in /run/inx/UUID for the one that comes after it."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Self

from inx_sidecar import paths
from inx_sidecar.instance import Facts


@dataclass(frozen=True)
class Running:
    """A container that was attached.

    `mapped`: its store shows mapped owners. `booted` is the system that PID 1 runs. `tried` is the
    mark of a wish that was tried since and left no generation: it is not tried again. `note` is
    what the last activation left to look at.
    """

    facts: Facts
    pid: int
    started: int
    mapped: bool
    booted: str = ""
    tried: str = ""
    note: str = ""

    @classmethod
    def of(cls, facts: Facts, pid: int, mapped: bool, booted: str, tried: str) -> Self:
        return cls(facts, pid, started(pid), mapped, booted, tried)

    @classmethod
    def recall(cls, uuid: str) -> Self | None:
        """What was remembered, if that very process still runs."""
        try:
            with open(_path(uuid)) as file:
                saved = json.load(file)
            found = cls(**saved | {"facts": Facts(**saved["facts"])})
            return found if started(found.pid) == found.started else None
        except (OSError, ValueError, TypeError):
            return None

    def remember(self, uuid: str) -> None:
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
