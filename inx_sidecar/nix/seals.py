"""Seals tell the generations that inx gave to an instance from those that a container made up.

An isolated container may boot, and so see, only a system that inx gave to it. Its generations are
links in its rootfs, so that snapshots and copies carry them; the container can write them. So inx
writes a seal beside each generation: an HMAC of the instance's uuid and of the system, with a key
that no container can read. So a seal that one instance tells another one does not count there.

A copy brings seals with the uuid of the instance that it was copied from. They count as well, until
the copy has started once and has seals of its own.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.nix.generation_changes import Append
from inx_sidecar.nix.generations import Generations

_BYTES: Final = 32
_SEAL: Final = re.compile("[0-9a-f]{64}")


class Sealer:
    """Makes and checks the seals of instance `uuid`; the host's key is read once.

    `origin` is the uuid of the instance that this one was copied from and whose seals count too; ""
    if there is none. `former` are the systems for which a seal of the former format, without a
    uuid, counts.
    """

    def __init__(self, uuid: str, origin: str = "", former: Iterable[str] = ()) -> None:
        self._own = uuid.encode()
        self._origin = origin.encode()
        self._former = frozenset(former)

    def seal_of(self, toplevel: str) -> str:
        """The seal of `toplevel` for this instance, on this host: HMAC-SHA-256 in hexadecimal."""
        return self._hmac(self._own + b"\0" + toplevel.encode())

    def is_own(self, toplevel: str, seal: str) -> bool:
        """Whether `seal`, any text, was made for this instance and `toplevel`."""
        return _SEAL.fullmatch(seal) is not None and hmac.compare_digest(
            seal, self.seal_of(toplevel)
        )

    def counts(self, toplevel: str, seal: str) -> bool:
        """Whether `seal`, any text, shows that inx gave `toplevel` to this instance, or to the one
        that it is a copy of."""
        if self.is_own(toplevel, seal):
            return True
        if not _SEAL.fullmatch(seal):
            return False
        name = toplevel.encode()
        return (
            bool(self._origin)
            and hmac.compare_digest(seal, self._hmac(self._origin + b"\0" + name))
        ) or (toplevel in self._former and hmac.compare_digest(seal, self._hmac(name)))

    def trusted(self, present: Generations) -> Generations:
        """The generations whose seals count."""
        return present.with_valid_seals(self.counts)

    def missing_seals(self, present: Generations) -> dict[int, tuple[str, str]]:
        """System and new seal of each generation that has a seal which counts, but is not that of
        this instance."""
        return {
            number: (system, self.seal_of(system))
            for number, system in self.trusted(present).links.items()
            if not self.is_own(system, present.seals[number])
        }

    def add_seal(self, append: Append) -> Append:
        return replace(append, seal=self.seal_of(append.toplevel))

    def _hmac(self, text: bytes) -> str:
        return hmac.digest(self._key, text, hashlib.sha256).hex()

    @cached_property
    def _key(self) -> bytes:
        """The key of this host; it is made at the first use.

        If the key is lost, no seal counts any more, and isolated containers build their systems
        anew. UnsupportedError if the key cannot be read or written.
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
