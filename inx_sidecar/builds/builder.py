"""Who evaluates a source, and where it lies, for a sentence about a failure.

The texts of Nix are those of 2.18 to 2.34. A source decides what is printed, and may print what
looks like one of them. So a command, and the name of a server, have only words that inx knows by
itself, or that are equal to them; a file lies below the directory that the operator chose. No
command is proposed that would do more than the user who evaluates may do.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from inx_sidecar.config.sources import Source

# A path that no shell and no git takes for more than one, as git takes "/srv/*".
PLAIN_PATH: Final = re.compile(r"/[\w.+@=,:/ -]{1,400}", re.ASCII)


@dataclass(frozen=True)
class Builder:
    """Who evaluates: the user `name`, with the home directory `home`; `alone` if only the groups
    are those of `name`.

    `source` is what the operator named. `directory` is where it lies on this host, or empty;
    `owner` is the user who owns that, or empty if none is known. `file` is a Nix file, as the build
    sees it, or empty.
    `repository` is the directory of git that is evaluated, or empty. `seen` is the path of
    `directory` or `repository` as the build sees it, if that is another. `server` is whom git asks
    for the source over http, or empty.
    """

    name: str
    home: str
    alone: bool = False
    repository: str = ""
    seen: str = ""
    server: str = ""
    source: Source | None = None
    directory: str = ""
    owner: str = ""
    file: str = ""

    def has(self, repository: str) -> bool:
        """Whether `repository` is the one that is evaluated, as git or Nix names it."""
        named = repository.removesuffix("/").removesuffix("/.git")
        return bool(self.repository) and named in (self.repository, self.seen or self.repository)

    def own(self, path: str) -> str:
        """`path` on this host, if it is the directory of the source or below it; else empty."""
        top = self.seen or self.directory
        if not self.directory or ".." in path.split("/") or not f"{path}/".startswith(f"{top}/"):
            return ""
        return self.directory + path.removeprefix(top)

    def running(self, command: str) -> str:
        """As whom `command` is run: a user of one build alone has nothing of its own."""
        anybody = self.alone or self.name == "root"
        return f"'{command}'" if anybody else f"'{command}' as {self.name}"


def directory_of(ref: str) -> str:
    """The directory on this host of the reference `ref`, as Nix is given it; else empty."""
    scheme, mark, rest = ref.partition(":")
    path = rest.partition("?")[0] if scheme in ("path", "git+file") else ref if not mark else ""
    path = unquote(path.removeprefix("//"))
    return path if path.startswith("/") else ""


def repository_of(ref: str) -> str:
    """The directory of the reference `ref`, as Nix is given it, if git decides about its files."""
    scheme, _, rest = ref.partition("://")
    return unquote(rest.partition("?")[0]) if scheme == "git+file" else ""


def server_of(ref: str) -> str:
    """The server of the reference `ref`, as git names it when it asks for a password."""
    found = re.match(
        r"git\+(https?://)(?:[^/?#]*@)?([\w.-]+(?::[0-9]+)?)(?:[/?#]|$)", ref, re.ASCII
    )
    return found[1] + found[2] if found else ""
