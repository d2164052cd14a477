"""Seals tell the generations that inx wrote from those that a container wrote itself.

An isolated container may boot, and so see, only a system that inx gave to it. Its generations are
links in its rootfs, so that snapshots and copies carry them; the container can write them. So inx
writes a seal beside each generation, made with a key that no container can read. A container that
has the seal of a system was given that system before.
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


def seal_of(toplevel: str) -> str:
    """The seal of `toplevel` on this host: its HMAC-SHA-256, in hexadecimal."""
    return hmac.new(_key(), toplevel.encode(), hashlib.sha256).hexdigest()


def add_seal(change: Select | Append | None) -> Select | Append | None:
    """`change` with the seal of its system; only an Append has one."""
    return replace(change, seal=seal_of(change.toplevel)) if isinstance(change, Append) else change


def trusted_generations(present: Generations, isolated: bool) -> Generations:
    """The generations that may be booted: in an isolated container, those that inx wrote."""
    return present.with_valid_seals(seal_of) if isolated else present


def _key() -> bytes:
    """The key of this host; it is made at the first use.

    If the key is lost, no seal is valid any more, and isolated containers build their systems anew.
    UnsupportedError if the key cannot be read or written.
    """
    path = f"{paths.STATE}/seal.key"
    try:
        with open(path, "rb") as file:
            key = file.read()
    except FileNotFoundError:
        key = b""
    except OSError as error:
        raise UnsupportedError(f"cannot read {path}: {error.strerror}") from None
    return key if len(key) == _BYTES else _make_key(path)


def _make_key(path: str) -> bytes:
    key = secrets.token_bytes(_BYTES)
    try:
        with open(f"{path}.new", "wb", opener=_open_private) as file:
            file.write(key)
        os.rename(f"{path}.new", path)
    except OSError as error:
        raise UnsupportedError(f"cannot write {path}: {error.strerror}") from None
    return key


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
