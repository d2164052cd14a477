"""The instance that a hook speaks of: what LXC says in LXC_*, and Incus in backup.yaml.

Incus writes backup.yaml beside the rootfs right before every start, readable by root alone, with
the expanded configuration. Hooks must not ask the API: it waits for the very start they are in.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from inx_sidecar.base.errors import InstanceError
from inx_sidecar.incus.api import is_true
from inx_sidecar.nix.store import listed

# Every scalar as text: YAML 1.1 has its own ideas of what "no" and "=" mean.
_LOADER: Final = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Facts:
    """What LXC tells a hook: LXC_NAME, LXC_ROOTFS_PATH and LXC_CONFIG_FILE."""

    lxc_name: str
    rootfs: str
    lxc_config: str


@dataclass(frozen=True)
class Instance:
    """One Incus instance; `uuid` survives rename and restore and is new in a copy."""

    name: str
    project: str
    uuid: str
    facts: Facts
    privileged: bool
    config: Mapping[str, str]
    devices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def rootfs(self) -> str:
        return self.facts.rootfs

    @property
    def isolated(self) -> bool:
        """Whether it may see its own part of the store alone."""
        return self.config.get("user.inx.store") == "isolated"

    @property
    def included(self) -> tuple[str, ...]:
        """What it sees in addition."""
        return listed(self.config.get("user.inx.store.include", ""))

    @property
    def nics(self) -> dict[str, dict[str, str]]:
        """Its network devices, with the names of their interfaces, `name` inside and `host_name`,
        also where Incus has chosen them."""
        return {
            device: {
                key: self.config[f"volatile.{device}.{key}"]
                for key in ("name", "host_name")
                if f"volatile.{device}.{key}" in self.config
            }
            | dict(of)
            for device, of in self.devices.items()
            if of.get("type") == "nic"
        }

    @property
    def lxc_name(self) -> str:
        """As LXC, logs and GC roots call it (incus internal/server/project/project.go)."""
        return self.name if self.project == "default" else f"{self.project}_{self.name}"


def read_instance(facts: Facts) -> Instance:
    """The instance that LXC speaks of."""
    lxc_name = facts.lxc_name
    path = f"{os.path.dirname(os.path.realpath(facts.rootfs))}/backup.yaml"
    try:
        with open(path, "rb") as file:
            document = yaml.load(file, Loader=_LOADER)
    except (OSError, yaml.YAMLError) as error:
        raise InstanceError(f"cannot read {path} of {lxc_name!r}: {error}") from None
    try:
        return instance_of(document["container"], facts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InstanceError(f"{path} of {lxc_name!r} is not what Incus writes: {error!r}") from None


def instance_of(api: Mapping[str, Any], facts: Facts) -> Instance:
    """As the API describes it; KeyError or ValueError if that is none."""
    config = {str(key): str(value) for key, value in api["expanded_config"].items()}
    devices = {
        str(device): {str(key): str(value) for key, value in of.items()}
        for device, of in (api.get("expanded_devices") or {}).items()
    }
    name, project, uuid = api["name"], api["project"], config["volatile.uuid"]
    if not (_UUID.fullmatch(uuid) and _NAME.fullmatch(name) and _NAME.fullmatch(project)):
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
