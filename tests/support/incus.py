"""The verbs of incus on a disposable host, as the tests use them."""

import json
import re
import time
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

from support.disposable import Host

SECONDS = 60.0


class Incus:
    """Instances are named after the test: `name()` gives "t7", `name("b")` "t7-b"."""

    def __init__(self, host: Host, prefix: str) -> None:
        self.host = host
        self.prefix = prefix
        self._launched: list[tuple[str, str]] = []
        self._consoles: dict[str, str] = {}

    def name(self, suffix: str = "") -> str:
        return f"{self.prefix}-{suffix}" if suffix else self.prefix

    def __call__(self, *args: str, check: bool = True, **more: Any) -> CompletedProcess[str]:
        return self.host.run(["incus", *args], check=check, **more)

    def init(self, *args: str, name: str = "", project: str = "default", **config: str) -> str:
        """Create an instance; keywords are user.inx.* keys, with "_" for "."."""
        name = self.adopt(name or self.name(), project)
        keys = [f"user.inx.{key.replace('_', '.')}={value}" for key, value in config.items()]
        options = [word for key in keys for word in ("-c", key)]
        self("init", "--empty", name, "--profile", "inx", "--project", project, *options, *args)
        return name

    def adopt(self, name: str, project: str = "default") -> str:
        """Delete `name` after the test."""
        self._launched.append((project, name))
        return name

    def start(
        self, name: str, project: str = "default", check: bool = True
    ) -> CompletedProcess[str]:
        return self("start", name, "--project", project, check=check)

    def launch(self, *args: str, name: str = "", project: str = "default", **config: str) -> str:
        """Create and start an instance, and wait until its system is there."""
        name = self.init(*args, name=name, project=project, **config)
        self.start(name, project)
        self.wait_ready(name, project)
        return name

    def run(
        self, name: str, *argv: str, project: str = "default", check: bool = True, **more: Any
    ) -> CompletedProcess[str]:
        """Run a program inside, with the environment that incus gives."""
        return self("exec", name, "--project", project, "--", *argv, check=check, **more)

    def sh(self, name: str, script: str, **more: Any) -> CompletedProcess[str]:
        return self.run(name, "sh", "-euc", script, **more)

    def said(self, name: str, *argv: str, **more: Any) -> str:
        """What a program prints that does nothing else: output of incus exec may get lost, all of
        it, so that it is asked again while there is none."""
        found: list[str] = []

        def speaks() -> bool:
            found[:] = [self.run(name, *argv, **more).stdout]
            return found[0] != ""

        self.eventually(speaks, lambda: f"{argv} says nothing in {name}")
        return found[0]

    def inside(self, name: str, script: str) -> bool:
        """Whether `script` succeeds inside: output of incus exec may get lost, its status not."""
        return self.sh(name, script, check=False).returncode == 0

    def get(self, name: str, key: str, project: str = "default") -> str:
        return self("config", "get", name, key, "--project", project).stdout.strip()

    def set(self, name: str, *pairs: str, project: str = "default") -> None:
        self("config", "set", name, *pairs, "--project", project)

    def status(self, name: str, project: str = "default") -> str:
        return self.get(name, "user.inx.status", project)

    def state(self, name: str, project: str = "default") -> str:
        found = self("list", f"^{name}$", "--project", project, "-c", "s", "-f", "csv").stdout
        return found.strip()

    def json(self, *args: str) -> Any:
        return json.loads(self(*args).stdout)

    def info(self, name: str, project: str = "default") -> dict[str, Any]:
        return dict(self.json("query", f"/1.0/instances/{name}?project={project}"))

    def pid(self, name: str) -> int:
        """Of the instance's init, as the host numbers it; 0 if it does not run."""
        state = self("query", f"/1.0/instances/{name}/state", check=False).stdout
        return int(json.loads(state)["pid"]) if state else 0

    def uuid(self, name: str, project: str = "default") -> str:
        return self.get(name, "volatile.uuid", project)

    def log(self, name: str, project: str = "default") -> str:
        """What `incus info --show-log` shows."""
        return self("info", name, "--show-log", "--project", project, check=False).stdout

    def console(self, name: str, project: str = "default") -> str:
        """All that the console showed: Incus gives out each part of a running one only once.

        One that has stopped is shown from its beginning, but not before Incus has put it away.
        """
        new = self("console", name, "--show-log", "--project", project, check=False).stdout
        before = self._consoles.get(name, "")
        self._consoles[name] = new if new.startswith(before) else before + new
        return self._consoles[name]

    def wait_ready(self, name: str, project: str = "default") -> None:
        """Until the sidecar says so and the system has come up."""
        self.wait_status(name, "ready", project)
        self.wait_inside(name, project)

    def wait_inside(self, name: str, project: str = "default") -> None:
        """Until the system, and no longer the bootstrap init, answers."""
        check = ["exec", name, "--project", project, "--", "test", "-e", "/run/current-system/init"]
        self.eventually(
            lambda: self(*check, check=False).returncode == 0,
            lambda: f"{name} has no system: {self.console(name, project)}",
        )

    def wait_generation(self, name: str, number: str, project: str = "default") -> None:
        """Until the status says that `number` runs, and runs well."""
        keys = ("user.inx.status", "user.inx.status.generation")
        self.eventually(
            lambda: [self.get(name, key, project) for key in keys] == ["ready", number],
            self.story,
        )

    def wait_told(self, name: str, generation: int) -> None:
        """Until the status, which may be that of the last start at first, names `generation`."""
        key = "user.inx.status.generation"
        self.eventually(lambda: self.get(name, key) == str(generation), self.story)

    def restart_into(self, name: str, *, generation: int) -> None:
        """Restart and wait until `generation` runs."""
        self("restart", "-f", name)
        self.wait_inside(name)
        self.wait_told(name, generation)
        self.wait_ready(name)

    def wait_status(self, name: str, pattern: str, project: str = "default") -> str:
        """The status once it matches `pattern` from its beginning."""
        self.eventually(
            lambda: re.match(pattern, self.status(name, project)) is not None,
            lambda: f"status of {name} is {self.status(name, project)!r}, not {pattern!r}",
        )
        return self.status(name, project)

    def wait_state(self, name: str, state: str, project: str = "default") -> None:
        self.eventually(
            lambda: self.state(name, project) == state,
            lambda: f"{name} is {self.state(name, project)}, not {state}",
        )

    def eventually(self, holds: Callable[[], bool], otherwise: Callable[[], str]) -> None:
        """Wait for what Incus gives no event for."""
        deadline = time.monotonic() + SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(otherwise())
            time.sleep(0.05)

    def flake(self, *names: str, directory: str = "", **texts: str) -> str:
        """A flake on the host with small systems called `names`; `texts` are files in their /etc.

        The directory's name is new unless given; calling it again changes the flake.
        """
        directory = directory or f"/srv/{self.prefix}"
        extra = "".join(f"extra.{key} = {json.dumps(value)};\n" for key, value in texts.items())
        systems = "".join(
            f'"{name}".config.system.build.toplevel = '
            f'import ./system.nix {{ inherit deps; name = "{name}"; {extra} }};\n'
            for name in names or ("web",)
        )
        return self.flake_text(f"nixosConfigurations = {{ {systems} }};", directory)

    def flake_text(self, outputs: str, directory: str) -> str:
        """A flake on the host whose outputs are the given Nix text; `deps` is at hand."""
        text = f"""{{
          outputs = {{ self }}: let
            inStore = path: builtins.appendContext path {{ ${{path}}.path = true; }};
            gathered = builtins.fromJSON (builtins.readFile ./deps.json);
            deps = builtins.mapAttrs (n: v: if n == "system" then v else inStore v) gathered;
          in {{ {outputs} }};
        }}
        """
        self.host.sh(
            'mkdir -p "$D"; cp /etc/nixos/*.nix /etc/nixos/deps.json "$D"; cat >"$D/flake.nix"',
            env={"D": directory},
            input=text,
        )
        return directory

    def lose(self, path: str, *roots: str) -> None:
        """Remove `roots` and delete `path` from the store, as a collection would.

        Without inx, which would put them back. Processes of an instance that has just stopped may
        hold it a moment longer.
        """
        units = ["inx-barrier.service", "inx-sidecar.socket", "inx-sidecar.service"]
        script = 'rm -rf -- "${@:2}"; nix-store --delete "$1"'
        argv = ["bash", "-euc", script, "lose", path, *roots]
        self.host.run(["systemctl", "stop", *units])
        try:
            self.eventually(
                lambda: self.host.run(argv, check=False).returncode == 0,
                lambda: (
                    self.host.run(["nix-store", "--query", "--roots", path], check=False).stdout
                ),
            )
        finally:
            self.host.run(["systemctl", "start", "inx-sidecar.socket", "inx-barrier.service"])

    def story(self) -> str:
        """What one wants to read when a test failed."""
        parts = [
            self.host.run(
                ["journalctl", "-u", "inx-sidecar", "-u", "inx-barrier", "-n", "60", "--no-pager"]
            ).stdout
        ]
        for project, name in self._launched:
            parts += [f"--- {name}", self.log(name, project), self.console(name, project)]
        return "\n".join(parts)

    def clean_up(self) -> None:
        rows = "".join(f"{project} {name}\n" for project, name in self._launched)
        script = """
            while read -r project name; do
                incus delete -f "$name" --project "$project" </dev/null &
            done
            wait
        """

        def gone() -> bool:
            """Incus refuses to delete while the sidecar writes a status: asked again then."""
            self.host.sh(script, input=rows)
            left = self("list", "--all-projects", "-f", "csv", "-c", "en").stdout.split()
            return not {f"{project},{name}" for project, name in self._launched} & set(left)

        self.eventually(gone, lambda: f"some of {rows} cannot be deleted")
