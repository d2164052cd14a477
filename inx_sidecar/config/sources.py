"""What a system is built from, or where it is: the sources that `user.inx.*` keys can name."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Final

from inx_sidecar.config.credentials import redact
from inx_sidecar.config.locks import Lock

_SHOWN: Final = 3


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


@dataclass(frozen=True)
class Modules:
    """A configuration of NixOS that consists of modules.

    `texts` are keys with the text of a module, `files` keys with a path on the host. `base` is a
    flake whose configuration they extend. Without it, `nixpkgs` is what the operator names as
    nixpkgs, empty for the setting of the host, and `below` is where it lies in that. `attr` is the
    name that the configuration gets.
    `lock` is what the build before this one has used of `nixpkgs`; None to look what that is now.
    `state_version` is system.stateVersion unless a module sets it; empty before the first
    build.
    """

    texts: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]
    attr: str
    base: Flake | None = None
    nixpkgs: str = ""
    below: str = ""
    lock: Lock | None = None
    state_version: str = ""

    def identity(self) -> str:
        """The source as text, without what the builds before have found."""
        pieces = json.dumps([self.texts, self.files])
        digest = hashlib.sha256(pieces.encode(errors="surrogateescape")).hexdigest()
        of = f"nixpkgs {self.nixpkgs}" if self.base is None else self.base.identity()
        return f"modules {digest} on {of}"

    def __str__(self) -> str:
        pieces = [key for key, _ in self.texts] + [path for _, path in self.files]
        if len(pieces) > _SHOWN:
            pieces[_SHOWN - 1 :] = [f"{len(pieces) - _SHOWN + 1} more"]
        named = " and ".join(filter(None, (", ".join(pieces[:-1]), pieces[-1])))
        return named if self.base is None else f"{self.base} with {named}"


Source = Flake | NixFile | Modules | System
