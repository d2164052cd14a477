"""Flakes whose only system, called "web", a test changes over and over.

The flake lies in /srv/PREFIX, where PREFIX begins the names of all instances of the test. Another
call changes the same flake.
"""

import json

from support.incus import Incus
from support.services import wait_build


def offer(incus: Incus, system: str, directory: str = "") -> str:
    """A flake whose only system is the Nix expression `system`; `deps` is at hand."""
    outputs = f"nixosConfigurations.web.config.system.build.toplevel = {system};"
    return incus.flake_text(outputs, directory or f"/srv/{incus.prefix}")


def source(incus: Incus, greeting: str, *, activate: str = "") -> str:
    """A flake whose system says `greeting`; `activate` is shell text of its activation."""
    return offer(
        incus,
        f"""import ./system.nix {{
            inherit deps; name = "web"; extra.greeting = {json.dumps(greeting)};
            activate = {json.dumps(activate)};
        }}""",
    )


def at_switch(script: str) -> str:
    """Shell text for an activation that does nothing while the instance boots."""
    return f"[ ! -e /run/current-system ] || {{ {script}; }}"


def derivation(name: str, script: str) -> str:
    """A Nix expression that runs `script` in the busybox shell."""
    return f"""derivation {{
        name = "{name}"; system = deps.system;
        builder = "${{deps.busybox}}/bin/sh"; args = [ "-c" {json.dumps(script)} ];
    }}"""


def broken(incus: Incus) -> str:
    """A flake that cannot be evaluated."""
    outputs = "nixosConfigurations = throw ''no such luck'';"
    return incus.flake_text(outputs, f"/srv/{incus.prefix}")


def endless(incus: Incus) -> str:
    """A flake whose system takes for ever to build."""
    return offer(
        incus,
        derivation(f"{incus.prefix}-endless", "exec ${deps.busybox}/bin/sleep 86400"),
    )


def slow(incus: Incus, seconds: float, *, same: bool = False) -> str:
    """A flake whose system takes `seconds` to build.

    With `same`, the system is that of /etc/nixos#web, and the evaluation takes the time.
    """
    script = f"${{deps.busybox}}/bin/sleep {seconds}; echo >$out"
    nap = derivation(f"nap-{incus.prefix}", script)
    extra = "" if same else f'extra.slow = "${{{nap}}}";'
    system = f'import ./system.nix {{ inherit deps; name = "web"; {extra} }}'
    first = f"builtins.readFile ({nap})" if same else "null"
    return offer(incus, f"builtins.seq ({first}) ({system})", f"/srv/{incus.prefix}-slow")


def launched(incus: Incus, greeting: str = "one", *args: str, **config: str) -> str:
    """An instance that runs the system of the flake; the system says `greeting`."""
    return incus.launch(*args, flake=f"{source(incus, greeting)}#web", **config)


def bump(incus: Incus, name: str, text: str = "2") -> None:
    """Ask for a new build of the same source."""
    incus.set(name, f"user.inx.update={text}")


def start_building(incus: Incus, flake: str, *args: str) -> str:
    """An instance whose init waits for a build that runs."""
    name = incus.init(*args, flake=f"{flake}#web")
    incus.start(name)
    wait_build(incus, name)
    incus.wait_status(name, "building")
    return name
