"""The spec of an instance: what its `user.inx.*` keys ask for, complete with defaults."""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from inx_sidecar.config.credentials import redact
from inx_sidecar.config.nic_keys import Nic

# Values of `activate` with which a system is only tried: nothing is made current.
TRIES: Final = ("build", "dry-activate")


@dataclass(frozen=True)
class LocalRef:
    """A flake reference to a directory of this host: SCHEME, a path, and parameters.

    `scheme` is "path" or "git+file", or empty if Nix chooses between them.
    """

    scheme: str
    path: str
    query: str

    @property
    def subdirectory(self) -> str:
        """Where the flake is below `path`; empty if it is there."""
        found = re.search(r"(?:^|&)dir=([^&]+)", self.query)
        return found[1] if found else ""


@dataclass(frozen=True)
class Flake:
    """`REF#nixosConfigurations."ATTR".config.system.build.toplevel`"""

    ref: str
    attr: str
    attr_given: bool

    def installable(self) -> str:
        return f'{self.ref}#nixosConfigurations."{self.attr}".config.system.build.toplevel'

    def identity(self) -> str:
        """The source as text.

        An attribute that comes from the instance's name is left out. So a copy, which has another
        name, has the same source and keeps its system.
        """
        return f"flake {self.ref}" + (f"#{self.attr}" if self.attr_given else "")

    def local(self) -> LocalRef | None:
        """The reference, if it leads to a directory of this host; None if Nix fetches the flake."""
        ref, scheme = self.ref, ""
        for prefix in ("path:", "git+file:"):
            if ref.startswith(prefix):
                ref, scheme = ref[len(prefix) :].removeprefix("//"), prefix[:-1]
        path, _, query = ref.partition("?")
        return LocalRef(scheme, path, query) if path.startswith("/") else None

    def directory(self) -> str | None:
        """The flake's directory on this host; None if Nix fetches the flake."""
        local = self.local()
        if local is None:
            return None
        return f"{local.path}/{local.subdirectory}" if local.subdirectory else local.path

    def __str__(self) -> str:
        return f"{redact(self.ref)}#{self.attr}"


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
    """A system that is built already: a store path, or a link on the host that leads to one."""

    path: str

    def __str__(self) -> str:
        return self.path


Source = Flake | NixFile | System


@dataclass(frozen=True)
class InstanceSpec:
    """What the operator asks for.

    `update`: any text; another text asks for a new build.
    `generation`: the number of the generation to boot, or None for the one of the source.
    `keep`: how many generations remain.
    `daemon`: whether the instance has a Nix daemon; None if the key is not set.
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
