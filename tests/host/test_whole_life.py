"""Whole lives: updates without end, one profile for many, and clients that know nothing of inx."""

import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import pytest
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.life

PROFILES = "nix/var/nix/profiles"
STATUS = "user.inx.status"
SEED = 11


def written(incus: Incus, text: str, *names: str) -> str:
    """The flake of this test; its systems, one called "web" unless named, say `text`."""
    return incus.flake(*names, greeting=text)


def as_outputs(incus: Incus, system: str) -> None:
    """The flake's only system is now the Nix expression `system`."""
    incus.flake_text(
        f"nixosConfigurations.web.config.system.build.toplevel = {system};", f"/srv/{incus.prefix}"
    )


def builder(name: str, script: str) -> str:
    return f"""derivation {{
        name = "{name}"; system = deps.system;
        builder = "${{deps.busybox}}/bin/sh"; args = [ "-c" "{script}" ];
    }}"""


def endless(incus: Incus) -> None:
    as_outputs(incus, builder(f"{incus.prefix}-endless", "while :; do :; done"))


def built(incus: Incus, flake: str, name: str = "web") -> str:
    """The store path of a system of `flake`, built by hand and rooted."""
    installable = f'{flake}#nixosConfigurations."{name}".config.system.build.toplevel'
    link = f"/nix/var/nix/gcroots/{incus.prefix}-{random.randbytes(4).hex()}"
    nix = ["nix", "--extra-experimental-features", "nix-command flakes", "build"]
    incus.host.run([*nix, "--out-link", link, installable])
    return incus.host.run(["readlink", link]).stdout.strip()


def builds(host: Host) -> str:
    """The builds that run."""
    argv = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active", "inx-build-*"]
    return host.run(argv).stdout


def begun(host: Host, pid: int) -> str:
    """When the process began, in clock ticks since boot."""
    return host.run(["cat", f"/proc/{pid}/stat"]).stdout.rpartition(")")[2].split()[19]


def running_system(host: Host, pid: int) -> str:
    """Read from the host: output of incus exec may get lost under load."""
    return host.run(["readlink", f"/proc/{pid}/root/run/current-system"]).stdout.strip()


def greeting(host: Host, system: str) -> str:
    """Empty if it has none, as what was built while the next flake was being written."""
    return host.run(["cat", f"{system}/etc/greeting"], check=False).stdout


def generations(host: Host, pid: int) -> tuple[dict[int, str], int]:
    """What the profile's links say, and which of them is the current one."""
    script = """
        cd "$P"
        for link in system system-*-link; do echo "$link $(readlink "$link")"; done
    """
    lines = host.sh(script, env={"P": f"/proc/{pid}/root/{PROFILES}"}).stdout.splitlines()
    links = dict(line.split() for line in lines)
    current = links.pop("system")
    numbered = {int(link.split("-")[1]): system for link, system in links.items()}
    return numbered, int(current.split("-")[1])


def listed(incus: Incus, name: str) -> tuple[set[int], int]:
    """What `nix-env --list-generations` says inside."""
    incus.sh(name, f"nix-env --list-generations -p /{PROFILES}/system >/root/generations")
    text = incus.host.run(["cat", f"/proc/{incus.pid(name)}/root/root/generations"]).stdout
    current = re.findall(r"^ *(\d+) .*\(current\)", text, re.MULTILINE)
    assert len(current) == 1, text
    return {int(line.split()[0]) for line in text.splitlines()}, int(current[0])


