"""`user.inx.*` keys: the text of a configuration becomes an InstanceSpec, or is refused.

Every user who may edit an instance can set these values, and Incus allows any bytes in them. A
source that `parse_spec` has accepted is safe as one argument of a command and prints on one line.
Any text may be in `update`, which is only compared.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from inx_sidecar.base.errors import ConfigError, quoted
from inx_sidecar.config.module_keys import MODULE_KEY, NIXPKGS, check_nixpkgs, parse_modules
from inx_sidecar.config.nic_keys import NIC_KEY, parse_nics
from inx_sidecar.config.reference_hints import plain_attribute
from inx_sidecar.config.references import PATH, check_absolute, check_blanks, check_flake, refused
from inx_sidecar.config.sources import Flake, NixFile, Source, System
from inx_sidecar.config.spec import TRIES, InstanceSpec
from inx_sidecar.config.system_check import ALLOWED, is_check
from inx_sidecar.nix.store_paths import STORE_PATH, split_store_paths

PREFIX: Final = "user.inx."
# What is likely to be meant for inx, as user.inx, user.inx-flake and user.INX.flake.
_NEARLY_OURS: Final = re.compile(r"user\.inx(?![a-z0-9])", re.IGNORECASE)
_VALUE_MAX: Final = 1 << 16


# An attribute path as nix-build -A takes it.
_ATTR_PATH: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_'-]*(?:\.[A-Za-z0-9_][A-Za-z0-9_'-]*)*")


def parse_spec(config: Mapping[str, str], instance: str, default_flake: str) -> InstanceSpec:
    """The spec that `config`, the expanded configuration of `instance`, asks for.

    ConfigError names the key that is wrong.
    """
    given = {k: v for k, v in config.items() if _NEARLY_OURS.match(k) and v != ""}
    for key in given:
        patterns = NIC_KEY, MODULE_KEY, _WRITTEN_BY_INX
        if key not in _KEYS and not any(pattern.fullmatch(key) for pattern in patterns):
            raise ConfigError(f"unknown key {quoted(key, 450)}; {_known_keys()}")
    values = {key: _check(key, value) for key, value in given.items() if key in _KEYS}
    own = given.get(f"{PREFIX}store") == "own"
    isolated = own or given.get(f"{PREFIX}store") == "isolated"
    if own and given.get(f"{PREFIX}daemon") == "true":
        raise ConfigError(
            "user.inx.daemon=true and user.inx.store=own exclude each other: the instance has a "
            "Nix daemon of its own; unset one"
        )
    if isolated and given.get(f"{PREFIX}daemon") == "true":
        raise ConfigError(
            "user.inx.daemon=true and user.inx.store=isolated exclude each other: a Nix daemon "
            "shows every path of the store; unset one"
        )
    if not isolated and f"{PREFIX}store.include" in given:
        raise ConfigError("user.inx.store.include goes with user.inx.store=isolated or own")
    generation = given.get(f"{PREFIX}generation")
    return InstanceSpec(
        source=_parse_source(values, given, instance, default_flake),
        update=given.get(f"{PREFIX}update", ""),
        generation=None if generation is None else int(generation),
        keep=int(given.get(f"{PREFIX}keep", InstanceSpec.keep)),
        daemon=_parse_bool(given.get(f"{PREFIX}daemon")),
        isolated=isolated,
        own=own,
        activate=given.get(f"{PREFIX}activate", InstanceSpec.activate),
        confirm=int(given.get(f"{PREFIX}confirm", InstanceSpec.confirm)),
        check=given.get(f"{PREFIX}check", ""),
        included=split_store_paths(given.get(f"{PREFIX}store.include", "")),
        nics=parse_nics(given),
    )


def configured(config: Mapping[str, str]) -> Mapping[str, str]:
    """`config` without what inx and Incus write."""
    return {
        key: value
        for key, value in config.items()
        if not key.startswith("volatile.") and not _WRITTEN_BY_INX.fullmatch(key)
    }


def asked_for(config: Mapping[str, str]) -> Mapping[str, str]:
    """What `config` asks inx for: its keys of inx, without those that inx writes."""
    return {
        key: value
        for key, value in config.items()
        if key.startswith(PREFIX) and not _WRITTEN_BY_INX.fullmatch(key)
    }


def _parse_source(
    values: Mapping[str, str], given: Mapping[str, str], instance: str, default_flake: str
) -> Source:
    named = [name for name in ("flake", "file", "system") if PREFIX + name in values]
    if len(named) > 1:
        names = " and ".join(PREFIX + name for name in named)
        raise ConfigError(f"{names} exclude each other; unset all but one")
    attr = values.get(f"{PREFIX}attr")
    if attr is not None and named != ["file"]:
        raise ConfigError("user.inx.attr goes with user.inx.file; a flake takes REF#ATTR")
    base = parse_flake(values[f"{PREFIX}flake"], instance) if named == ["flake"] else None
    modules = parse_modules(given, instance, base, given.get(f"{PREFIX}update", ""))
    if modules is not None:
        if named not in ([], ["flake"]):
            key = next(key for key, _ in (*modules.texts, *modules.files))
            raise ConfigError(
                f"{key} and {PREFIX}{named[0]} exclude each other: only a flake can be extended by "
                "modules; unset one"
            )
        return modules
    match named:
        case ["file"]:
            path = values[f"{PREFIX}file"]
            return NixFile(path, attr or _attr_of(instance), attr is not None)
        case ["system"]:
            return System(values[f"{PREFIX}system"])
        case _:
            return parse_flake(values.get(f"{PREFIX}flake", default_flake), instance)


def parse_flake(text: str, instance: str) -> Flake:
    """The flake REF#ATTR; without "#ATTR", the attribute is the name of `instance`. ATTR may be the
    whole path of an output, as `nix build` takes it."""
    ref, _, attr = text.partition("#")
    attr = plain_attribute(attr)
    return Flake(ref, attr or instance, bool(attr))


def _check(key: str, value: str) -> str:
    """The value of a known key. Incus allows values of any length."""
    if len(value) > _VALUE_MAX and key != f"{PREFIX}update":
        raise ConfigError(f"{key} has {len(value)} characters; at most {_VALUE_MAX} are allowed")
    return _KEYS[key](key, value)


def _attr_of(instance: str) -> str:
    """The attribute for an instance's name, in quotes if the name is no identifier of Nix."""
    return instance if _ATTR_PATH.fullmatch(instance) else f'"{instance}"'


