"""What a system is built from, or where it is: the sources that `user.inx.*` keys can name."""

import re
from dataclasses import dataclass

from inx_sidecar.config.credentials import redact


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