@dataclass
class Wishes:
    """What one instance was asked for, change after change, and what has to come of it."""

    incus: Incus = field(repr=False)
    name: str
    rng: random.Random = field(repr=False)
    ready_made: dict[str, str] = field(repr=False)  # systems by text
    text: str | None  # of the flake; None if it cannot be built
    system: str = ""  # text of the one that stands in user.inx.system
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

    def as_wished(self) -> bool:
        config = self.config()
        system = running_system(self.incus.host, self.incus.pid(self.name))
        if config.get(f"{STATUS}.system") != system:
            return False
        said, says = config.get(STATUS, ""), greeting(self.incus.host, system)
        if self.pinned:
            return said == "ready" and config.get(f"{STATUS}.generation") == str(self.pinned)
        if self.system or self.text:
            return said == "ready" and says == (self.system or self.text)
        return said.startswith("failed: cannot build") and said.endswith("runs on")

    def settle(self) -> None:
        self.incus.eventually(
            self.as_wished, lambda: f"not as wished, seed {SEED}: {self.config()}\n{self}"
        )
        self.done.append("settled")

    def ask(self, *pairs: str) -> None:
        self.incus.set(self.name, *(f"user.inx.{pair}" for pair in pairs))

    def build(self) -> None:
        self.asked += 1
        self.system = ""
        self.ask(f"flake=/srv/{self.incus.prefix}#web", "system=", f"update={self.asked}")

    def wait_for_build(self) -> None:
        uuid = self.incus.uuid(self.name)
        if not self.pinned:
            self.incus.eventually(
                lambda: uuid in builds(self.incus.host), lambda: f"no build, seed {SEED}: {self}"
            )

    def good(self) -> None:
        self.text = f"change {self.asked}"
        written(self.incus, self.text)
        self.build()

    def evaluation_error(self) -> None:
        self.text = None
        as_outputs(self.incus, "throw ''no such luck''")
        self.build()

    def failing_builder(self) -> None:
        self.text = None
        as_outputs(self.incus, builder(f"{self.incus.prefix}-{self.asked}", "exit 1"))
        self.build()

    def missing_attribute(self) -> None:
        self.text = None
        written(self.incus, "nobody sees this", "other")
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
        written(self.incus, self.text)
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
        # One number whatever has been seen, so that the rest stays the same.
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
        kill = ["systemctl", "kill", "--signal=KILL", "inx-sidecar"]
        restart = ["systemctl", "restart"]
        what = self.rng.choice(
            [kill, kill, [*restart, "inx-sidecar"], [*restart, "inx-sidecar"], [*restart, "incus"]]
        )
        self.done.append(" ".join(what[1:]))
        self.incus.host.run(what)


def test_fifty_changes_in_a_row_end_with_the_last_and_lose_nothing(
    incus: Incus, host: Host
) -> None:
    """Changes come while older ones are built, and while sidecar and Incus die and come again."""
    rng = random.Random(SEED)
    ready_made = {text: built(incus, written(incus, text)) for text in ("made a", "made b")}
    name = incus.launch(flake=f"{written(incus, 'one')}#web", keep="1000")
    pid = incus.pid(name)
    start = begun(host, pid)
    wishes = Wishes(incus, name, rng, ready_made, "one")
    for _ in range(50):
        wishes.change()
        if rng.random() < 0.2:
            wishes.disturb()
        if rng.random() < 0.5:
            wishes.settle()
    print(f"seed {SEED}: {wishes.done}")
    wishes.unpin()
    wishes.good()
    wishes.settle()

    assert (incus.pid(name), begun(host, pid)) == (pid, start)
    system, config = running_system(host, pid), wishes.config()
    incus.sh(name, f'[ "$(cat /etc/greeting)" = "{wishes.text}" ]')
    links, current = generations(host, pid)
    assert config[f"{STATUS}.generation"] == str(current) and links[current] == system
    incus.eventually(lambda: builds(host) == "", lambda: builds(host))
    incus.eventually(lambda: builders(host) == [], lambda: str(builders(host)))
    remembered = json.loads(host.run(["cat", f"/run/inx/{incus.uuid(name)}/running.json"]).stdout)
    assert remembered["undo"] is None

    activated = activated_according_to_the_journal(host, name)
    assert len(activated) >= 10 and system in activated
    assert wishes.seen.items() <= links.items() and activated <= set(links.values())
    host.run(["/opt/inx/bin/inx-sidecar", "sync"])
    host.run(["nix-collect-garbage"])
    host.run(["nix-store", "--check-validity", *links.values()])
    roots = host.run(["nix-store", "--gc", "--print-roots"]).stdout
    own = f"/gcroots/inx/{name}.{incus.uuid(name)}/system-"
    assert all(f"{own}{number} -> {path}\n" in roots for number, path in links.items())
    assert listed(incus, name) == (set(links), current)


