"""Many changes in a row, while older ones are built and while the sidecar and Incus die."""

import random
import re
from dataclasses import dataclass, field

import pytest
from support.disposable import Host
from support.incus import Incus
from support.running import (
    STATUS,
    began,
    generations,
    greeting_of,
    listed_generations,
    running_system,
    says,
)
from support.services import (
    builds,
    kill_sidecar,
    remembered,
    restart_incus,
    restart_sidecar,
    sync,
    wait_build,
)
from support.sources import derivation, endless, offer, source
from support.store import build_system, collect

pytestmark = pytest.mark.life

SEED = 11


@dataclass
class Requests:
    """The changes that one instance was asked for, and the state that they have to lead to."""

    incus: Incus = field(repr=False)
    name: str
    rng: random.Random = field(repr=False)
    ready_made: dict[str, str] = field(repr=False)  # systems by their greeting
    text: str | None  # the greeting in the flake; None if the flake cannot be built
    system: str = ""  # the greeting of the system in user.inx.system
    pinned: int = 0
    asked: int = 0
    seen: dict[int, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def config(self) -> dict[str, str]:
        config = dict(self.incus.info(self.name)["config"])
        number, system = config.get(f"{STATUS}.generation"), config.get(f"{STATUS}.system")
        if number and system:
            assert self.seen.setdefault(int(number), system) == system
        return config

    def as_requested(self) -> bool:
        config = self.config()
        system = running_system(self.incus.host, self.incus.pid(self.name))
        if config.get(f"{STATUS}.system") != system:
            return False
        said, says = config.get(STATUS, ""), greeting_of(self.incus.host, system)
        if self.pinned:
            return said == "ready" and config.get(f"{STATUS}.generation") == str(self.pinned)
        if self.system or self.text:
            return said == "ready" and says == (self.system or self.text)
        return said.startswith("failed: cannot build") and said.endswith("runs on")

    def settle(self) -> None:
        self.incus.eventually(
            self.as_requested, lambda: f"not as requested, seed {SEED}: {self.config()}\n{self}"
        )
        self.done.append("settled")

    def ask(self, *pairs: str) -> None:
        self.incus.set(self.name, *(f"user.inx.{pair}" for pair in pairs))

    def build(self) -> None:
        self.asked += 1
        self.system = ""
        self.ask(f"flake=/srv/{self.incus.prefix}#web", "system=", f"update={self.asked}")

    def wait_for_build(self) -> None:
        if not self.pinned:
            wait_build(self.incus, self.name)

    def good(self) -> None:
        self.text = f"change {self.asked}"
        source(self.incus, self.text)
        self.build()

    def evaluation_error(self) -> None:
        self.text = None
        offer(self.incus, "throw ''no such luck''")
        self.build()

    def failing_builder(self) -> None:
        self.text = None
        offer(self.incus, derivation(f"{self.incus.prefix}-{self.asked}", "exit 1"))
        self.build()

    def missing_attribute(self) -> None:
        self.text = None
        self.incus.flake("other", greeting="nobody sees this")
        self.build()

    def taken_back(self) -> None:
        self.good()
        self.settle()
        before = self.asked
        endless(self.incus)
        self.build()
        if self.rng.random() < 0.7:
            self.wait_for_build()
        if self.rng.random() < 0.5:
            self.disturb()
        assert self.text
        source(self.incus, self.text)
        self.ask(f"update={before}")

    def overtaken(self) -> None:
        endless(self.incus)
        self.build()
        self.wait_for_build()
        self.good()

    def ready_made_system(self) -> None:
        self.system = self.rng.choice(sorted(self.ready_made))
        self.ask("flake=", f"system={self.ready_made[self.system]}")

    def pin(self) -> None:
        self.config()
        # Always one random number, so that the same seed gives the same later changes.
        self.pinned = sorted(self.seen)[int(self.rng.random() * len(self.seen))]
        self.ask(f"generation={self.pinned}")

    def unpin(self) -> None:
        self.pinned = 0
        self.ask("generation=")

    def change(self) -> None:
        kinds = {
            self.good: 8, self.evaluation_error: 2, self.failing_builder: 2,
            self.missing_attribute: 2, self.taken_back: 3, self.overtaken: 2,
            self.ready_made_system: 3, self.unpin if self.pinned else self.pin: 4,
        }  # fmt: skip
        if self.pinned:
            kinds[self.unpin] = 30
        (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
        self.done.append(kind.__name__)
        kind()

    def disturb(self) -> None:
        disturb = self.rng.choice(
            [kill_sidecar, kill_sidecar, restart_sidecar, restart_sidecar, restart_incus]
        )
        self.done.append(disturb.__name__)
        disturb(self.incus.host)


def test_thirty_changes_in_a_row_end_with_the_last_and_lose_nothing(
    incus: Incus, host: Host
) -> None:
    rng = random.Random(SEED)
    ready_made = {
        text: build_system(host, source(incus, text), f"/nix/var/nix/gcroots/{incus.prefix}-{n}")
        for n, text in enumerate(("made a", "made b"))
    }
    name = incus.launch(flake=f"{source(incus, 'one')}#web", keep="1000")
    pid = incus.pid(name)
    start = began(host, pid)
    requests = Requests(incus, name, rng, ready_made, "one")
    for _ in range(30):
        requests.change()
        if rng.random() < 0.2:
            requests.disturb()
        if rng.random() < 0.5:
            requests.settle()
    print(f"seed {SEED}: {requests.done}")
    requests.unpin()
    requests.good()
    requests.settle()

    assert (incus.pid(name), began(host, pid)) == (pid, start)
    system, config = running_system(host, pid), requests.config()
    assert requests.text and says(incus, name, requests.text)
    links, current = generations(host, pid)
    assert config[f"{STATUS}.generation"] == str(current) and links[current] == system
    assert config.get(f"{STATUS}.update", "") == config.get("user.inx.update", "")
    incus.eventually(lambda: builds(host) == "", lambda: builds(host))
    incus.eventually(lambda: builders(host) == [], lambda: str(builders(host)))
    assert remembered(incus, name)["undo"] is None

    activated = activated_according_to_the_journal(host, name)
    assert len(activated) >= 10 and system in activated
    assert requests.seen.items() <= links.items() and activated <= set(links.values())
    sync(host)
    collect(host)
    host.run(["nix-store", "--check-validity", *links.values()])
    roots = host.run(["nix-store", "--gc", "--print-roots"]).stdout.replace('"', "")
    own = f"/gcroots/inx/{name}.{incus.uuid(name)}/system-"
    assert all(f"{own}{number} -> {path}\n" in roots for number, path in links.items())
    assert listed_generations(incus, name) == (set(links), current)


def builders(host: Host) -> list[str]:
    """The processes that build derivations."""
    lines = host.run(["ps", "-eo", "user:20,pid,args"]).stdout.splitlines()
    return [line for line in lines if line.startswith("nixbld")]


def activated_according_to_the_journal(host: Host, name: str) -> set[str]:
    text = host.run(["journalctl", "-u", "inx-sidecar", "-o", "cat", "--no-pager"]).stdout
    return set(re.findall(rf"^{name}: runs (\S+) from ", text, re.MULTILINE))
