"""The spec of an instance: what its `user.inx.*` keys ask for, complete with defaults."""

import hashlib
from dataclasses import dataclass
from typing import Final

from inx_sidecar.config.nic_keys import Nic
from inx_sidecar.config.sources import Source, System

# Values of `activate` with which a system is only tried: nothing is made current.
TRIES: Final = ("build", "dry-activate")


@dataclass(frozen=True)
class InstanceSpec:
    """What the operator asks for.

    `update`: any text; another text asks for a new build.
    `generation`: the number of the generation to boot, or None for the one of the source.
    `keep`: how many generations remain.
    `daemon`: whether the instance has a Nix daemon; None if the key is not set.
    `isolated`: whether the container sees only the store paths that it needs.
    `own`: whether it also has a store of its own above them; then `isolated` is true, too.
    `included`: the store paths that an isolated container sees besides its systems.
    `activate`: what a change does while the instance runs: switch, boot, test, none or one of
    TRIES.
    `confirm`: the seconds within which the operator confirms an update; 0 if nobody has to.
    `check`: what has to succeed inside after an update, as `config/system_check` reads it.
    """

    source: Source
    update: str = ""
    generation: int | None = None
    keep: int = 5
    daemon: bool | None = None
    isolated: bool = False
    own: bool = False
    included: tuple[str, ...] = ()
    activate: str = "switch"
    nics: tuple[Nic, ...] = ()
    confirm: int = 0
    check: str = ""

    def fingerprint(self, resolved: str | None = None) -> str:
        """A digest that changes when the operator asks for another source, or for a new build.

        `resolved` is the store path that a System leads to. The container can read the fingerprint,
        so it is a digest: the reference of a source may contain an access token.
        """
        identity = f"system {resolved}" if isinstance(self.source, System) else self.source_identity
        return hashlib.sha256(f"{identity}\0{self.update}".encode()).hexdigest()[:32]

    @property
    def wish(self) -> str:
        """A digest of the system that is asked for, whatever is done with it. The files of the
        source, and what a link leads to, have no part in it."""
        wanted = f"{self.source_identity}\0{self.update}\0{self.generation}"
        return hashlib.sha256(wanted.encode()).hexdigest()[:32]

    @property
    def only_tries(self) -> bool:
        return self.activate in TRIES

    @property
    def source_identity(self) -> str:
        return str(self.source) if isinstance(self.source, System) else self.source.identity()