def builders(host: Host) -> list[str]:
    """The processes that build derivations."""
    lines = host.run(["ps", "-eo", "user:20,pid,args"]).stdout.splitlines()
    return [line for line in lines if line.startswith("nixbld")]


def activated_according_to_the_journal(host: Host, name: str) -> set[str]:
    text = host.run(["journalctl", "-u", "inx-sidecar", "-o", "cat", "--no-pager"]).stdout
    return set(re.findall(rf"^{name}: runs (\S+) from ", text, re.MULTILINE))


SWITCH = """
    begin=$(date +%s%N)
    incus config set "$NAME" $CONFIG
    until [ "$(readlink "/proc/$PID/root/run/current-system")" = "$SYSTEM" ]; do sleep 0.01; done
    echo $(($(date +%s%N) - begin))
"""


def seconds_to_switch(incus: Incus, name: str, system: str, *pairs: str) -> float:
    """From `incus config set` until `system` is active; then waits until Incus knows."""
    config = " ".join(f"user.inx.{pair}" for pair in pairs)
    env = {"NAME": name, "PID": str(incus.pid(name)), "SYSTEM": system, "CONFIG": config}
    taken = int(incus.host.sh(SWITCH, env=env).stdout) / 1e9
    incus.eventually(lambda: truth(incus, name) == ("ready", system), incus.story)
    return taken


def truth(incus: Incus, name: str) -> tuple[str, str]:
    """The status and the system, if that and its number are those that run; else nothing."""
    config, pid = incus.info(name)["config"], incus.pid(name)
    system = running_system(incus.host, pid)
    links, current = generations(incus.host, pid)
    number = config.get(f"{STATUS}.generation")
    if (config.get(f"{STATUS}.system"), number, links[current]) != (system, str(current), system):
        return "", ""
    return config[STATUS], system


def wait_truth(incus: Incus, name: str, said: str, says: str, number: int) -> None:
    """Until status, system and generation tell the same as what is inside."""

    def holds() -> bool:
        if not incus.pid(name):
            return False
        text, system = truth(incus, name)
        return re.match(said, text) is not None and greeting(incus.host, system) == says

    incus.wait_inside(name)
    incus.eventually(holds, incus.story)
    assert generations(incus.host, incus.pid(name))[1] == number


def test_a_file_more_is_there_within_a_second_and_others_notice_nothing(
    incus: Incus, host: Host
) -> None:
    """Without the time to build: the best of five, so that load does not count."""
    flake = written(incus, "one")
    name, *others = [incus.launch(flake=f"{flake}#web", name=incus.name(s)) for s in "abc"]
    before = {other: begun(host, incus.pid(other)) for other in (name, *others)}
    others_before = {other: truth(incus, other) for other in others}

    ready_made, by_flake = [], []
    for number in range(5):
        incus.flake(greeting="one", added=f"made {number}")
        system = built(incus, flake)
        ready_made.append(seconds_to_switch(incus, name, system, f"system={system}", "flake="))
        incus.sh(name, f'[ "$(cat /etc/added)" = "made {number}" ]')
    for number in range(5):
        incus.flake(greeting="one", added=f"built {number}")
        system = built(incus, flake)
        begin = time.monotonic()
        assert built(incus, flake) == system
        to_build = time.monotonic() - begin
        pairs = "system=", f"flake={flake}#web", f"update={number}"
        by_flake.append(seconds_to_switch(incus, name, system, *pairs) - to_build)
        incus.sh(name, f'[ "$(cat /etc/added)" = "built {number}" ]')

    print(f"to switch: {ready_made}; by a flake, without building: {by_flake}")
    assert min(ready_made) < 1
    assert min(by_flake) < 1
    assert {other: begun(host, incus.pid(other)) for other in before} == before
    assert {other: truth(incus, other) for other in others} == others_before


