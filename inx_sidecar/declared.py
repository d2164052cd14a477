"""Instances that the configuration of the host declares: what the file says, and what follows.

Whether an instance is a declared one stands in itself, in `user.inx.declared`: its own name, so
that a copy is none, and which keys and devices were declared last, so that those that no longer
are can be taken back. All else stays as somebody set it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from inx_sidecar.errors import ConfigError, shown

MARK: Final = "user.inx.declared"
# What may be sent to change an instance, besides its configuration (shared/api, InstancePut).
SETTABLE: Final = ("architecture", "description", "devices", "ephemeral", "profiles")
_VERSION: Final = 1
# Incus' own rule for names (shared/validate, IsHostname), and for projects no "/" or blanks.
_NAME: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PROJECT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# What Incus and the sidecar write, and what says that it is declared.
_NOT_TO_DECLARE: Final = re.compile(r"volatile\..*|user\.inx\.(status.*|declared)")

_Devices = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Declared:
    """One instance as it is to be; `start` it if it does not run, and `restart` it where a device
    of it cannot be changed otherwise."""

    name: str
    project: str = "default"
    description: str = ""
    profiles: tuple[str, ...] = ("inx",)
    ephemeral: bool = False
    start: bool = False
    restart: bool = True
    config: Mapping[str, str] = field(default_factory=dict)
    devices: _Devices = field(default_factory=dict)

    @property
    def mark(self) -> str:
        return json.dumps(
            {"name": self.name, "config": sorted(self.config), "devices": sorted(self.devices)},
            separators=(",", ":"),
        )

    def new(self) -> dict[str, Any]:
        """What Incus is sent to create it (InstancesPost)."""
        return {
            "name": self.name, "type": "container", "source": {"type": "none"},
            "description": self.description, "profiles": list(self.profiles),
            "ephemeral": self.ephemeral, "config": {**self.config, MARK: self.mark},
            "devices": {name: dict(device) for name, device in self.devices.items()},
        }  # fmt: skip

    def changed(self, present: Mapping[str, Any]) -> dict[str, Any] | None:
        """What Incus is sent to make the instance `present` as declared (InstancePut); None if
        nothing has to be sent."""
        former = Mark.of(present) or Mark(self.name)
        config = {k: v for k, v in present["config"].items() if k not in former.config}
        devices = {k: v for k, v in present["devices"].items() if k not in former.devices}
        wanted = {
            "architecture": present["architecture"],
            "description": self.description,
            "profiles": list(self.profiles),
            "ephemeral": self.ephemeral,
            "config": {**config, **self.config, MARK: self.mark},
            "devices": {**devices, **{k: dict(v) for k, v in self.devices.items()}},
        }
        return None if all(present[key] == value for key, value in wanted.items()) else wanted


@dataclass(frozen=True)
class Mark:
    """What an instance bears that is a declared one."""

    name: str
    config: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()

    @classmethod
    def of(cls, present: Mapping[str, Any]) -> Self | None:
        """None if it was made by hand, or copied from a declared one.

        Its name alone, written by somebody, gives an instance over to the declaration.
        """
        text = present["config"].get(MARK, "")
        if text == present["name"]:
            return cls(text)
        try:
            said = json.loads(text)
            mark = cls(said["name"], frozenset(said["config"]), frozenset(said["devices"]))
        except (ValueError, KeyError, TypeError):
            return None
        return mark if mark.name == present["name"] else None


@dataclass(frozen=True)
class Create:
    declared: Declared

    def describe(self) -> str:
        return f"{self.declared.name}: created"


@dataclass(frozen=True)
class Change:
    declared: Declared

    def describe(self) -> str:
        return f"{self.declared.name}: changed"


@dataclass(frozen=True)
class Start:
    declared: Declared

    def describe(self) -> str:
        return f"{self.declared.name}: started"


@dataclass(frozen=True)
class Delete:
    name: str
    project: str

    def describe(self) -> str:
        return f"{self.name}: deleted, as it is no longer declared"


@dataclass(frozen=True)
class Leave:
    """Nothing is done; the operator is told."""

    name: str
    why: str
    wrong: bool = False

    def describe(self) -> str:
        return f"{self.name}: left as it is: {self.why}"


Step = Create | Change | Start | Delete | Leave


@dataclass(frozen=True)
class Declaration:
    """All instances that are declared; with `delete`, those that no longer are go."""

    instances: tuple[Declared, ...]
    delete: bool = False

    def steps(self, present: Iterable[Mapping[str, Any]]) -> tuple[Step, ...]:
        """What it takes to have the instances of Incus, `present`, as declared.

        What is changed or deleted may free an address or a port that another one takes.
        """
        found = {(api["project"], api["name"]): api for api in present}
        wanted = {(one.project, one.name): one for one in self.instances}
        changes: list[Step] = []
        creations: list[Step] = []
        starts: list[Step] = []
        for key, one in wanted.items():
            api = found.get(key)
            if api is None:
                creations.append(Create(one))
            elif Mark.of(api) is None:
                changes.append(Leave(one.name, _foreign(one, api), wrong=True))
                continue
            elif one.changed(api) is not None:
                changes.append(Change(one))
            if one.start and (api is None or api["status"] == "Stopped"):
                starts.append(Start(one))
        dropped = [found[key] for key in found if key not in wanted and Mark.of(found[key])]
        gone: list[Step] = [
            Delete(api["name"], api["project"])
            if self.delete
            else Leave(api["name"], "it is no longer declared")
            for api in dropped
        ]
        return (*changes, *gone, *creations, *starts)


def _foreign(one: Declared, api: Mapping[str, Any]) -> str:
    if api["type"] != "container":
        return f"it is declared, but an instance of this name is a {api['type']}"
    project = "" if one.project == "default" else f" --project {one.project}"
    return (
        "it is declared, but an instance of this name was made by hand; delete or rename that, or "
        f"give it over by 'incus config set {one.name} {MARK}={one.name}{project}'"
    )


def read(path: str) -> Declaration:
    """What the file at `path` declares; ConfigError names what is wrong in it."""
    try:
        with open(path, "rb") as file:
            document = json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    top = _Table(path, document, {"version", "instances", "dropped"})
    if top.take("version", int, None) != _VERSION:
        raise top.wrong("version", f"allowed: {_VERSION}")
    dropped = top.take("dropped", str, "keep")
    if dropped not in ("keep", "delete"):
        raise top.wrong("dropped", "allowed: keep or delete")
    listed = top.take("instances", list, [])
    instances = tuple(_instance(path, number, one) for number, one in enumerate(listed))
    keys = [(one.project, one.name) for one in instances]
    twice = next((name for project, name in keys if keys.count((project, name)) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path}: {twice!r} is declared twice")
    return Declaration(instances, dropped == "delete")


def _instance(path: str, number: int, one: object) -> Declared:
    name = one.get("name") if isinstance(one, dict) else None
    where = f"{path}: instance {shown(name) if isinstance(name, str) else number}"
    given = _Table(where, one, set(Declared.__dataclass_fields__))
    declared = Declared(
        name=given.take("name", str, None),
        project=given.take("project", str, Declared.project),
        description=given.take("description", str, Declared.description),
        profiles=tuple(given.take("profiles", list, list(Declared.profiles))),
        ephemeral=given.take("ephemeral", bool, Declared.ephemeral),
        start=given.take("start", bool, Declared.start),
        restart=given.take("restart", bool, Declared.restart),
        config=given.texts("config"),
        devices={
            device: _Table(f"{where}: devices", given.values["devices"], None).texts(device)
            for device in given.take("devices", dict, {})
        },
    )
    if not _NAME.fullmatch(declared.name):
        raise given.wrong("name", "allowed: letters, digits and '-', at most 63, a letter first")
    if not _PROJECT.fullmatch(declared.project):
        raise given.wrong("project", "allowed: the name of a project")
    if not all(isinstance(profile, str) for profile in declared.profiles):
        raise given.wrong("profiles", "allowed: names of profiles")
    for key in declared.config:
        if _NOT_TO_DECLARE.fullmatch(key):
            raise ConfigError(f"{where}: config: {shown(key)} is written by Incus or inx alone")
    return declared


class _Table:
    """An object of the file; `known` are its allowed keys, None if any is."""

    def __init__(self, where: str, given: object, known: set[str] | None) -> None:
        self._where = where
        if not isinstance(given, dict):
            raise ConfigError(f"{where} is {shown(json.dumps(given))}; allowed: an object")
        self.values: dict[str, Any] = given
        for key in given if known is not None else ():
            if key not in (known or ()):
                allowed = ", ".join(sorted(known or ()))
                raise ConfigError(f"{where}: unknown {shown(key)}; known are {allowed}")

    def wrong(self, key: str, what: str) -> ConfigError:
        return ConfigError(f"{self._where}: {key} is {shown(json.dumps(self.values[key]))}; {what}")

    def take(self, key: str, kind: type, default: Any) -> Any:
        """The value of `key`; ConfigError if it is of another kind, or missing without default."""
        if key not in self.values:
            if default is None:
                raise ConfigError(f"{self._where}: {key} is missing")
            return default
        value = self.values[key]
        if type(value) is not kind:
            names = {str: "a text", list: "a list", dict: "an object", bool: "true or false"}
            raise self.wrong(key, f"allowed: {names.get(kind, 'a number')}")
        return value

    def texts(self, key: str) -> dict[str, str]:
        """An object of texts; numbers and truth values as Incus writes them, and an empty text is
        as if it were not there."""
        found: dict[str, str] = {}
        for name, value in self.take(key, dict, {}).items():
            if isinstance(value, bool):
                found[name] = str(value).lower()
            elif isinstance(value, str | int):
                found[name] = str(value)
            else:
                what = shown(json.dumps(value))
                raise ConfigError(f"{self._where}: {key}: {shown(name)} is {what}; allowed: a text")
        return {name: text for name, text in found.items() if text}
