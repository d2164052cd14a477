"""What a build has used of a reference that Nix fetches: kept in a key of the instance, so that the
next build of the same wish gives the same system.

The key is part of the configuration: so a copy, a moved instance and a restored snapshot have it,
and nobody inside can change it. Who edits the instance can. So a lock that Nix is given names only
what comes from a server or from the store, by the hash of its content: a file of the user who
evaluates has no place in it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from inx_sidecar.config.credentials import has_credentials
from inx_sidecar.nix.store_paths import STORE_PATH

_SIZE_MAX: Final = 1 << 13
_STRING_MAX: Final = 2000
_NAME: Final = re.compile(r"[A-Za-z]{1,32}")
_RELEASE: Final = re.compile(r"[0-9]{2}\.[0-9]{2}")
_FORGES: Final = ("github", "gitlab", "sourcehut")
_URLS: Final = {"tarball": ("https://", "http://"), "git": ("https://", "http://", "ssh://")}
_BELOW: Final = re.compile(r"(?:/[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,100}){0,8}")


@dataclass(frozen=True)
class Lock:
    """What Nix has made of a reference.

    `reference`: what the operator asked for; empty for the setting of the host. `update`: a digest
    of the value of user.inx.update that it was made for. `attributes`: what a flake.lock has under
    "locked" (nix3-flake, Lock files). `below`: where nixpkgs lies in that.
    """

    reference: str
    update: str
    attributes: tuple[tuple[str, str | int | bool], ...]
    below: str = ""

    def text(self) -> str:
        """The value of the key."""
        value = {
            "of": self.reference, "update": self.update, "locked": dict(self.attributes),
            "below": self.below,
        }  # fmt: skip
        return json.dumps(value, separators=(",", ":"), sort_keys=True)

    def get(self, name: str) -> str:
        """An attribute; empty if there is none, or if it is no text."""
        value = dict(self.attributes).get(name, "")
        return value if isinstance(value, str) else ""

    @property
    def store_path(self) -> str:
        """The path in the store, if the reference was one; else empty."""
        return self.get("path")

    def __str__(self) -> str:
        """What is locked, for the log of a build: a revision or a hash, and its date."""
        what = self.get("path") or self.get("rev") or self.get("narHash")
        if self.get("type") in _FORGES:
            what = f"{self.get('type')}:{self.get('owner')}/{self.get('repo')}/{what}"
        elif self.get("url"):
            what = f"{self.get('url')} {what}"
        since = dict(self.attributes).get("lastModified")
        if not isinstance(since, int) or not 1 < since < 1 << 33:
            return f"{what}{self.below}"
        return f"{what}{self.below} ({datetime.fromtimestamp(since, UTC):%Y-%m-%d})"


def digest_of(update: str) -> str:
    """What a lock says of the value of user.inx.update."""
    return hashlib.sha256(update.encode(errors="surrogateescape")).hexdigest()[:16]


def lock_of(reference: str, update: str, fetched: Any, below: str = "") -> Lock | None:
    """The lock of `reference` after 'nix flake prefetch --json' (Nix 2.18 to 2.34) has said
    `fetched` of it; None if that is not what Nix says.

    What is on no server, as a directory of the host, is in the store by now; so is what was fetched
    with a credential in its URL. Nix 2.18 says only that."""
    if not isinstance(fetched, Mapping):
        return None
    in_store = {"type": "path", "path": fetched.get("storePath")}
    for locked in fetched.get("locked"), in_store:
        if isinstance(locked, Mapping):
            public = {name: value for name, value in locked.items() if name[:1] != "_"}
            attributes = public | {"narHash": fetched.get("hash")}
            if lock := _lock(reference, digest_of(update), attributes, below):
                return lock
    return None


def parse_lock(text: str) -> Lock | None:
    """The lock that the key says; None if it is not what inx writes."""
    if len(text) > _SIZE_MAX:
        return None
    try:
        value = json.loads(text)
        return _lock(value["of"], value["update"], value["locked"], value["below"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def is_release(text: object) -> bool:
    """Whether `text` is a release of NixOS, as system.stateVersion names one."""
    return isinstance(text, str) and _RELEASE.fullmatch(text) is not None


def _lock(reference: Any, update: Any, attributes: Any, below: Any) -> Lock | None:
    if not all(isinstance(each, str) for each in (reference, update, below)):
        return None
    if not isinstance(attributes, Mapping) or not _BELOW.fullmatch(below):
        return None
    if not all(_is_plain(name, value) for name, value in attributes.items()):
        return None
    lock = Lock(reference, update, tuple(sorted(attributes.items())), below)
    return lock if _is_fixed(lock) and len(lock.text()) <= _SIZE_MAX else None


def _is_plain(name: Any, value: Any) -> bool:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return False
    if isinstance(value, str):
        return len(value) <= _STRING_MAX and value.isprintable()
    return isinstance(value, (bool, int))


def _is_fixed(lock: Lock) -> bool:
    """Whether Nix takes the same at each time, from a server or from the store."""
    kind = lock.get("type")
    if not lock.get("narHash") or has_credentials(lock.get("url")):
        return False  # everybody inside reads the key
    if kind == "path":
        return STORE_PATH.fullmatch(lock.store_path) is not None
    return kind in _FORGES or lock.get("url").startswith(_URLS.get(kind, ("\0",)))