@pytest.fixture
def profile(incus: Incus) -> Iterator[str]:
    """A profile of the test's own, deleted after it with all that use it."""
    name = incus.name("profile")
    incus("profile", "create", name)
    yield name
    incus.clean_up()
    incus("profile", "delete", name)


def test_twenty_instances_follow_one_change_of_their_profile_two_at_a_time(
    incus: Incus, host: Host, profile: str
) -> None:
    names = [incus.name(str(number)) for number in range(20)]
    incus("profile", "set", profile, f"user.inx.flake={written(incus, 'one', *names)}")
    for name in names:
        incus.init("--profile", profile, name=name)
    incus("start", *names)
    for name in names:
        wait_truth(incus, name, "ready$", "one", 1)
    idle = median(time_to_list(incus)[0] for _ in range(9))

    written(incus, "two", *names)
    incus("profile", "set", profile, "user.inx.update=2")
    meanwhile = []

    def followed() -> bool:
        seconds, found = time_to_list(incus)
        left = [name for name in names if found.get(name) != ("ready", "2")]
        if len(left) > 2:
            meanwhile.append(seconds)
        return not left

    incus.eventually(followed, incus.story)
    for name in names:
        wait_truth(incus, name, "ready$", "two", 2)
    systems = {truth(incus, name)[1] for name in names}
    assert len(systems) == len(names)

    starts, most = builds_of(host, {incus.uuid(name) for name in names})
    assert starts == 2 * len(names), "each built once for each text"
    assert most == 2, "max_builds"
    medians = [median(meanwhile[n : n + 5]) for n in range(len(meanwhile) - 4)]
    print(f"incus list: {idle} s idle, {medians} s meanwhile")
    assert min(medians) < 3 * idle


def time_to_list(incus: Incus) -> tuple[float, dict[str, tuple[str, str]]]:
    """How long `incus list` takes, and status and generation by name."""
    begin = time.monotonic()
    listed = incus.json("list", "-f", "json")
    seconds = time.monotonic() - begin
    configs = {found["name"]: found["config"] for found in listed}
    keys = STATUS, f"{STATUS}.generation"
    return seconds, {
        name: (config.get(keys[0], ""), config.get(keys[1], "")) for name, config in configs.items()
    }


def builds_of(host: Host, uuids: set[str]) -> tuple[int, int]:
    """How many builds of these instances systemd has begun, and how many ran at once at most."""
    began, ended = "39f53479d3a045ac8e11786248231fbf", "7ad2d189f7e94e70a38c781354912448"
    fields = ["--output=json", "--output-fields=UNIT,MESSAGE_ID,MESSAGE"]
    text = host.run(["journalctl", "_PID=1", *fields, "--no-pager"]).stdout
    starts, running, most = 0, set(), 0
    for entry in map(json.loads, text.splitlines()):
        uuid = entry.get("UNIT", "").removeprefix("inx-build-").removesuffix(".service")
        if uuid in uuids and entry["MESSAGE_ID"] == began:
            starts += 1
            running.add(uuid)
        elif uuid in uuids:
            assert entry["MESSAGE_ID"] == ended, entry
            running.remove(uuid)
        most = max(most, len(running))
    return starts, most


