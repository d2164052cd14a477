"""Instances that the configuration of the host declares, and what Incus is sent for each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from inx_sidecar.declared.ownership import OWNERSHIP_KEY, Ownership, this_host
from inx_sidecar.incus.api import is_true

# Fields that a request may set besides the configuration (Incus' shared/api, InstancePut).
SETTABLE: Final = ("architecture", "description", "devices", "ephemeral", "profiles")
_VOLATILE: Final = "volatile."

_Devices = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class DeclaredInstance:
    """One instance as it is declared on `host`.

    `start`: the instance is started if it is stopped. `restart`: the instance may be restarted if
    one of its devices cannot be changed while it runs. `target`: where it is created in a cluster,
    a member or "@" and a group of members.
    """

    name: str
    project: str = "default"
    description: str = ""
    profiles: tuple[str, ...] = ("inx",)
    ephemeral: bool = False
    start: bool = False
    restart: bool = True
    config: Mapping[str, str] = field(default_factory=dict, hash=False)
    devices: _Devices = field(default_factory=dict, hash=False)
    target: str = ""
    host: str = field(default_factory=this_host)

    def __str__(self) -> str:
        return self.name if self.project == "default" else f"{self.project}/{self.name}"

    @property
    def ownership(self) -> Ownership:
        declared = frozenset(self.config), frozenset(self.devices)
        return Ownership(self.name, self.project, self.host, *declared)

    def owns(self, present: Mapping[str, Any]) -> bool:
        """Whether instance `present` of Incus, which has this name, is the declared one."""
        return Ownership.of(present, self.host) is not None

    def target_of(self, former: Mapping[str, Any]) -> str:
        """Where to create the instance again that was `former`: where that was."""
        location = former.get("location", "none")
        return self.target if location in ("", "none") else str(location)

    def creation_request(self) -> dict[str, Any]:
        """What Incus is sent to create the instance (InstancesPost)."""
        return {
            "name": self.name, "type": "container", "source": {"type": "none"},
            "description": self.description, "profiles": list(self.profiles),
            "ephemeral": self.ephemeral,
            "config": {**self.config, OWNERSHIP_KEY: self.ownership.as_text()},
            "devices": {name: dict(device) for name, device in self.devices.items()},
        }  # fmt: skip

    def update_request(self, present: Mapping[str, Any]) -> dict[str, Any] | None:
        """What Incus is sent to make instance `present` as it is declared (InstancePut).

        None if the instance is as declared. Keys and devices that were declared before, and are no
        longer, are removed; those that somebody else set stay.
        """
        former = Ownership.of(present, self.host) or Ownership(self.name, self.project, self.host)
        config = {k: v for k, v in present["config"].items() if k not in former.config}
        devices = {k: v for k, v in present["devices"].items() if k not in former.devices}
        wanted = {
            "architecture": present["architecture"],
            "description": self.description,
            "profiles": list(self.profiles),
            "ephemeral": self.ephemeral,
            "config": {**config, **self.config, OWNERSHIP_KEY: self.ownership.as_text()},
            "devices": {**devices, **{k: dict(v) for k, v in self.devices.items()}},
        }
        return None if all(present[key] == value for key, value in wanted.items()) else wanted


@dataclass(frozen=True)
class Declaration:
    """All instances that `host` declares.

    With `delete`, instances that are no longer declared are deleted; otherwise they are kept.
    """

    instances: tuple[DeclaredInstance, ...]
    delete: bool = False
    host: str = field(default_factory=this_host)


def without_volatile(instance: Mapping[str, Any]) -> dict[str, Any]:
    """`instance` without the keys that Incus itself writes into its configuration."""
    config = {k: v for k, v in instance["config"].items() if not k.startswith(_VOLATILE)}
    return {**instance, "config": config}


def is_protected(present: Mapping[str, Any]) -> bool:
    """Whether Incus refuses to delete instance `present`."""
    return is_true(present["expanded_config"].get("security.protection.delete", ""))
