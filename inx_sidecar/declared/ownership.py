"""`user.inx.declared`: the key by which an instance says that the host's configuration declares it.

The key names the instance itself, its project and its host, so a copy or an instance that was
renamed or moved is not a declared one. The key also lists which configuration keys and devices were
declared last: those that are no longer declared are taken back, and everything else stays as
somebody set it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from inx_sidecar.base import paths

OWNERSHIP_KEY: Final = "user.inx.declared"
_MAX_LENGTH: Final = 1 << 16


def this_host() -> str:
    """An identifier of this host that does not reveal its machine id (machine-id(5))."""
    try:
        with open(paths.MACHINE_ID) as file:
            identity = file.read().strip()
    except OSError:
        identity = ""
    return hashlib.sha256(f"inx declared {identity}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Ownership:
    """The value of OWNERSHIP_KEY.

    `config` and `devices` are the names of what was declared last. `complete` is false for an
    instance that was given over to the declaration, but not changed by it yet.
    """

    name: str
    project: str
    host: str
    config: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    complete: bool = True

    @classmethod
    def is_of_another_host(cls, present: Mapping[str, Any], host: str) -> bool:
        """Whether another host than `host`, as a member of its cluster, declares `present`."""
        try:
            other = str(json.loads(present["config"][OWNERSHIP_KEY])["host"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        return other != host and cls.of(present, other) is not None

    @classmethod
    def of(cls, present: Mapping[str, Any], host: str) -> Self | None:
        """What `present`, an instance as Incus has it, says of its declaration on `host`.

        None if the instance was made by hand or copied from a declared one. An instance whose key
        has its name alone, which somebody wrote, is given over to the declaration.
        """
        name, project = present["name"], present["project"]
        text = (present["config"] or {}).get(OWNERSHIP_KEY, "")
        if text == name:
            return cls(name, project, host, complete=False)
        try:
            value = json.loads(text if len(text) <= _MAX_LENGTH else "")
            declared = frozenset(value["config"]), frozenset(value["devices"])
            found = cls(value["name"], value["project"], value["host"], *declared)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return found if (found.name, found.project, found.host) == (name, project, host) else None

    def as_text(self) -> str:
        value = {
            "name": self.name, "project": self.project, "host": self.host,
            "config": sorted(self.config), "devices": sorted(self.devices),
        }  # fmt: skip
        return json.dumps(value, separators=(",", ":"))
