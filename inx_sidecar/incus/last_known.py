"""/run/inx/UUID/instance.json: what Incus said of an instance when it started.

Incus writes backup.yaml anew whenever the configuration changes. If the storage is full, or cannot
be written, the file is then missing, empty or cut, while the instance runs.
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.incus.instance import (
    UUID,
    Instance,
    LxcFacts,
    project_and_name,
    read_instance,
)
from inx_sidecar.incus.running_record import Running

_ADVICE: Final = "make space in its pool: Incus then writes the file again with the next change"


@dataclass(frozen=True)
class Known:
    """`instance` as far as it is known.

    `problem` is one sentence on why backup.yaml cannot be used, empty if it can. `complete` is
    false if only what running.json has is known: the name, and the keys that hold while it runs.
    """

    instance: Instance
    problem: str = ""
    complete: bool = True


def save(instance: Instance) -> None:
    """Remember `instance` until it stops. OSError if its directory in /run/inx does not exist."""
    path = _path(instance.uuid)
    with open(f"{path}.new", "w") as file:
        json.dump(asdict(instance), file)
    os.rename(f"{path}.new", path)


def find(facts: LxcFacts) -> Known:
    """The instance that `facts` describe: as backup.yaml says, else as it was remembered.

    InstanceError if neither can be used.
    """
    try:
        return Known(read_instance(facts))
    except InstanceError as error:
        problem = f"{error}; {_ADVICE}"
        found = [known for uuid in _uuids() if (known := _recall(uuid, facts, problem)) is not None]
        if not found:
            raise
        # At most one of them runs (conflicts.check_uuid); the others are left from before a crash.
        return max(found, key=lambda known: (known.complete, _saved_at(known.instance.uuid)))


def problem_of(facts: LxcFacts) -> str:
    """Why backup.yaml of the instance that `facts` describe cannot be used; empty if it can."""
    try:
        read_instance(facts)
    except InstanceError as error:
        return f"{error}; {_ADVICE}"
    return ""


def from_record(uuid: str, running: Running) -> Instance:
    """What running.json says of instance `uuid`."""
    project, name = project_and_name(running.facts.lxc_name)
    return Instance(
        name=name,
        project=project,
        uuid=uuid,
        facts=running.facts,
        privileged=False,
        config={**running.fixed, "volatile.uuid": uuid},
    )


def _uuids() -> list[str]:
    try:
        return list(filter(UUID.fullmatch, os.listdir(paths.RUN)))
    except FileNotFoundError:
        return []


def _recall(uuid: str, facts: LxcFacts, problem: str) -> Known | None:
    try:
        with open(_path(uuid)) as file:
            instance = _from_json(json.load(file))
        return Known(instance, problem) if instance.facts == facts else None
    except (OSError, ValueError, TypeError, KeyError):
        pass  # the instance was started by an inx that did not remember it
    running = Running.read(uuid)
    if running is None or running.facts != facts:
        return None
    return Known(from_record(uuid, running), problem, complete=False)


def _from_json(saved: dict[str, Any]) -> Instance:
    return Instance(**saved | {"facts": LxcFacts(**saved["facts"])})


def _saved_at(uuid: str) -> int:
    try:
        return os.stat(_path(uuid)).st_mtime_ns
    except OSError:
        return 0


def _path(uuid: str) -> str:
    return f"{paths.run_dir(uuid)}/instance.json"
