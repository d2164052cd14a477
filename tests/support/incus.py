"""The commands of incus on a disposable host, for tests."""

import functools
import json
import re
import time
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

from support.cache import HostError
from support.disposable import Host
from support.incus_query import query

# Far more than any wait takes on a slow machine, and less than the 600 s after which the sidecar
# compares all by itself.
SECONDS = 120.0
# For what waits for nothing, on a slow machine. What it must not wait for takes longer: the barrier
# lets a collection go on after 45 s, and most others have no end.
PROMPT = 40.0
# What Incus says while it handles another request for the instance, as that for a status, if the
# sidecar has written between read and write of the client, and while LXC ends a stop.
REFUSED = re.compile(
    "busy running|non-reusable operation|ETag doesn't match|instance is already running"
)
POOL = "/var/lib/incus/storage-pools/default/containers"  # the files of instances, by name


def end_hung_incus(host: Host) -> str:
    """Kill incusd, and tell what it waits for. systemd starts it again; instances go on.

    While it is told to stop, incusd waits minutes for an operation that does not end, and refuses
    all else (waitForOperations in cmd/incusd/operations.go): all later tests would fail.
    """
    told = host.sh("""
        timeout 5 incus operation list --all-projects || :
        ps -eo pid,stat,wchan:24,unit:60,args | cut -c-200
        journalctl -u incus -n 40 --no-pager
        systemctl kill --signal=KILL incus
        systemctl start incus
    """)
    return told.stdout + told.stderr


