"""Settings of the host: /etc/inx/config.toml. Each has a default; unknown ones are refused."""

import re
import tomllib
from dataclasses import dataclass, fields
from typing import Any, Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import ConfigError, reason_of
from inx_sidecar.config.credentials import has_credentials, redact, unknown_parameters
from inx_sidecar.config.module_keys import NIXPKGS, check_nixpkgs
from inx_sidecar.config.references import check_flake
from inx_sidecar.config.sources import Flake, Modules, NixFile, Source
from inx_sidecar.nix.build_ids import IDS

# An entry of allowed_flakes that stands for all texts.
TEXTS: Final = "user.inx.config"
_HARMLESS_QUERIES: Final = {"dir", "ref", "rev", "submodules", "shallow", "narHash"}
_SIZE: Final = re.compile(r"[1-9][0-9]*[KMGT%]?|infinity")
_MAX_NUMBER: Final = 10**6
# 16-bit ids have their uses (systemd docs/UIDS-GIDS.md), and (uid_t) -1 is invalid.
_FIRST_ID: Final = 65536
_LAST_ID: Final = 2**31


@dataclass(frozen=True)
class Settings:
    """The settings; the documentation describes each, and a test compares it with these fields."""

    default_flake: str = "/etc/nixos"
    nixpkgs: str = "flake:nixpkgs"
    allowed_flakes: tuple[str, ...] = ("",)
    build_user: str = "inx-build"
    build_memory_max: str = "50%"
    build_timeout: int = 7200
    max_builds: int = 2
    max_roots_per_instance: int = 20_000
    daemon_memory_max: str = "50%"
    daemon_tasks_max: int = 4096
    builds_per_instance: int = 8
    first_build_id: int = 65536
    lock_patience: int = 25
    metrics: bool = False
    max_failures: int = 0

    @property
    def allows_everything(self) -> bool:
        """Whether any source may be built."""
        return "" in self.allowed_flakes

    def check_allowed(self, source: Source) -> None:
        """ConfigError if `source` is something that `allowed_flakes` does not allow, or contains a
        credential."""
        match source:
            case Flake(ref=ref):
                self._check_one("user.inx.flake", ref, is_flake=True)
            case NixFile(path=path):
                self._check_one("user.inx.file", path)
            case Modules():
                self._check_modules(source)

    def _check_modules(self, source: Modules) -> None:
        if source.base is not None:
            self.check_allowed(source.base)
        if source.nixpkgs:
            self._check_one(NIXPKGS, source.nixpkgs, is_flake=True)
        for key, path in source.files:
            self._check_one(key, path)
        if source.texts and not self.allows_everything and TEXTS not in self.allowed_flakes:
            raise ConfigError(
                f"{source.texts[0][0]} is not allowed, because 'allowed_flakes' in {paths.CONFIG} "
                f"allows only some sources: add {TEXTS!r} there to allow texts"
            )

    def _check_one(self, key: str, text: str, *, is_flake: bool = False) -> None:
        where = (
            f"put it into netrc or access-tokens of {self.build_user}, see 'Private sources' in "
            "docs/secrets-and-deployment.md"
        )
        if unknown := is_flake and unknown_parameters(text):
            raise ConfigError(
                f"{key} is {redact(text)!r}, with the parameter {redact(unknown[0])!r}, which inx "
                f"does not know and which may be a credential; {where}"
            )
        if has_credentials(text):
            raise ConfigError(
                f"{key} is {redact(text)!r}, which contains a password or a token that other users "
                f"and the instance could read; {where}"
            )
        within = any(_within(text, prefix) for prefix in self.allowed_flakes)
        if not within or ("" not in self.allowed_flakes and _queries(text) - _HARMLESS_QUERIES):
            allowed = ", ".join(self.allowed_flakes) or "none"
            raise ConfigError(
                f"{key} is {text!r}, which 'allowed_flakes' in {paths.CONFIG} does not allow "
                f"(allowed: {allowed})"
            )


def _queries(text: str) -> set[str]:
    """The names of the parameters after "?"; some, as host=, make Nix fetch from elsewhere."""
    query = text.partition("?")[2]
    return {part.partition("=")[0] for part in query.split("&") if part}


def _within(text: str, prefix: str) -> bool:
    """Whether `prefix` covers `text`: /etc/nixos covers /etc/nixos/web, but not /etc/nixos-evil."""
    if text == prefix or prefix == "":
        return True
    return text.startswith(prefix) and (prefix[-1] in "/:" or text[len(prefix)] in "/?#")


def load_settings(path: str = paths.CONFIG) -> Settings:
    """The settings in the file `path`, or the defaults if there is no file.

    ConfigError names the setting that is wrong.
    """
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        return Settings()
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: {reason_of(error)}; it must be a file of TOML, with lines as max_builds = 2"
        ) from None
    known = sorted(field.name for field in fields(Settings))
    for name, value in table.items():
        if name not in known:
            raise ConfigError(f"{path}: unknown setting {name!r}; known are {', '.join(known)}")
        table[name] = _check(path, name, value)
    return Settings(**table)


def max_roots() -> int:
    """`max_roots_per_instance`. While the settings are wrong, the limit is not known: then the
    highest value that is allowed, so that no root is dropped for the default."""
    try:
        return load_settings().max_roots_per_instance
    except ConfigError:
        return _MAX_NUMBER


def lock_patience() -> float:
    """`lock_patience`, in seconds; the default while the settings are wrong."""
    try:
        return load_settings().lock_patience
    except ConfigError:
        return Settings.lock_patience


def _check(path: str, name: str, value: Any) -> Any:
    """The value of setting `name`; ConfigError if it is not allowed."""

    def invalid(allowed: str) -> ConfigError:
        return ConfigError(f"{path}: {name} is {value!r}; allowed: {allowed}")

    match name:
        case "default_flake":
            if not isinstance(value, str):
                raise invalid("a flake reference")
            return check_flake(f"{path}: {name}", value)
        case "nixpkgs":
            if not isinstance(value, str) or not value:
                raise invalid("a reference or a path of nixpkgs, or the name of a channel")
            return check_nixpkgs(f"{path}: {name}", value)
        case "metrics":
            if not isinstance(value, bool):
                raise invalid("true or false")
        case "allowed_flakes":
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise invalid("a list of prefixes of flake references and files")
            return tuple(value)
        case "build_user":
            if not isinstance(value, str) or not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", value):
                raise invalid("the name of a user")
        case "max_failures":
            if (
                not isinstance(value, int)
                or isinstance(value, bool)
                or not 0 <= value <= _MAX_NUMBER
            ):
                raise invalid("a whole number, 0 for no limit")
        case "build_memory_max" | "daemon_memory_max":
            if not isinstance(value, str) or not _SIZE.fullmatch(value):
                raise invalid("a size as in systemd's MemoryMax=, for example '4G'")
        case "builds_per_instance":
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= IDS:
                raise invalid(f"a whole number from 1 to {IDS}")
        case "first_build_id":
            if (
                not isinstance(value, int)
                or isinstance(value, bool)
                or not _FIRST_ID <= value <= _LAST_ID
            ):
                raise invalid(f"a whole number from {_FIRST_ID} to {_LAST_ID}")
        case _:
            if (
                not isinstance(value, int)
                or isinstance(value, bool)
                or not 0 < value <= _MAX_NUMBER
            ):
                raise invalid("a whole number above 0")
    return value
