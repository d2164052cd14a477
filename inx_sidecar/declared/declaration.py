"""Instances that the configuration of the host declares: what the file says, and what follows.

Whether an instance is a declared one stands in itself, in `user.inx.declared`: its own name and
project and this host, so that a copy is none, and which keys and devices were declared last, so
that those that no longer are can be taken back. All else stays as somebody set it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from inx_sidecar.base import paths
from inx_sidecar.base.errors import ConfigError, shown
from inx_sidecar.incus.api import is_true

MARK: Final = "user.inx.declared"
PROTECTED: Final = "security.protection.delete is set; unset that to have it deleted"
# What may be sent to change an instance, besides its configuration (shared/api, InstancePut).
SETTABLE: Final = ("architecture", "description", "devices", "ephemeral", "profiles")
_VERSION: Final = 1
_MARK_MAX: Final = 1 << 16
# Incus' own rule for names (shared/validate, IsHostname), and for projects no "/" or blanks.
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PROJECT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VOLATILE: Final = "volatile."
# What Incus and the sidecar write, and what says that it is declared.
_NOT_TO_DECLARE: Final = re.compile(r"volatile\..*|user\.inx\.(status.*|declared)")

_Devices = Mapping[str, Mapping[str, str]]


def this_host() -> str:
    """What tells this host from others, and nobody who it is (machine-id(5))."""
    try:
        with open(paths.MACHINE_ID) as file:
            identity = file.read().strip()
    except OSError:
        identity = ""
    return hashlib.sha256(f"inx declared {identity}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Mark:
    """What an instance bears that is a declared one; `complete` once it was made as declared."""

    name: str
    project: str
    host: str
    config: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    complete: bool = True

    @classmethod
    def of(cls, present: Mapping[str, Any], host: str) -> Self | None:
        """None if it was made by hand, or copied from a declared one.

        Its name alone, written by somebody, gives an instance over to the declaration.
        """
        name, project = present["name"], present["project"]
        text = (present["config"] or {}).get(MARK, "")
        if text == name:
            return cls(name, project, host, complete=False)
        try:
            said = json.loads(text if len(text) <= _MARK_MAX else "")
            lists = frozenset(said["config"]), frozenset(said["devices"])
            mark = cls(said["name"], said["project"], said["host"], *lists)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return mark if (mark.name, mark.project, mark.host) == (name, project, host) else None


@dataclass(frozen=True)
class Declared:
    """One instance as it is to be; `start` it if it does not run, and `restart` it where a device
    of it cannot be changed otherwise. `host` is where it is declared."""

    name: str
    project: str = "default"
    description: str = ""
    profiles: tuple[str, ...] = ("inx",)
    ephemeral: bool = False
    start: bool = False
    restart: bool = True
    config: Mapping[str, str] = field(default_factory=dict, hash=False)
    devices: _Devices = field(default_factory=dict, hash=False)
    host: str = field(default_factory=this_host)

    def __str__(self) -> str:
        return self.name if self.project == "default" else f"{self.project}/{self.name}"

    @property
    def mark(self) -> str:
        told = {
            "name": self.name, "project": self.project, "host": self.host,
            "config": sorted(self.config), "devices": sorted(self.devices),
        }  # fmt: skip
        return json.dumps(told, separators=(",", ":"))

    def owns(self, present: Mapping[str, Any]) -> bool:
        """Whether the instance of this name is the declared one."""
        return Mark.of(present, self.host) is not None

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
        former = Mark.of(present, self.host) or Mark(self.name, self.project, self.host)
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


def without_volatile(instance: Mapping[str, Any]) -> dict[str, Any]:
    """`instance` without what Incus itself notes in its configuration."""
    config = {k: v for k, v in instance["config"].items() if not k.startswith(_VOLATILE)}
    return {**instance, "config": config}


def is_protected(present: Mapping[str, Any]) -> bool:
    return is_true(present["expanded_config"].get("security.protection.delete", ""))


@dataclass(frozen=True)
class Step:
    """Something to be done with `declared`, which need not be declared any more."""

    declared: Declared

    verb = ""
    done = ""

    def describe(self) -> str:
        return f"{self.declared}: {self.done}"


class Create(Step):
    verb, done = "create", "created"


class Change(Step):
    verb, done = "change", "changed"


class Start(Step):
    verb, done = "start", "started"


class Delete(Step):
    verb, done = "delete", "deleted, as it is no longer declared"


@dataclass(frozen=True)
class Leave(Step):
    """Nothing is done; the operator is told `why`, and to do something if it is `wrong`."""

    why: str = ""
    wrong: bool = False

    def describe(self) -> str:
        return f"{self.declared}: left as it is: {self.why}"


@dataclass(frozen=True)
class Declaration:
    """All instances that are declared; with `delete`, those that no longer are go."""

    instances: tuple[Declared, ...]
    delete: bool = False
    host: str = field(default_factory=this_host)

    def steps(self, present: Iterable[Mapping[str, Any]]) -> tuple[Step, ...]:
        """What it takes to have the instances of Incus, `present`, as declared.

        What is deleted or changed may free an address or a port that another one takes.
        """
        found = {(api["project"], api["name"]): api for api in present}
        wanted = {(one.project, one.name): one for one in self.instances}
        left: list[Step] = []
        changes: list[Step] = []
        creations: list[Step] = []
        starts: list[Step] = []
        for key, one in wanted.items():
            api = found.get(key)
            if api is None:
                creations.append(Create(one))
            elif not one.owns(api):
                left.append(Leave(one, _foreign(one, api), wrong=True))
                continue
            elif one.changed(api) is not None:
                changes.append(Change(one))
            if one.start and (api is None or api["status"] == "Stopped"):
                starts.append(Start(one))
        dropped = [self._drop(api) for key, api in found.items() if key not in wanted]
        gone = [step for step in dropped if isinstance(step, Delete)]
        left += [step for step in dropped if isinstance(step, Leave)]
        return (*left, *gone, *changes, *creations, *starts)

    def _drop(self, api: Mapping[str, Any]) -> Step | None:
        """None if it is nothing to us."""
        mark = Mark.of(api, self.host)
        # One that was given over, but is not declared, was never ours.
        if mark is None or not mark.complete:
            return None
        one = Declared(api["name"], api["project"], host=self.host)
        if not self.delete:
            return Leave(one, "it is no longer declared")
        if is_protected(api):
            return Leave(one, f"it is no longer declared, but {PROTECTED}", wrong=True)
        return Delete(one)


def _foreign(one: Declared, api: Mapping[str, Any]) -> str:
    if api["type"] != "container":
        return f"it is declared, but this name has a {api['type']}; delete or rename that"
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
    given = _Table(where, one, set(Declared.__dataclass_fields__) - {"host"})
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
        raise given.wrong("name", "allowed: letters, digits and, between them, '-'; at most 63")
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
