"""Seals tell the generations that inx wrote from those that a container made up.

An isolated container may boot, and so see, only a system that was given to it. Its generations are
links that it can write, and have to be: snapshots and copies carry them. So each that inx writes
bears a seal, made with a key that no container can read. Who has a seal had the system before.
"""

import hashlib
import hmac
import os
import secrets
from dataclasses import replace
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.nix.generations import Append, Generations, Select

_BYTES: Final = 32


def seal(toplevel: str) -> str:
    """What vouches for `toplevel` on this host."""
    return hmac.new(_key(), toplevel.encode(), hashlib.sha256).hexdigest()


def with_seal(change: Select | Append | None) -> Select | Append | None:
    """`change` with the seal that it needs."""
    return replace(change, seal=seal(change.toplevel)) if isinstance(change, Append) else change


def only_sealed(present: Generations, isolated: bool) -> Generations:
    """Of the generations of an isolated container those that inx wrote; of others, all."""
    return present.sealed(seal) if isolated else present


def _key() -> bytes:
    """The key of this host; made once. Without it isolated containers build their systems anew."""
    path = f"{paths.STATE}/seal.key"
    try:
        with open(path, "rb") as file:
            key = file.read()
    except FileNotFoundError:
        key = b""
    except OSError as error:
        raise UnsupportedError(f"cannot read {path}: {error.strerror}") from None
    return key if len(key) == _BYTES else _make(path)


def _make(path: str) -> bytes:
    key = secrets.token_bytes(_BYTES)
    try:
        with open(f"{path}.new", "wb", opener=_private) as file:
            file.write(key)
        os.rename(f"{path}.new", path)
    except OSError as error:
        raise UnsupportedError(f"cannot write {path}: {error.strerror}") from None
    return key


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
