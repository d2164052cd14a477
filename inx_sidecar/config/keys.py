"""`user.inx.*` keys: the text of a configuration becomes an InstanceSpec, or is refused once.

Whoever may edit an instance chooses these values; Incus lets any bytes through. What comes out of
`parse` is safe to pass as one argument of a command and to print on one line.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base.errors import ConfigError, not_allowed, shown
from inx_sidecar.config.addresses import KEY as NET_KEY
from inx_sidecar.config.addresses import Nic, parse_nics
from inx_sidecar.nix.store import STORE_PATH, listed

PREFIX: Final = "user.inx."

# No blanks, control characters or quotes; a leading "-" would be an option; "#" splits off ATTR.
_REFERENCE: Final = re.compile(r"[A-Za-z0-9/][!$%&()*+,./0-9:;=?@A-Z_a-z~\[\]-]{0,1023}")
# A path on the host, spelt in full: ".." could step out of an allowed prefix.
_PATH: Final = re.compile(r"/(?!.*(?:^|/)\.\.?(?:/|$))[!%+,./0-9:=@A-Z_a-z~-]{0,1023}")
# One component: it is quoted in the installable, so dots are part of the name.
_ATTR: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,255}")
# An attribute path as nix-build -A takes it.
_ATTR_PATH: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_'-]*(?:\.[A-Za-z0-9_][A-Za-z0-9_'-]*)*")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*:")
# ID, ID/REF or ID/REF/REV.
_REGISTRY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,2}")


@dataclass(frozen=True)
class Flake:
    """`REF#nixosConfigurations."ATTR".config.system.build.toplevel`"""

    ref: str
    attr: str
    attr_given: bool

    def installable(self) -> str:
        return f'{self.ref}#nixosConfigurations."{self.attr}".config.system.build.toplevel'

    def identity(self) -> str:
        """Without an attribute it is the same source under every name: copies keep their system."""
        return f"flake {self.ref}" + (f"#{self.attr}" if self.attr_given else "")

    def directory(self) -> str | None:
        """The directory on this host that holds the flake; None for a fetched one."""
        ref = self.ref
        for prefix in ("path:", "git+file://", "git+file:"):
            if ref.startswith(prefix + "/"):
                ref = ref[len(prefix) :]
                break
        path, _, query = ref.partition("?")
        inner = re.search(r"(?:^|&)dir=([^&]+)", query)
        if not path.startswith("/"):
            return None
        return f"{path}/{inner[1]}" if inner else path

    def __str__(self) -> str:
        return f"{self.ref}#{self.attr}"


@dataclass(frozen=True)
class NixFile:
    """`nix-build PATH -A ATTR`"""

    path: str
    attr: str
    attr_given: bool

    def identity(self) -> str:
        return f"file {self.path}" + (f"#{self.attr}" if self.attr_given else "")

    def __str__(self) -> str:
        return f"{self.path} -A {self.attr}"


@dataclass(frozen=True)
class System:
    """A toplevel that exists: a store path, or a link on the host that leads to one."""

    path: str

    def __str__(self) -> str:
        return self.path


Source = Flake | NixFile | System


@dataclass(frozen=True)
class InstanceSpec:
    """What the operator asks for, complete with defaults."""

    source: Source
    update: str = ""
    generation: int | None = None
    keep: int = 5
    daemon: bool | None = None
    isolated: bool = False
    include: tuple[str, ...] = ()
    activate: str = "switch"
    nics: tuple[Nic, ...] = ()

    def fingerprint(self, resolved: str | None = None) -> str:
        """Equal as long as no rebuild is asked for; `resolved` is where a System leads.

        It stands in the container's file system, so it tells nothing about the source:
        a reference may hold an access token.
        """
        identity = f"system {resolved}" if isinstance(self.source, System) else self.source_identity
        return hashlib.sha256(f"{identity}\0{self.update}".encode()).hexdigest()[:32]

    @property
    def source_identity(self) -> str:
        return str(self.source) if isinstance(self.source, System) else self.source.identity()


def parse(config: Mapping[str, str], instance: str, default_flake: str) -> InstanceSpec:
    """The spec in the expanded config of `instance`; ConfigError names the key that is wrong."""
    given = {k: v for k, v in config.items() if k.startswith(PREFIX) and v != ""}
    for key in given:
        known = key in _KEYS or NET_KEY.fullmatch(key) or _WRITTEN_BY_INX.fullmatch(key)
        if not known:
            raise ConfigError(f"unknown key {shown(key, 450)}; {_known()}")
    values = {key: _KEYS[key](key, value) for key, value in given.items() if key in _KEYS}
    isolated = given.get(f"{PREFIX}store") == "isolated"
    if isolated and given.get(f"{PREFIX}daemon") == "true":
        raise ConfigError(
            "user.inx.daemon=true and user.inx.store=isolated exclude each other: a Nix daemon "
            "shows every path of the store; unset one"
        )
    if not isolated and f"{PREFIX}store.include" in given:
        raise ConfigError("user.inx.store.include goes with user.inx.store=isolated")
    generation = given.get(f"{PREFIX}generation")
    return InstanceSpec(
        source=_source(values, instance, default_flake),
        update=given.get(f"{PREFIX}update", ""),
        generation=None if generation is None else int(generation),
        keep=int(given.get(f"{PREFIX}keep", InstanceSpec.keep)),
        daemon=_bool(given.get(f"{PREFIX}daemon")),
        isolated=isolated,
        activate=given.get(f"{PREFIX}activate", InstanceSpec.activate),
        include=listed(given.get(f"{PREFIX}store.include", "")),
        nics=parse_nics(given),
    )


def _source(values: Mapping[str, str], instance: str, default_flake: str) -> Source:
    chosen = [name for name in ("flake", "file", "system") if PREFIX + name in values]
    if len(chosen) > 1:
        names = " and ".join(PREFIX + name for name in chosen)
        raise ConfigError(f"{names} exclude each other; unset all but one")
    attr = values.get(f"{PREFIX}attr")
    if attr is not None and chosen != ["file"]:
        raise ConfigError("user.inx.attr goes with user.inx.file; a flake takes REF#ATTR")
    match chosen:
        case ["file"]:
            path = values[f"{PREFIX}file"]
            return NixFile(path, attr or _attr_name(instance), attr is not None)
        case ["system"]:
            return System(values[f"{PREFIX}system"])
        case _:
            return flake_from(values.get(f"{PREFIX}flake", default_flake), instance)


def flake_from(text: str, instance: str) -> Flake:
    ref, _, attr = text.partition("#")
    return Flake(ref, attr or instance, bool(attr))


def _attr_name(instance: str) -> str:
    """An instance's name may begin with a digit or hold "--"; both are fine when quoted."""
    return instance if _ATTR_PATH.fullmatch(instance) else f'"{instance}"'


