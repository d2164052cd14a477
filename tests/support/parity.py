"""The tables of docs/coming-from.md, and the container that their rows speak of.

A row is known by its first cell. Its commands are the code of its second one; a row without has a
check too, which shows why, or a reason.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from support import standin
from support.disposable import Host
from support.incus import Incus
from support.pages import section

PAGE = "docs/coming-from.md"
SECOND = "hello from the second system"


@dataclass(frozen=True)
class Row:
    name: str
    answer: str

    @property
    def commands(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.answer)


def table(heading: str) -> list[Row]:
    """The rows of the table below a heading, without its head."""
    (block,) = re.findall(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", section(PAGE, heading), re.MULTILINE)
    return [
        Row(first.replace("`", ""), second)
        for first, second, _ in (
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
        )
    ]


def words(rows: list[Row]) -> set[str]:
    """All words in the names of `rows`."""
    return set(re.split(r"[\s.,;{}\[\]()]+", " ".join(row.name for row in rows)))


@dataclass
class Web:
    """The container that the rows speak of."""

    incus: Incus
    host: Host
    row: Row

    def create(self, *args: str, **config: str) -> None:
        self.incus.init(*args, name="web", **(config or {"system": "/srv/system"}))

    def carry_out(self, **options: str) -> str:
        """What the commands of the row print."""
        assert self.row.commands
        return "".join(self.host.sh(line, **options).stdout for line in self.row.commands)

    def start(self) -> None:
        self.incus.start("web")
        self.ready()

    def ready(self) -> None:
        self.incus.wait_ready("web")

    def launch(self, *args: str, **config: str) -> None:
        self.create(*args, **config)
        self.start()

    def restart(self) -> None:
        self.incus("restart", "-f", "web")
        self.ready()

    def launch_as_told(self) -> None:
        """The row says how an instance is to be before it starts."""
        self.create()
        self.carry_out()
        self.start()

    def holds(self, script: str) -> None:
        self.incus.sh("web", script)

    def says(self, greeting: str) -> None:
        """/etc/greeting inside."""
        self.incus.eventually(
            lambda: (
                self.incus.run(
                    "web",
                    *("sh", "-c", f'[ "$(cat /etc/greeting)" = "{greeting}" ]'),
                    check=False,
                ).returncode
                == 0
            ),
            self.incus.story,
        )

    def flake(self, greeting: str) -> str:
        return self.incus.flake(greeting=greeting) + "#web"

    def generations(self, *greetings: str) -> None:
        """A running instance that was updated to each of `greetings` in turn."""
        first, *others = greetings
        self.launch(flake=self.flake(first))
        for number, greeting in enumerate(others, start=2):
            self.flake(greeting)
            self.incus.set("web", f"user.inx.update={number}")
            self.incus.wait_generation("web", str(number))

    def answers(self, address: str) -> None:
        """To a ping; an IPv6 address is tentative at first."""
        ping = ["ping", "-c1", "-W1", address]
        self.incus.eventually(
            lambda: self.host.run(ping, check=False).returncode == 0,
            lambda: self.host.sh("ip address; ip route").stdout,
        )

    def network(self, *argv: str) -> str:
        """What a program of the host says in the network of the container."""
        return self.host.run(
            ["nsenter", "--net", f"--target={self.incus.pid('web')}", *argv]
        ).stdout

    def ids(self) -> list[list[int]]:
        """First id inside, first on the host, how many."""
        text = self.host.run(["cat", f"/proc/{self.incus.pid('web')}/uid_map"]).stdout
        return [[int(word) for word in line.split()] for line in text.splitlines()]

    def create_with(self, raw: str, *args: str) -> None:
        """With more for LXC, and no NIC."""
        text = self.incus("profile", "get", "inx", "raw.lxc").stdout + raw
        self.create("-c", f"raw.lxc={text}", *args)
        self.incus("config", "device", "add", "web", "eth0", "none")

    def refuses_to_start_with(self, raw: str) -> None:
        self.create_with(raw)
        assert self.incus.start("web", check=False).returncode != 0
        self.incus.eventually(
            lambda: "Failed to setup first automatic mounts" in self.incus.log("web"),
            lambda: self.incus.log("web"),
        )


Check = Callable[[Web], None]


class Checks:
    """What is run for each row of some tables; `reasons` say why there is nothing to run."""

    def __init__(self, *headings: str, reasons: Mapping[str, str]) -> None:
        self.rows = [row for heading in headings for row in table(heading)]
        self._reasons = reasons
        self._checks: dict[str, Check] = {}

    def shows(self, *rows: str) -> Callable[[Check], Check]:
        def decorate(check: Check) -> Check:
            self._checks.update(dict.fromkeys(rows, check))
            return check

        return decorate

    @property
    def to_run(self) -> list[Row]:
        return [row for row in self.rows if row.name not in self._reasons]

    def run(self, row: Row, incus: Incus, host: Host) -> None:
        incus.adopt("web")
        self._checks[row.name](Web(incus, host, row))

    def are_complete(self) -> None:
        """Every row has a check and every check a row; a row has commands, or says none."""
        names = [row.name for row in self.rows]
        assert len(names) == len(set(names))
        assert not set(self._checks) & set(self._reasons)
        assert set(names) == set(self._checks) | set(self._reasons)
        for row in self.rows:
            if row.commands:
                beginnings = "incus ", "inx-sidecar wait "
                assert all(command.startswith(beginnings) for command in row.commands), row
            else:
                assert row.answer in ("*none*", "**no**"), row
        refused = {row.name for row in self.rows if row.answer == "**no**"}
        assert refused >= set(self._reasons)


def make_sources(host: Host) -> None:
    """What the tables name: a system, a module, a nixpkgs, and YAML for incus."""
    standin.put(host)
    text = f'environment.etc.greeting.text = "{SECOND}";'
    host.sh(
        """
        nix --extra-experimental-features 'nix-command flakes' build -o /srv/system \\
            '/etc/nixos#nixosConfigurations.web.config.system.build.toplevel'
        printf %s "{ $SECOND }" >/srv/module.nix
        printf %s "$YAML" >/srv/web.yaml
        """,
        env={"SECOND": text, "YAML": json.dumps({"config": {"user.inx.config": text}})},
    )


@contextlib.contextmanager
def with_nixpkgs(host: Host) -> Iterator[None]:
    """Within the block, `flake:nixpkgs` leads to the stand-in for nixpkgs, on a server."""
    with (
        standin.served(host) as url,
        standin.registered(host, {"type": "tarball", "url": url}),
    ):
        yield


@contextlib.contextmanager
def on_the_host(host: Host, make: str, remove: str) -> Iterator[None]:
    host.sh(make)
    try:
        yield
    finally:
        host.sh(remove)


# --- Checks of rows in more than one table ----------------------------------------------------


def started_with_incus(web: Web) -> None:
    web.create()
    web.carry_out()
    web.host.run(["systemctl", "restart", "incus"])
    web.incus.wait_state("web", "RUNNING")
    web.ready()


def configured_by_modules(web: Web) -> None:
    """The row creates it, with this text or with a file."""
    web.carry_out()
    web.start()
    web.says(SECOND if "/srv/" in web.row.answer else "hello")


def with_an_address(web: Web) -> None:
    web.launch_as_told()
    web.answers("10.233.1.2")
    assert "default via 10.233.1.1 dev eth0" in web.network("ip", "route")
    assert web.host.run(["ip", "route", "show", "10.233.1.2"]).stdout
    web.network("ping", "-c1", "-W5", "10.233.1.1")


def updated_to_another_source(web: Web) -> None:
    web.launch(flake="/etc/nixos#web")
    before = web.incus.pid("web")
    web.carry_out()
    web.says(SECOND)
    assert web.incus.pid("web") == before