def _check_file(key: str, value: str) -> str:
    check_blanks(key, value)
    check_absolute(key, value)
    if value.endswith("/flake.nix") or "#" in value:
        raise refused(key, value, "a Nix file; a flake goes into user.inx.flake")
    if not PATH.fullmatch(value):
        raise refused(key, value, "the absolute path of a Nix file on the host")
    return value


def _check_attr(key: str, value: str) -> str:
    if not _ATTR_PATH.fullmatch(value) or len(value) > 256:
        raise refused(key, value, "an attribute path such as web or hosts.web")
    return value


def _check_system(key: str, value: str) -> str:
    check_blanks(key, value)
    if "#" in value:
        raise refused(key, value, f"the path of a system; for a flake set user.inx.flake={value}")
    check_absolute(key, value)
    if not PATH.fullmatch(value) or (
        value.startswith("/nix/store/") and not STORE_PATH.fullmatch(value)
    ):
        raise refused(key, value, "/nix/store/HASH-NAME, or a link on the host that leads there")
    return value


def _check_number(low: int, high: int) -> Callable[[str, str], str]:
    def check(key: str, value: str) -> str:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise refused(key, value, f"a number from {low} to {high}")
        return value

    return check


def _check_one_of(*allowed: str) -> Callable[[str, str], str]:
    def check(key: str, value: str) -> str:
        if value not in allowed:
            raise refused(key, value, " or ".join(allowed))
        return value

    return check


def _check_store_paths(key: str, value: str) -> str:
    if re.sub(r"[\s,]+", " ", value).split() != list(split_store_paths(value)):
        raise refused(key, value, "/nix/store/HASH-NAME, more of them with blanks between")
    return value


def _check_check(key: str, value: str) -> str:
    if not is_check(value):
        raise refused(key, value, ALLOWED)
    return value


def _check_confirmed(key: str, value: str) -> str:
    if not re.fullmatch(r"[0-9]{1,9}", value) and not STORE_PATH.fullmatch(value):
        raise refused(key, value, "the number of a generation, or the store path of a system")
    return value


def _accept_any(_key: str, value: str) -> str:
    return value


def _parse_bool(value: str | None) -> bool | None:
    return None if value is None else value == "true"


_KEYS: Final[Mapping[str, Callable[[str, str], str]]] = {
    "user.inx.flake": check_flake,
    "user.inx.file": _check_file,
    "user.inx.attr": _check_attr,
    "user.inx.system": _check_system,
    NIXPKGS: check_nixpkgs,
    "user.inx.store": _check_one_of("shared", "isolated", "own"),
    "user.inx.store.include": _check_store_paths,
    "user.inx.daemon": _check_one_of("true", "false"),
    "user.inx.generation": _check_number(1, 999_999_999),
    "user.inx.update": _accept_any,
    "user.inx.activate": _check_one_of("switch", "boot", "test", "none", *TRIES),
    "user.inx.confirm": _check_number(1, 86_400),
    "user.inx.confirmed": _check_confirmed,
    "user.inx.check": _check_check,
    "user.inx.keep": _check_number(1, 1000),
    "user.inx.order": _check_number(0, 999_999_999),
}
# A newer inx, on another member of a cluster, may have written more of the status than this one.
_WRITTEN_BY_INX: Final = re.compile(
    r"user\.inx\.(status(\.[a-z]+)*|sealed|declared|locked|state_version)"
)


def _known_keys() -> str:
    nic_keys = [f"{PREFIX}net.NIC.{name}" for name in ("address", "host_address", "gateway")]
    keys = [*_KEYS, "config", "config.NAME", "module", "module.NAME", *nic_keys]
    return "known are " + ", ".join(key.removeprefix(PREFIX) for key in keys)