class Rest:
    """Incus by curl, as from a program that knows its REST API and nothing of inx."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        curl = ["curl", "--silent", "--show-error", "--unix-socket", "/var/lib/incus/unix.socket"]
        data = [] if body is None else ["--json", json.dumps(body)]
        url = f"http://incus{path}"
        return dict(json.loads(self._host.run([*curl, "-X", method, *data, url]).stdout))

    def __call__(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """What is answered; what is begun is waited for, and has to succeed."""
        answer = self.ask(method, path, body)
        if answer["type"] == "async":
            answer = self.ask("GET", f"/1.0/operations/{answer['metadata']['id']}/wait?timeout=60")
            assert answer["metadata"]["status"] == "Success", answer
        assert answer["type"] == "sync", answer
        return dict(answer["metadata"] or {})


def test_a_life_by_rest_alone(incus: Incus, host: Host) -> None:
    rest = Rest(host)
    name, renamed = incus.adopt(incus.name()), incus.adopt(incus.name("renamed"))
    path = f"/1.0/instances/{name}"

    def wait(says: str, number: int) -> None:
        def holds() -> bool:
            config = rest("GET", path)["config"]
            system = config.get(f"{STATUS}.system")
            return (
                (config.get(STATUS), config.get(f"{STATUS}.generation")) == ("ready", str(number))
                and greeting(host, system) == says
                and running_system(host, rest("GET", f"{path}/state")["pid"]) == system
            )

        incus.eventually(holds, incus.story)

    rest(
        "POST",
        "/1.0/instances",
        {
            "name": name,
            "type": "container",
            "source": {"type": "none"},
            "profiles": ["inx"],
            "config": {"user.inx.flake": f"{written(incus, 'one')}#web"},
        },
    )
    assert rest("GET", path)["status"] == "Stopped"
    rest("PUT", f"{path}/state", {"action": "start", "timeout": 30})
    wait("one", 1)
    written(incus, "two")
    rest("PATCH", path, {"config": {"user.inx.update": "2"}})
    wait("two", 2)
    whole = rest("GET", path)
    pinned = whole["config"] | {"user.inx.generation": "1"}
    rest("PUT", path, whole | {"config": pinned})
    wait("one", 1)
    rest("PATCH", path, {"config": {"user.inx.generation": ""}})
    wait("two", 2)
    rest("POST", f"{path}/snapshots", {"name": "before", "stateful": False})
    written(incus, "three")
    rest("PATCH", path, {"config": {"user.inx.update": "3"}})
    wait("three", 3)
    rest("PUT", path, {"restore": "before"})
    wait("two", 2)
    rest("PUT", f"{path}/state", {"action": "stop", "timeout": 30})
    assert rest("GET", path)["status"] == "Stopped"
    rest("POST", path, {"name": renamed})
    assert rest.ask("GET", path)["error_code"] == 404
    path = f"/1.0/instances/{renamed}"
    rest("PUT", f"{path}/state", {"action": "start", "timeout": 30})
    wait("two", 2)
    rest("PUT", f"{path}/state", {"action": "restart", "timeout": 30})
    wait("two", 2)
    uuid = rest("GET", path)["config"]["volatile.uuid"]
    assert uuid in roots_of_all(host)
    rest("PUT", f"{path}/state", {"action": "stop", "timeout": 30, "force": True})
    rest("DELETE", path)
    assert rest.ask("GET", path)["error_code"] == 404
    incus.eventually(lambda: uuid not in roots_of_all(host), incus.story)


def roots_of_all(host: Host) -> str:
    return host.run(["ls", "/nix/var/nix/gcroots/inx"]).stdout


def test_yaml_on_standard_input(incus: Incus, host: Host, profile: str) -> None:
    flake = written(incus, "one")
    text = f"""
config:
  user.inx.flake: {flake}#web
  user.inx.keep: "9"
devices:
  data:
    type: disk
    source: {flake}
    path: /data