def check_flake(key: str, value: str) -> str:
    ref, mark, attr = value.partition("#")
    if not _REFERENCE.fullmatch(ref) or (mark and not _ATTR.fullmatch(attr)):
        raise not_allowed(
            key, value, "REF or REF#ATTR, for example /etc/nixos or github:owner/repo#web"
        )
    # Nix resolves steps in paths, %2e%2e as well: they could lead out of an allowed prefix.
    path = re.sub("%2e", ".", ref, flags=re.IGNORECASE)
    if {".", ".."} & set(re.split("[/:?&=]", path)):
        raise not_allowed(key, value, "a reference without the steps '.' and '..'")
    if not ref.startswith("/") and not _SCHEME.match(ref) and not _REGISTRY.fullmatch(ref):
        raise not_allowed(key, value, "an absolute path, a URL or a name of the flake registry")
    if re.match(r"(path|git\+file):(//)?(?!/)", ref):
        raise not_allowed(key, value, "an absolute path: the sidecar has no working directory")
    if ref.startswith(("/", "path:", "git+file:")) and "%" in path.partition("?")[0]:
        raise not_allowed(key, value, "a path without '%'")
    return value


def _file(key: str, value: str) -> str:
    if not _PATH.fullmatch(value):
        raise not_allowed(key, value, "the absolute path of a Nix file on the host")
    return value


def _attr(key: str, value: str) -> str:
    if not _ATTR_PATH.fullmatch(value) or len(value) > 256:
        raise not_allowed(key, value, "an attribute path such as web or hosts.web")
    return value


def _system(key: str, value: str) -> str:
    if not _PATH.fullmatch(value) or (
        value.startswith("/nix/store/") and not STORE_PATH.fullmatch(value)
    ):
        raise not_allowed(
            key, value, "/nix/store/HASH-NAME, or a link on the host that leads there"
        )
    return value


def _number(low: int, high: int) -> Callable[[str, str], str]:
    def check(key: str, value: str) -> str:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise not_allowed(key, value, f"a number from {low} to {high}")
        return value

    return check


def _one_of(*allowed: str) -> Callable[[str, str], str]:
    def check(key: str, value: str) -> str:
        if value not in allowed:
            raise not_allowed(key, value, " or ".join(allowed))
        return value

    return check


def _store_paths(key: str, value: str) -> str:
    if re.sub(r"[\s,]+", " ", value).split() != list(listed(value)):
        raise not_allowed(key, value, "/nix/store/HASH-NAME, more of them with blanks between")
    return value


def _any(_key: str, value: str) -> str:
    return value


def _bool(value: str | None) -> bool | None:
    return None if value is None else value == "true"


_KEYS: Final[Mapping[str, Callable[[str, str], str]]] = {
    "user.inx.flake": check_flake,
    "user.inx.file": _file,
    "user.inx.attr": _attr,
    "user.inx.system": _system,
    "user.inx.store": _one_of("shared", "isolated"),
    "user.inx.store.include": _store_paths,
    "user.inx.daemon": _one_of("true", "false"),
    "user.inx.generation": _number(1, 999_999_999),
    "user.inx.update": _any,
    "user.inx.activate": _one_of("switch", "boot", "test", "none"),
    "user.inx.keep": _number(1, 1000),
}
_WRITTEN_BY_INX: Final = re.compile(r"user\.inx\.(status(\.system|\.generation)?|declared)")


def _known() -> str:
    keys = [*_KEYS, *(f"{PREFIX}net.NIC.{what}" for what in ("address", "host_address", "gateway"))]
    return "known are " + ", ".join(key.removeprefix(PREFIX) for key in keys)
