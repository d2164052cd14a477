"""`user.inx.config*`, `user.inx.module*` and `user.inx.nixpkgs`: modules as a configuration."""

import re
from collections.abc import Mapping
from typing import Final

from inx_sidecar.base.errors import ConfigError, quoted
from inx_sidecar.config.locks import digest_of, is_release, parse_lock
from inx_sidecar.config.references import PATH, check_absolute, check_blanks, check_flake, refused
from inx_sidecar.config.sources import Flake, Modules
from inx_sidecar.incus.status_keys import LOCKED, STATE_VERSION

NIXPKGS: Final = "user.inx.nixpkgs"
MODULE_KEY: Final = re.compile(r"user\.inx\.(?P<kind>config|module)(?:\.[A-Za-z0-9_-]{1,64})?")
# All texts of an instance together. Incus writes each twice, for the instance and for each of its
# snapshots, into the index of an export. Incus 7 imports none whose index is over 1 MiB, and takes
# no longer request (MaxBytesReader in internal/server/backup and cmd/incusd/daemon.go).
_TEXTS_MAX: Final = 1 << 16
_PIECES_MAX: Final = 64
# What Nix takes in a file, beside printable characters (its lexer stops at "\0").
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# The names of the channels of NixOS are branches of nixpkgs, which the registry of Nix knows.
_CHANNEL: Final = re.compile(r"(?:nixos|nixpkgs)-(?:[0-9]{2}\.[0-9]{2}|unstable)(?:-[a-z]+)?")


def parse_modules(
    given: Mapping[str, str], instance: str, base: Flake | None, update: str
) -> Modules | None:
    """The modules that the keys in `given` name; None if there are none. They extend `base`, the
    flake of the instance, if it has one.

    ConfigError names the key that is wrong.
    """
    pieces = {key: value for key, value in sorted(given.items()) if MODULE_KEY.fullmatch(key)}
    nixpkgs = given.get(NIXPKGS, "")
    if not pieces:
        if nixpkgs:
            raise ConfigError(
                f"{NIXPKGS} goes with user.inx.config or user.inx.module; a flake has its own"
            )
        return None
    if nixpkgs and base is not None:
        raise ConfigError(
            f"{NIXPKGS} and user.inx.flake exclude each other: the flake has its own nixpkgs"
        )
    texts = [(key, text) for key, text in pieces.items() if _is_text(key)]
    files = [(key, path) for key, path in pieces.items() if not _is_text(key)]
    if len(pieces) > _PIECES_MAX:
        raise ConfigError(
            f"user.inx.config.NAME and user.inx.module.NAME are {len(pieces)}; at most "
            f"{_PIECES_MAX} are allowed"
        )
    for key, text in texts:
        _check_text(key, text)
    _check_size(texts)
    for key, path in files:
        _check_path(key, path)
    lock = parse_lock(given.get(LOCKED, ""))
    if base is not None or (lock and (lock.reference, lock.update) != (nixpkgs, digest_of(update))):
        lock = None
    version = given.get(STATE_VERSION, "")
    return Modules(
        tuple(texts), tuple(files), instance, base, nixpkgs, lock=lock,
        state_version=version if is_release(version) else "",
    )  # fmt: skip


def check_nixpkgs(key: str, value: str) -> str:
    """`value` if it can name a nixpkgs; else ConfigError."""
    if "#" in value:
        raise refused(key, value, "a reference without '#', which names all of nixpkgs")
    return value if _CHANNEL.fullmatch(value) else check_flake(key, value)


def nixpkgs_reference(value: str) -> str:
    """The reference for Nix: a branch of nixpkgs for the name of a channel."""
    return f"nixpkgs/{value}" if _CHANNEL.fullmatch(value) else value


def _is_text(key: str) -> bool:
    found = MODULE_KEY.fullmatch(key)
    return found is not None and found["kind"] == "config"


def _check_text(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise ConfigError(f"{key}:{line}: a character that is not in Unicode; remove it") from None
    if found := _CONTROL.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise ConfigError(f"{key}:{line}: the control character {quoted(found[0])}; remove it")


def _check_size(texts: list[tuple[str, str]]) -> None:
    left = _TEXTS_MAX
    for key, text in texts:
        raw = text.encode()
        if len(raw) > left:
            line = raw.count(b"\n", 0, left) + 1
            raise ConfigError(
                f"{key}:{line}: here the texts of user.inx.config exceed {_TEXTS_MAX} bytes, which "
                "is all that is allowed: put more into a file, and its path into user.inx.module"
            )
        left -= len(raw)


def _check_path(key: str, value: str) -> None:
    check_blanks(key, value)
    check_absolute(key, value)
    if not PATH.fullmatch(value) or value.endswith("/flake.nix"):
        raise refused(
            key, value, "the absolute path of a module on the host, or of a directory with "
            "default.nix; a flake goes into user.inx.flake",
        )  # fmt: skip