"""
    names = [incus.adopt(incus.name(suffix)) for suffix in "ab"]
    profiles = ["--profile", "inx", "--profile", profile]
    incus("launch", "--empty", names[0], *profiles, input=text)
    incus("create", "--empty", names[1], *profiles, input=text)
    incus.start(names[1])
    pids = []
    for name in names:
        wait_truth(incus, name, "ready$", "one", 1)
        incus.sh(name, "[ -e /data/flake.nix ]")
        pids.append(incus.pid(name))

    written(incus, "two")
    shown = incus("config", "show", names[0]).stdout
    incus("config", "edit", names[0], input=more(shown, 'user.inx.update: "2"'))
    wait_truth(incus, names[0], "ready$", "two", 2)
    assert truth(incus, names[1])[0] == "ready"
    written(incus, "three")
    shown = incus("profile", "show", profile).stdout
    edited = more(shown.replace("config: {}", "config:"), "user.inx.update: all")
    incus("profile", "edit", profile, input=edited)
    # The first has a value of its own.
    wait_truth(incus, names[1], "ready$", "three", 2)
    incus("config", "unset", names[0], "user.inx.update")
    wait_truth(incus, names[0], "ready$", "three", 3)
    assert [incus.pid(name) for name in names] == pids


def more(yaml: str, line: str) -> str:
    """`yaml` with one more line in its config."""
    before, found, after = yaml.partition("config:\n")
    assert found, yaml
    return f"{before}{found}  {line}\n{after}"


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_restored_snapshot_has_its_system_history_and_roots(
    incus: Incus, host: Host, running: bool
) -> None:
    name = incus.launch(flake=f"{written(incus, 'one')}#web")
    for number, text in (2, "two"), (3, "three"):
        written(incus, text)
        incus.set(name, f"user.inx.update={number}")
        wait_truth(incus, name, "ready$", text, number)
        if number == 2:
            incus("snapshot", "create", name, "before")
            links, _ = generations(host, incus.pid(name))
    lost = truth(incus, name)[1]
    if not running:
        incus("stop", name)
    incus("snapshot", "restore", name, "before")
    if not running:
        incus.start(name)
    wait_truth(incus, name, "ready$", "two", 2)
    assert generations(host, incus.pid(name)) == (links, 2)
    assert listed(incus, name) == ({1, 2}, 2)
    own = f"/nix/var/nix/gcroots/inx/{name}.{incus.uuid(name)}"
    incus.eventually(
        lambda: {"system-1", "system-2"} == set(re.findall(r"system-\d+", ls(host, own))),
        incus.story,
    )
    host.run(["/opt/inx/bin/inx-sidecar", "sync"])
    host.run(["nix-collect-garbage"])
    host.run(["nix-store", "--check-validity", *links.values()])
    gone = host.run(["nix-store", "--check-validity", lost], check=False)
    assert gone.returncode != 0, "nothing names it any more"


def ls(host: Host, directory: str) -> str:
    return host.run(["ls", directory]).stdout


def test_status_is_true_whatever_happened_and_then_nothing_is_written(
    incus: Incus, host: Host, profile: str
) -> None:
    name = incus.launch(flake=f"{written(incus, 'one')}#web")
    wait_truth(incus, name, "ready$", "one", 1)
    written(incus, "two")
    incus.set(name, "user.inx.update=2")
    wait_truth(incus, name, "ready$", "two", 2)
    failed = incus.launch(flake=f"/srv/{incus.prefix}#web", name=incus.name("failed"))
    as_outputs(incus, "throw ''no such luck''")
    for one in name, failed:
        incus.set(one, "user.inx.update=3")
    wait_truth(incus, name, "failed: .*; generation 2 runs on$", "two", 2)
    incus.set(name, "user.inx.generation=1")
    wait_truth(incus, name, "ready$", "one", 1)
    written(incus, "three")
    incus.set(name, "user.inx.generation=", "user.inx.update=4")
    wait_truth(incus, name, "ready$", "three", 3)
    incus("snapshot", "create", name, "before")
    written(incus, "four")
    incus.set(name, "user.inx.update=5")
    wait_truth(incus, name, "ready$", "four", 4)
    incus("snapshot", "restore", name, "before")
    wait_truth(incus, name, "ready$", "three", 3)
    incus("restart", name)
    wait_truth(incus, name, "ready$", "three", 3)
    copied = incus.adopt(incus.name("copy"))
    incus("copy", name, copied)
    incus.start(copied)
    wait_truth(incus, copied, "ready$", "three", 3)
    assert listed(incus, copied) == listed(incus, name) == ({1, 2, 3}, 3)
    assert truth(incus, copied) == truth(incus, name)
    pinned = incus.adopt(incus.name("pinned"))
    incus("copy", f"{name}/before", pinned, "-c", "user.inx.generation=2")
    incus.start(pinned)
    wait_truth(incus, pinned, "ready$", "two", 2)
    wait_truth(incus, failed, "failed: .*; generation 1 runs on$", "two", 1)

    script = """
        incus monitor --type=lifecycle --format=json >"$SEEN" &
        trap 'kill $!' EXIT
        until grep -q profile-updated "$SEEN"; do
            incus profile set "$PROFILE" user.other="$(date +%N)"; sleep 0.1
        done
        sleep 15
        echo $(grep -c instance-updated "$SEEN")
        incus config set "$NAME" user.other=1
        until grep -q instance-updated "$SEEN"; do sleep 0.1; done
    """
    seen = f"/root/{incus.prefix}-events"
    env = {"SEEN": seen, "PROFILE": profile, "NAME": name}
    count = host.sh(script, env=env).stdout.strip()
    assert count == "0", host.run(["cat", seen]).stdout


def with_activation(incus: Incus, text: str, meanwhile: str) -> None:
    """The activation of this system, but not its boot, does `meanwhile` half-way."""
    activate = json.dumps(f"[ ! -e /run/current-system ] || {meanwhile}")
    as_outputs(
        incus,
        f"""import ./system.nix {{
            inherit deps; name = "web"; extra.greeting = "{text}"; activate = {activate};
        }}""",
    )


def test_a_wish_taken_back_while_the_sidecar_was_away_is_no_longer_active(
    incus: Incus, host: Host
) -> None:
    name = incus.launch(flake=f"{written(incus, 'one')}#web")
    wait_truth(incus, name, "ready$", "one", 1)
    one = truth(incus, name)[1]
    with_activation(incus, "two", "until [ -e /root/go ]; do :; done")
    incus.set(name, "user.inx.update=2")
    look = ["test", "-e", "/run/inx-activation.log"]
    incus.eventually(lambda: incus.run(name, *look, check=False).returncode == 0, incus.story)
    units = ["inx-sidecar.socket", "inx-sidecar.service"]
    host.run(["systemctl", "stop", *units])
    try:
        incus.sh(name, "touch /root/go")
        pid = incus.pid(name)
        incus.eventually(lambda: running_system(host, pid) != one, incus.story)
        incus("config", "unset", name, "user.inx.update")
    finally:
        host.run(["systemctl", "start", *units])
    wait_truth(incus, name, "ready$", "one", 1)


def test_an_activation_that_a_sidecar_left_behind_is_waited_for(incus: Incus, host: Host) -> None:
    name = incus.launch(flake=f"{written(incus, 'one')}#web")
    wait_truth(incus, name, "ready$", "one", 1)
    with_activation(incus, "two", "until [ -e /root/go ]; do :; done")
    incus.set(name, "user.inx.update=2")

    def activations() -> int:
        argv = ["pgrep", "-fc", "^/dev/.inx/busybox sh -c"]
        return int(host.run(argv, check=False).stdout)

    incus.eventually(lambda: activations() == 1, incus.story)
    host.run(["systemctl", "kill", "-s", "KILL", "inx-sidecar"])
    incus("config", "unset", name, "user.inx.update")
    incus.eventually(lambda: activations() > 1, incus.story)
    incus.sh(name, "touch /root/go")
    wait_truth(incus, name, "ready$", "one", 1)
    incus.eventually(lambda: activations() == 0, incus.story)
    wait_truth(incus, name, "ready$", "one", 1)


def test_ready_after_a_failed_activation_was_taken_back_is_no_half_of_it(incus: Incus) -> None:
    name = incus.launch(flake=f"{written(incus, 'one')}#web")
    with_activation(incus, "two", "exit 1")
    incus.set(name, "user.inx.update=2")
    incus.wait_status(name, "failed: activating")
    incus("config", "unset", name, "user.inx.update")
    wait_truth(incus, name, "ready$", "one", 1)
    incus.sh(name, '[ "$(cat /etc/greeting)" = one ]')
