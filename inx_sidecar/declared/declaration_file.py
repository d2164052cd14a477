"""/etc/inx/instances.json: its JSON becomes a Declaration, or is refused in one sentence."""

import json
import re
from typing import Any, Final

from inx_sidecar.base.errors import ConfigError, quoted, reason_of
from inx_sidecar.declared.declaration import Declaration, DeclaredInstance

_VERSION: Final = 1
# Incus' own rule for names (shared/validate, IsHostname), and for projects no "/" or blanks.
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PROJECT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Keys that Incus and inx write.
_RESERVED_KEY: Final = re.compile(
    r"volatile\..*|user\.inx\.(status.*|sealed|declared|locked|state_version)"
)
_KINDS: Final = {str: "a text", list: "a list", dict: "an object", bool: "true or false"}


def read_declaration(path: str) -> Declaration:
    """What the file at `path` declares; ConfigError names what is wrong in it."""
    try:
        with open(path, "rb") as file:
            document = json.load(file)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}, the file that declares instances; write one, or name another "
            "file: 'inx-sidecar converge FILE'"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {reason_of(error)}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    top = _JsonObject(path, document, {"version", "instances", "dropped"})
    if top.get("version", int, None) != _VERSION:
        raise top.invalid("version", f"allowed: {_VERSION}")
    dropped = top.get("dropped", str, "keep")
    if dropped not in ("keep", "delete"):
        raise top.invalid("dropped", "allowed: keep or delete")
    values = top.get("instances", list, [])
    instances = tuple(_parse_instance(path, number, value) for number, value in enumerate(values))
    keys = [(instance.project, instance.name) for instance in instances]
    duplicate = next((name for project, name in keys if keys.count((project, name)) > 1), None)
    if duplicate is not None:
        raise ConfigError(f"{path}: {duplicate!r} is declared twice")
    return Declaration(instances, dropped == "delete")


def _parse_instance(path: str, number: int, value: object) -> DeclaredInstance:
    name = value.get("name") if isinstance(value, dict) else None
    where = f"{path}: instance {quoted(name) if isinstance(name, str) else number}"
    given = _JsonObject(where, value, set(DeclaredInstance.__dataclass_fields__) - {"host"})
    declared = DeclaredInstance(
        name=given.get("name", str, None),
        project=given.get("project", str, DeclaredInstance.project),
        description=given.get("description", str, DeclaredInstance.description),
        profiles=tuple(given.get("profiles", list, list(DeclaredInstance.profiles))),
        ephemeral=given.get("ephemeral", bool, DeclaredInstance.ephemeral),
        start=given.get("start", bool, DeclaredInstance.start),
        restart=given.get("restart", bool, DeclaredInstance.restart),
        target=given.get("target", str, DeclaredInstance.target),
        config=given.get_strings("config"),
        devices={
            device: _JsonObject(f"{where}: devices", given.values["devices"], None).get_strings(
                device
            )
            for device in given.get("devices", dict, {})
        },
    )
    if not _NAME.fullmatch(declared.name):
        raise given.invalid("name", "allowed: letters, digits and, between them, '-'; at most 63")
    if not _PROJECT.fullmatch(declared.project):
        raise given.invalid("project", "allowed: the name of a project")
    if not all(isinstance(profile, str) for profile in declared.profiles):
        raise given.invalid("profiles", "allowed: names of profiles")
    for key in declared.config:
        if _RESERVED_KEY.fullmatch(key):
            raise ConfigError(f"{where}: config: {quoted(key)} is written by Incus or inx alone")
    return declared


class _JsonObject:
    """An object of the file. `known_keys` are the keys that it may have; None allows every key."""

    def __init__(self, where: str, value: object, known_keys: set[str] | None) -> None:
        self._where = where
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {quoted(json.dumps(value))}; allowed: an object")
        self.values: dict[str, Any] = value
        if known_keys is None:
            return
        for key in value:
            if key not in known_keys:
                known = ", ".join(sorted(known_keys))
                raise ConfigError(f"{where}: unknown {quoted(key)}; known are {known}")

    def invalid(self, key: str, allowed: str) -> ConfigError:
        value = quoted(json.dumps(self.values[key]))
        return ConfigError(f"{self._where}: {key} is {value}; {allowed}")

    def get(self, key: str, kind: type, default: Any) -> Any:
        """The value of `key`, or `default` if the key is missing.

        ConfigError if the value is not a `kind`, or if the key is missing and `default` is None.
        """
        if key not in self.values:
            if default is None:
                raise ConfigError(f"{self._where}: {key} is missing")
            return default
        value = self.values[key]
        if type(value) is not kind:
            raise self.invalid(key, f"allowed: {_KINDS.get(kind, 'a number')}")
        return value

    def get_strings(self, key: str) -> dict[str, str]:
        """The object at `key` as a map of strings.

        Numbers and booleans become the text that Incus writes for them; an empty string counts as a
        missing key.
        """
        strings: dict[str, str] = {}
        for name, value in self.get(key, dict, {}).items():
            if isinstance(value, bool):
                strings[name] = str(value).lower()
            elif isinstance(value, str | int):
                strings[name] = str(value)
            else:
                text = quoted(json.dumps(value))
                raise ConfigError(
                    f"{self._where}: {key}: {quoted(name)} is {text}; allowed: a text"
                )
        return {name: text for name, text in strings.items() if text}
