"""One instance: what LXC says in LXC_* variables, and Incus in backup.yaml or by its API.

Incus writes backup.yaml beside the rootfs right before every start, with the expanded
configuration; only root can read it. A hook must not ask Incus' API, which waits for the start that
the hook is part of.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import yaml

from inx_sidecar.base.errors import InstanceError, reason_of
from inx_sidecar.incus.api import is_true
from inx_sidecar.nix.store_paths import split_store_paths

# Every scalar is read as text: YAML 1.1 takes "no" for a boolean and "=" for a type of its own.
_LOADER: Final = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BEGIN: Final = re.compile(rb"container:\n( +)(?=[a-z])")
_KEY: Final = re.compile(rb"([a-z_]+):(?![^ \n])")
_OUTER_LINE: Final = re.compile(rb"(?m)^[^ \n]")
# What YAML 1.1 takes for the end of a line, besides a newline.
_OTHER_BREAK: Final = re.compile(rb"\r|\xc2\x85|\xe2\x80[\xa8\xa9]")
_NEEDED: Final = {"name", "project", "expanded_config", "expanded_devices"}
# The uuid of the instance for which the generations are sealed. A copy has the key of its source.
SEALED: Final = "user.inx.sealed"


@dataclass(frozen=True)
class LxcFacts:
    """What LXC tells a hook: LXC_NAME, LXC_ROOTFS_PATH and LXC_CONFIG_FILE."""

    lxc_name: str
    rootfs: str
    lxc_config: str


def lxc_name_of(project: str, name: str) -> str:
    """The name that LXC has for an instance (incus internal/server/project, Instance)."""
    return name if project == "default" else f"{project}_{name}"


def project_and_name(lxc_name: str) -> tuple[str, str]:
    """The project and the name in Incus. No name of an instance has an underscore."""
    project, _, name = lxc_name.rpartition("_")
    return project or "default", name


@dataclass(frozen=True)
class Instance:
    """One Incus instance; `uuid` survives rename and restore and is new in a copy."""

    name: str
    project: str
    uuid: str
    facts: LxcFacts
    privileged: bool
    config: Mapping[str, str]
    devices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def rootfs(self) -> str:
        return self.facts.rootfs

    @property
    def isolated(self) -> bool:
        """Whether the container sees only the store paths that it needs."""
        return self.own or self.config.get("user.inx.store") == "isolated"

    @property
    def own(self) -> bool:
        """Whether the container has a store of its own above these paths."""
        return self.config.get("user.inx.store") == "own"

    @property
    def sealed_for(self) -> str:
        """The uuid of the instance for which the generations were sealed when inx last looked: in a
        copy that has not started yet, that of its source. "" if it is not known."""
        uuid = self.config.get(SEALED, "")
        return uuid if UUID.fullmatch(uuid) else ""

    @property
    def included(self) -> tuple[str, ...]:
        """The store paths that an isolated container sees besides its systems."""
        return split_store_paths(self.config.get("user.inx.store.include", ""))

    @property
    def nics(self) -> dict[str, dict[str, str]]:
        """The network devices.

        `name` is the name of the interface inside, `host_name` that of its peer on the host, also
        where Incus has chosen them (volatile.DEVICE.*).
        """
        return {
            name: {
                key: self.config[f"volatile.{name}.{key}"]
                for key in ("name", "host_name")
                if f"volatile.{name}.{key}" in self.config
            }
            | dict(device)
            for name, device in self.devices.items()
            if device.get("type") == "nic"
        }

    def command_to_get(self, key: str) -> str:
        """The command that prints the value of `key`, also if a profile has it."""
        project = "" if self.project == "default" else f" --project {self.project}"
        return f"incus config get {self.name} {key} --expanded{project}"

    @property
    def lxc_name(self) -> str:
        """The name in LXC, logs and GC roots (incus internal/server/project/project.go)."""
        return lxc_name_of(self.project, self.name)


def read_instance(facts: LxcFacts) -> Instance:
    """The instance that `facts` describe; InstanceError if backup.yaml cannot be used."""
    lxc_name = facts.lxc_name
    path = f"{os.path.dirname(os.path.realpath(facts.rootfs))}/backup.yaml"
    incomplete = InstanceError(f"{path} of {lxc_name!r} is incomplete, or not what Incus writes")
    try:
        with open(path, "rb") as file:
            text = file.read()
        instance = _parse_backup(text, facts)
    except OSError as error:
        raise InstanceError(f"cannot read {path} of {lxc_name!r}: {reason_of(error)}") from None
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        raise incomplete from None
    # A file that Incus could not write to its end may end within the name of the project.
    if instance.lxc_name != lxc_name:
        raise incomplete
    return instance


@lru_cache(maxsize=8)
def _parse_backup(text: bytes, facts: LxcFacts) -> Instance:
    """The hooks of a start read the same text twice, within a moment."""
    return parse_instance(_read_needed(text) or _read_all(text), facts)


def _read_all(text: bytes) -> Any:
    return yaml.load(text, Loader=_LOADER)["container"]


def _read_needed(text: bytes) -> dict[str, Any] | None:
    """What `parse_instance` needs of a backup.yaml; None if it is not found by its lines.

    The rest takes longer to parse: Incus writes the whole configuration again for each profile and
    for each snapshot. In a YAML mapping that is no flow, every line that begins a key is indented
    as the first one, and all lines of the values, except items of lists, are indented further. A
    file is read so only if nothing in it is unlike what Incus writes, and each key is there once.
    """
    begin = _BEGIN.match(text)
    if begin is None or b"\ncontainer:" in text:
        return None
    first = begin.start(1)
    end = _OUTER_LINE.search(text, first)
    if end is not None and not _KEY.match(text, end.start()):
        return None
    section = text[first : end.start()] if end is not None else text[first:]
    if _OTHER_BREAK.search(section):
        return None
    _, *entries = re.split(rb"(?m)^%b(?=[^ \n-])" % begin[1], section)
    keys = [key[1].decode() if (key := _KEY.match(entry)) else "" for entry in entries]
    if "" in keys or len(set(keys)) < len(keys) or not _NEEDED.issubset(keys):
        return None
    needed = [begin[1] + entry for key, entry in zip(keys, entries, strict=True) if key in _NEEDED]
    try:
        found = dict(yaml.load(b"".join(needed), Loader=_LOADER))
    except (yaml.YAMLError, TypeError, ValueError):
        return None
    return found if found.keys() == _NEEDED else None


def parse_instance(api: Mapping[str, Any], facts: LxcFacts) -> Instance:
    """The instance that Incus' API describes as `api`.

    AttributeError, KeyError, TypeError or ValueError if `api` describes none.
    """
    config = {str(key): str(value) for key, value in api["expanded_config"].items()}
    devices = {
        str(name): {str(key): str(value) for key, value in device.items()}
        for name, device in (api.get("expanded_devices") or {}).items()
    }
    name, project, uuid = api["name"], api["project"], config["volatile.uuid"]
    if not (UUID.fullmatch(uuid) and _NAME.fullmatch(name) and _NAME.fullmatch(project)):
        raise ValueError(f"{project}/{name}/{uuid}")
    return Instance(
        name=name,
        project=project,
        uuid=uuid,
        facts=facts,
        privileged=is_true(config.get("security.privileged", "")),
        config=config,
        devices=devices,
    )