class Incus:
    """Instances have the prefix of the test: `name()` gives "t7", `name("b")` gives "t7-b"."""

    def __init__(self, host: Host, prefix: str) -> None:
        self.host = host
        self.prefix = prefix
        self._launched: list[tuple[str, str]] = []
        self._profiles: list[str] = []
        self._consoles: dict[str, str] = {}

    def name(self, suffix: str = "") -> str:
        return f"{self.prefix}-{suffix}" if suffix else self.prefix

    def __call__(self, *args: str, check: bool = True, **more: Any) -> CompletedProcess[str]:
        """Run the client, with `check` again and again while Incus refuses for a moment."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return self.host.run(["incus", *args], check=check, **more)
            except HostError as error:
                if not REFUSED.search(str(error)) or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def init(self, *args: str, name: str = "", project: str = "default", **config: str) -> str:
        """Create an instance. Keyword arguments are user.inx.* keys, with "_" for "."."""
        name = self.adopt(name or self.name(), project)
        keys = [f"user.inx.{key.replace('_', '.')}={value}" for key, value in config.items()]
        options = [word for key in keys for word in ("-c", key)]
        self("init", "--empty", name, "--profile", "inx", "--project", project, *options, *args)
        return name

    def adopt(self, name: str, project: str = "default") -> str:
        """Delete `name` after the test."""
        self._launched.append((project, name))
        return name

    def profile(self) -> str:
        """Create a profile. It is deleted after the test, after the instances of the test."""
        name = self.name("profile")
        self("profile", "create", name)
        self._profiles.append(name)
        return name

    def start(
        self, name: str, project: str = "default", check: bool = True
    ) -> CompletedProcess[str]:
        return self("start", name, "--project", project, check=check)

    def launch(self, *args: str, name: str = "", project: str = "default", **config: str) -> str:
        """Create and start an instance, and wait until its system runs."""
        name = self.init(*args, name=name, project=project, **config)
        self.start(name, project)
        self.wait_ready(name, project)
        return name

    def run(
        self, name: str, *argv: str, project: str = "default", check: bool = True, **more: Any
    ) -> CompletedProcess[str]:
        """Run a program in the instance, with the environment of incus exec."""
        return self("exec", name, "--project", project, "--", *argv, check=check, **more)

    def sh(self, name: str, script: str, **more: Any) -> CompletedProcess[str]:
        return self.run(name, "sh", "-euc", script, **more)

    def said(self, name: str, *argv: str, **more: Any) -> str:
        """The output of a program that only prints.

        incus exec may lose all of the output. So the program runs again while there is none.
        """
        found: list[str] = []

        def has_output() -> bool:
            found[:] = [self.run(name, *argv, **more).stdout]
            return found[0] != ""

        self.eventually(has_output, lambda: f"{argv} prints nothing in {name}")
        return found[0]

    def ended(self, name: str, script: str) -> CompletedProcess[str]:
        """The end of a script that prints. It runs again if incus exec has lost all output."""
        found: list[CompletedProcess[str]] = []

        def has_output() -> bool:
            found[:] = [self.sh(name, script, check=False)]
            return found[0].stdout + found[0].stderr != ""

        self.eventually(has_output, lambda: f"{script} prints nothing in {name}")
        return found[0]

    def inside(self, name: str, script: str) -> bool:
        """Whether `script` succeeds inside. incus exec may lose output, but not the exit status."""
        return self.sh(name, script, check=False).returncode == 0

    def get(self, name: str, key: str, project: str = "default") -> str:
        """The value of a key of the instance itself, as `incus config get` prints it."""
        return str(self.info(name, project)["config"].get(key, "")).strip()

    def set(self, name: str, *pairs: str, project: str = "default") -> None:
        self("config", "set", name, *pairs, "--project", project)

    def status(self, name: str, project: str = "default") -> str:
        return self.get(name, "user.inx.status", project)

    def state(self, name: str, project: str = "default") -> str:
        """As `incus list` shows it; "" if there is no such instance."""
        found = query(self.host, f"/1.0/instances/{name}?project={project}")
        return found["status"].upper() if found else ""

    def states(self, names: list[str]) -> list[str]:
        """State and status of each instance, as in a row of `incus list`."""
        listed = self("list", "-f", "csv", "-c", "ns,user.inx.status").stdout.splitlines()
        rows = dict(row.split(",", 1) for row in listed)
        return [rows[name] for name in names]

    @functools.cached_property
    def version(self) -> tuple[int, ...]:
        """The version of the server, as (7, 0, 2)."""
        text = self.json("query", "/1.0")["environment"]["server_version"]
        return tuple(int(part) for part in text.split("."))

    def json(self, *args: str) -> Any:
        return json.loads(self(*args).stdout)

    def info(self, name: str, project: str = "default") -> dict[str, Any]:
        found = query(self.host, f"/1.0/instances/{name}?project={project}")
        if found is None:
            raise HostError(f"there is no instance '{name}' in project '{project}'")
        return dict(found)

    def info_of_member(self, name: str) -> dict[str, Any]:
        """A member of the cluster, as Incus describes it."""
        return dict(self.json("query", f"/1.0/cluster/members/{name}"))

    def pid(self, name: str) -> int:
        """The PID of the instance's init on the host, or 0 if the instance does not run."""
        try:
            state = query(self.host, f"/1.0/instances/{name}/state")
        except HostError as error:  # Incus answers so while an instance starts or stops
            if "Invalid PID" in str(error):
                return 0
            raise
        return int(state["pid"]) if state else 0

    def uuid(self, name: str, project: str = "default") -> str:
        return self.get(name, "volatile.uuid", project)

    def log(self, name: str, project: str = "default") -> str:
        """The output of `incus info --show-log`."""
        return self("info", name, "--show-log", "--project", project, check=False).stdout

    def wait_log(self, name: str, text: str, project: str = "default") -> None:
        """Wait until `incus info --show-log` has `text`: Incus moves the log when an instance
        stops, and shows none for a moment."""
        self.eventually(
            lambda: text in self.log(name, project),
            lambda: f"the log of {name} has no {text!r}: {self.log(name, project)}",
        )

    def console(self, name: str, project: str = "default") -> str:
        """The whole output of the console since the start of the instance.

        While the instance runs, Incus gives each part only once, so the parts are collected here.
        After a stop, Incus gives the whole output, as soon as it has saved it.
        """
        new = self("console", name, "--show-log", "--project", project, check=False).stdout
        before = self._consoles.get(name, "")
        self._consoles[name] = new if new.startswith(before) else before + new
        return self._consoles[name]

    def wait_ready(self, name: str, project: str = "default") -> None:
        """Wait until the status is `ready` and the system has booted."""
        self.wait_status(name, "ready", project)
        self.wait_inside(name, project)

    def wait_inside(self, name: str, project: str = "default") -> None:
        """Wait until PID 1 is the system, and not the bootstrap init."""
        check = ["exec", name, "--project", project, "--", "test", "-e", "/run/current-system/init"]
        self.eventually(
            lambda: self(*check, check=False).returncode == 0,
            lambda: f"{name} has no system: {self.console(name, project)}",
        )

    def wait_generation(self, name: str, number: str, project: str = "default") -> None:
        """Wait until the status is `ready` with the generation `number`."""
        keys = ("user.inx.status", "user.inx.status.generation")
        self.eventually(
            lambda: [self.get(name, key, project) for key in keys] == ["ready", number],
            self.story,
        )

    def wait_told(self, name: str, generation: int) -> None:
        """Wait until the status names `generation`. At first it may be that of the last start."""
        key = "user.inx.status.generation"
        self.eventually(lambda: self.get(name, key) == str(generation), self.story)

    def restart_into(self, name: str, *, generation: int) -> None:
        """Restart the instance, and wait until `generation` runs."""
        self("restart", "-f", name)
        self.wait_inside(name)
        self.wait_told(name, generation)
        self.wait_ready(name)

    def wait_status(self, name: str, pattern: str, project: str = "default") -> str:
        """Wait until the beginning of the status matches `pattern`, and return that status."""
        found = ""

        def matches() -> bool:
            nonlocal found
            found = self.status(name, project)
            return re.match(pattern, found) is not None

        self.eventually(matches, lambda: f"status of {name} is {found!r}, not {pattern!r}")
        return found

    def wait_state(self, name: str, state: str, project: str = "default") -> None:
        self.eventually(
            lambda: self.state(name, project) == state,
            lambda: f"{name} is {self.state(name, project)}, not {state}",
        )

    def eventually(self, holds: Callable[[], bool], otherwise: Callable[[], str]) -> None:
        """Wait for a condition for which Incus sends no event."""
        deadline = time.monotonic() + SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(otherwise())
            time.sleep(0.05)

    def flake(self, *names: str, directory: str = "", **texts: str) -> str:
        """Write a flake on the host with small systems `names`, and return its directory.

        `texts` are files in /etc of the systems. A second call for the same directory changes the
        flake.
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
        """Write a flake on the host. `outputs` is Nix text, which can use `deps`."""
        text = f"""{{
          outputs = {{ self }}: let
            inStore = path: builtins.appendContext path {{ ${{path}}.path = true; }};
            gathered = builtins.fromJSON (builtins.readFile ./deps.json);
            deps = builtins.mapAttrs (n: v: if n == "system" then v else inStore v) gathered;
          in {{ {outputs} }};
        }}
        """
        script = """
            mkdir -p "$D"
            # A build may read them now.
            [ -e "$D/deps.json" ] || cp /etc/nixos/*.nix /etc/nixos/deps.json "$D"
            cat >"$D/flake.nix"
        """
        self.host.sh(script, env={"D": directory}, input=text)
        return directory

    def lose(self, path: str, *roots: str) -> None:
        """Remove `roots`, and delete `path` from the store, as a collection does.

        The sidecar and the barrier are stopped meanwhile: the sidecar would add the roots again.
        Processes of an instance that has just stopped may keep the path alive for a moment.
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
        """The logs of the sidecar, the barrier and the instances, for a test that has failed."""
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
            """Incus refuses a deletion while the sidecar writes a status. Then delete again."""
            self.host.sh(script, input=rows)
            left = self("list", "--all-projects", "-f", "csv", "-c", "en").stdout.split()
            return not {f"{project},{name}" for project, name in self._launched} & set(left)

        try:
            self.eventually(gone, lambda: f"some of {rows} cannot be deleted")
        except (AssertionError, HostError):
            print(end_hung_incus(self.host))
            raise
        while self._profiles:
            self("profile", "delete", self._profiles.pop())
