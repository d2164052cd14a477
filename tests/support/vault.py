"""An isolated instance, and store paths of the host that it must not see.

`Vault.secret` and `Vault.shown` are alike, store paths that no system needs. Only `shown` is
included in the view. An attack that finds `shown` would also find `secret`, if the view had it.
"""

import os
from collections.abc import Callable
from typing import Any

from support.attacks import inside
from support.incus import Incus
from support.store import STORE, build_system, closure


def name_of_path(path: str) -> str:
    return path.removeprefix(f"{STORE}/")


def names_of_closure(incus: Incus, *paths: str) -> set[str]:
    """The names of all store paths that these need."""
    return {name_of_path(path) for path in closure(incus.host, *paths)}


def stored_names(incus: Incus) -> set[str]:
    return set(incus.host.run(["ls", "-A", STORE]).stdout.split())


def add_directory(incus: Incus, label: str) -> str:
    """A directory in the store, with a file, a program and a link in it."""
    script = """
        d=$(mktemp -d)/$L; mkdir -p "$d/below"; cd "$d"
        echo "bytes of $L" >file; cp file below; ln -s file link
        printf '#!/bin/sh\\necho "bytes of $L"\\n' >run; chmod +x run
        nix-store --add "$d"
    """
    return str(incus.host.sh(script, env={"L": f"{incus.prefix}-{label}"}).stdout.strip())


def build_foreign(incus: Incus, greeting: str) -> str:
    """A system that no instance was given."""
    flake = incus.flake(directory=f"/srv/{incus.prefix}-{greeting}", greeting=greeting)
    return build_system(incus.host, flake, f"{flake}/result")


class Vault:
    def __init__(self, incus: Incus, *options: str, **config: str) -> None:
        self.incus, self.host = incus, incus.host
        self.secret, self.shown = add_directory(incus, "secret"), add_directory(incus, "shown")
        # A store that shares equal files has such a link.
        self.host.sh(f"mkdir -p {STORE}/.links; ln -f {self.secret}/file {STORE}/.links/0secret")
        more = {"flake": "/etc/nixos#web", "store": "isolated", "store_include": self.shown}
        self.name = incus.init(*options, **(more | config))

    def launch(self) -> "Vault":
        self.incus.start(self.name)
        self.incus.wait_ready(self.name)
        return self

    @property
    def secret_name(self) -> str:
        return os.path.basename(self.secret)

    @property
    def shown_name(self) -> str:
        return os.path.basename(self.shown)

    @property
    def system(self) -> str:
        return self.incus.get(self.name, "user.inx.status.system")

    def visible(self) -> set[str]:
        """The names that the view has to show."""
        return names_of_closure(self.incus, self.system, self.shown)

    def foreign(self) -> list[str]:
        """The names of all other store paths."""
        return sorted(stored_names(self.incus) - self.visible())

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        return inside(self.incus, self.name, function, *args)
