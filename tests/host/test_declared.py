"""Instances that the host declares, by the program that NixOS hosts run, from what those generate.

tests/nix/example.json is what the modules make of the configuration of that name in
tests/nix/cases.nix (tests/nix/test_nixos_modules.py).
"""

import json
import subprocess
from collections.abc import Iterator
from subprocess import CompletedProcess
from typing import Any

import pytest
from support.disposable import REPO, Host
from support.incus import Incus
from support.running import says

from inx_sidecar.declared.ownership import OWNERSHIP_KEY

pytestmark = pytest.mark.nixos

EXAMPLE = REPO / "tests/nix/example.json"
FILE = "/etc/inx/instances.json"
SYSTEM = {"user.inx.system": "/srv/system"}


class Declaration:
    """The file of the host, and what comes of it."""

    def __init__(self, incus: Incus) -> None:
        self.incus = incus
        self.host = incus.host
        self.document: dict[str, Any] = {"version": 1, "dropped": "keep", "instances": []}

    def declare(self, name: str, **more: Any) -> str:
        self.incus.adopt(name)
        self.document["instances"].append({"name": name, "start": True, **more})
        return name

    def __getitem__(self, name: str) -> dict[str, Any]:
        (found,) = (one for one in self.document["instances"] if one["name"] == name)
        return dict(found)

    def change(self, name: str, **more: Any) -> None:
        changed = {**self[name], **more}
        others = [one for one in self.document["instances"] if one["name"] != name]
        self.document["instances"] = [*others, changed]

    def drop(self, name: str) -> None:
        instances = self.document["instances"]
        self.document["instances"] = [one for one in instances if one["name"] != name]

    def write(self) -> None:
        self.host.run(["sh", "-c", f"cat >{FILE}"], input=json.dumps(self.document))

    def converge(self, status: int = 0) -> CompletedProcess[str]:
        self.write()
        done = self.host.run(["/opt/inx/bin/inx-sidecar", "converge"], check=False)
        assert done.returncode == status, done
        return done

    def says(self, *lines: str) -> None:
        """That is what is done, and once is enough."""
        assert sorted(self.converge().stdout.splitlines()) == sorted(lines)
        assert self.converge().stdout == ""


@pytest.fixture
def declaration(incus: Incus, host: Host) -> Iterator[Declaration]:
    yield Declaration(incus)
    host.run(["rm", "-f", FILE])


@pytest.fixture(scope="module", autouse=True)
def sources(host: Host) -> Iterator[None]:
    """What the example names."""
    host.sh(
        """
        nix --extra-experimental-features 'nix-command flakes' build -o /srv/system \\
            '/etc/nixos#nixosConfigurations.second.config.system.build.toplevel'
        mkdir -p /srv/data; mount -t tmpfs none /srv/data; echo from the host >/srv/data/file
        """
    )
    yield
    host.run(["umount", "--lazy", "/srv/data"])


@pytest.mark.sid
def test_the_generated_example_comes_up_by_the_unit(declaration: Declaration) -> None:
    incus, host = declaration.incus, declaration.host
    for name in "web", "db", "vault":
        incus.adopt(name)
    declaration.document = json.loads(EXAMPLE.read_text())
    declaration.write()
    host.run(["systemctl", "restart", "inx-instances.service"])
    for name in "web", "db":
        incus.wait_ready(name)
    assert incus.state("vault") == "STOPPED"

    incus.sh("web", "[ $(cat /data/file | wc -w) = 3 ]; ! touch /data/x")
    incus.sh("web", "httpd -p 80 -h /run/current-system")
    assert host.run(["curl", "-sf", "http://127.0.0.1:8080/nixos-version"]).stdout == "1"
    assert incus.get("web", "limits.memory") == "1GiB"
    host.run(["ping", "-c1", "-W5", "10.231.136.2"])
    assert says(incus, "db", "hello from the second system")
    incus.start("vault")
    incus.wait_ready("vault")
    incus.sh("vault", "grep -q ' /scratch tmpfs ' /proc/mounts; touch /scratch/x")
    others = incus.get("web", "user.inx.status.system")
    incus.sh("vault", f"[ ! -e {others} ]")

    for one in declaration.document["instances"]:
        found = incus.info(one["name"])
        assert found["ephemeral"] == one["ephemeral"] and found["profiles"] == one["profiles"]
        assert set(one["config"]) <= set(found["config"])
        assert set(one["devices"]) == set(found["devices"])
    before = {name: incus.pid(name) for name in ("web", "db", "vault")}
    done = host.run(["/opt/inx/bin/inx-sidecar", "converge"])
    assert done.stdout == "", "nothing is left to do"
    assert {name: incus.pid(name) for name in before} == before
    incus("stop", "-f", "vault")
    incus.wait_state("vault", "")
    done = host.run(["/opt/inx/bin/inx-sidecar", "converge"])
    assert done.stdout == "vault: created\n", "an ephemeral one is made anew"


def test_without_a_declaration_the_unit_does_nothing(host: Host) -> None:
    host.run(["rm", "-f", FILE])
    host.run(["systemctl", "restart", "inx-instances.service"])
    state = ["systemctl", "show", "-P", "ConditionResult", "inx-instances.service"]
    assert host.run(state).stdout == "no\n"


def test_a_change_is_made_in_place(declaration: Declaration) -> None:
    incus, host = declaration.incus, declaration.host
    flake = incus.flake(greeting="one")
    name = declaration.declare(
        incus.name(),
        config={"user.inx.flake": f"{flake}#web", "limits.cpu": "1", "boot.autostart": True},
        devices={"old": {"type": "disk", "source": "/srv/data", "path": "/old", "shift": True}},
    )
    declaration.says(f"{name}: created", f"{name}: started")
    incus.wait_ready(name)
    pid = incus.pid(name)
    incus.set(name, "user.inx.keep=9", "limits.memory=1GiB")
    incus("config", "device", "add", name, "mine", "disk", "source=/srv/data", "path=/mine")

    incus.flake(greeting="two")
    new = {"type": "disk", "source": "/srv/data", "path": "/new", "shift": "true"}
    declaration.change(
        name,
        config={"user.inx.flake": f"{flake}#web", "user.inx.update": "2", "boot.autostart": True},
        devices={"new": new},
        description="changed",
    )
    declaration.says(f"{name}: changed")
    incus.wait_generation(name, "2")
    assert says(incus, name, "two")
    incus.sh(name, "[ -e /new/file ] && [ -e /mine/file ] && [ ! -e /old/file ]")
    assert incus.pid(name) == pid
    found = incus.info(name)
    assert found["description"] == "changed" and set(found["devices"]) == {"new", "mine"}
    kept = {"user.inx.keep": "9", "limits.memory": "1GiB", "boot.autostart": "true"}
    assert kept.items() <= found["config"].items() and "limits.cpu" not in found["config"]
    host.run(["systemctl", "restart", "inx-sidecar"])
    declaration.says()


def test_a_source_of_another_kind_takes_the_place_of_the_first(declaration: Declaration) -> None:
    incus = declaration.incus
    flake = incus.flake(greeting="one")
    name = declaration.declare(incus.name(), config={"user.inx.flake": f"{flake}#web"})
    declaration.converge()
    incus.wait_ready(name)
    declaration.change(name, config=SYSTEM)
    declaration.says(f"{name}: changed")
    incus.wait_generation(name, "2")
    assert says(incus, name, "hello from the second system")


def test_what_was_made_by_hand_is_never_touched(declaration: Declaration) -> None:
    incus = declaration.incus
    by_hand = incus.launch(flake="/etc/nixos#web")
    own = declaration.declare(incus.name("own"), config=SYSTEM)
    declaration.converge()
    copied = incus.adopt(incus.name("copied"))
    incus("copy", own, copied)
    before = {name: incus.info(name) for name in (by_hand, copied)}
    pid = incus.pid(by_hand)

    declaration.declare(by_hand, description="taken", config={"limits.cpu": "1"})
    declaration.drop(own)
    declaration.document["dropped"] = "delete"
    said = declaration.converge(31)
    assert said.stderr == (
        f"inx: error: {by_hand}: left as it is: it is declared, but an instance of this name was "
        f"made by hand; delete or rename that, or give it over by 'incus config set {by_hand} "
        f"{OWNERSHIP_KEY}={by_hand}'\n"
    )
    assert said.stdout == f"{own}: deleted, as it is no longer declared\n", "its turn came"
    assert incus.state(own) == ""
    unchanging = ("config", "devices", "description", "profiles")
    for name, info in before.items():
        assert {k: incus.info(name)[k] for k in unchanging} == {k: info[k] for k in unchanging}

    incus.set(by_hand, f"{OWNERSHIP_KEY}={by_hand}")
    declaration.says(f"{by_hand}: changed")
    found = incus.info(by_hand)
    assert found["description"] == "taken" and found["config"]["user.inx.flake"]
    assert incus.pid(by_hand) == pid


def test_what_is_dropped_is_left_or_deleted_with_its_roots(declaration: Declaration) -> None:
    incus, host = declaration.incus, declaration.host
    name = declaration.declare(incus.name(), config=SYSTEM)
    declaration.converge()
    incus.wait_ready(name)
    pid, uuid = incus.pid(name), incus.uuid(name)
    declaration.drop(name)
    line = f"{name}: left as it is: it is no longer declared\n"
    assert declaration.converge().stdout == declaration.converge().stdout == line
    assert incus.pid(name) == pid
    declaration.document["dropped"] = "delete"
    declaration.says(f"{name}: deleted, as it is no longer declared")
    assert incus.state(name) == ""
    roots = ["test", "-e", f"/nix/var/nix/gcroots/inx/{name}.{uuid}"]
    incus.eventually(lambda: host.run(roots, check=False).returncode == 1, incus.story)


def test_what_was_stopped_by_hand_is_started_again(declaration: Declaration) -> None:
    incus = declaration.incus
    name = declaration.declare(incus.name(), config=SYSTEM)
    quiet = declaration.declare(incus.name("quiet"), start=False)
    declaration.converge()
    incus("stop", "-f", name)
    declaration.says(f"{name}: started")
    assert incus.state(quiet) == "STOPPED"


def test_what_one_refuses_keeps_no_other_from_its_turn(declaration: Declaration) -> None:
    incus = declaration.incus
    good = declaration.declare(incus.name("good"), config=SYSTEM)
    bad = declaration.declare(incus.name("bad"), profiles=["none"], start=False)
    typo = declaration.declare(incus.name("typo"), config={"limits.cpus": "1"}, start=False)
    other = declaration.declare(incus.name("other"), config={"user.inx.flake": "-x"})
    said = declaration.converge(31).stderr.splitlines()
    assert len(said) == 3 and all(line.startswith("inx: error: cannot ") for line in said)
    assert any(f"cannot create '{bad}': " in line and "rofile" in line for line in said)
    assert any(f"cannot create '{typo}': " in line and "limits.cpus" in line for line in said)
    assert any(f"cannot start '{other}': " in line for line in said)
    incus.wait_log(other, "user.inx.flake")
    incus.wait_ready(good)


def test_a_change_that_incus_refuses_changes_nothing(declaration: Declaration) -> None:
    incus = declaration.incus
    name = declaration.declare(incus.name(), config=SYSTEM)
    declaration.converge()
    incus.wait_ready(name)
    pid, before = incus.pid(name), incus.info(name)
    disk = {"type": "disk", "source": "/srv/none", "path": "/data"}
    declaration.change(name, config={"limits.cpu": "1"}, devices={"data": disk})
    assert f"cannot change '{name}': " in declaration.converge(31).stderr
    found = incus.info(name)
    assert (found["config"], found["devices"]) == (before["config"], before["devices"])
    assert incus.pid(name) == pid and incus.status(name) == "ready"


# It can be added to a stopped container alone, and lets none start on this machine.
GPU = {"type": "gpu", "gputype": "mig", "mig.ci": "0", "mig.gi": "0"}


@pytest.mark.parametrize("ephemeral", [False, True], ids=["kept", "ephemeral"])
def test_a_device_that_takes_a_restart_and_fails_leaves_what_ran(
    declaration: Declaration, ephemeral: bool
) -> None:
    incus = declaration.incus
    name = declaration.declare(incus.name(), config=SYSTEM, ephemeral=ephemeral)
    declaration.converge()
    incus.wait_ready(name)
    pid = incus.pid(name)
    incus.set(name, "user.mine=1")
    declaration.change(name, devices={"gpu": GPU}, restart=False)
    said = declaration.converge(31).stderr
    assert "when instance is running; run 'inx-sidecar converge' between 'incus stop " in said
    assert incus.pid(name) == pid
    declaration.change(name, restart=True)
    said = declaration.converge(31).stderr
    assert f"cannot change '{name}': " in said and said.endswith("; it runs as before\n")
    incus.wait_ready(name)
    assert incus.pid(name) not in (0, pid)
    found = incus.info(name)
    assert found["devices"] == {} and found["config"]["user.mine"] == "1"
    assert found["ephemeral"] == ephemeral
    declaration.change(name, devices={})
    declaration.says()


def test_the_advice_for_a_device_that_takes_a_restart_leads_there(
    declaration: Declaration,
) -> None:
    incus = declaration.incus
    name = declaration.declare(incus.name(), config=SYSTEM, start=False, restart=False)
    declaration.converge()
    incus.start(name)
    incus.wait_ready(name)
    declaration.change(name, devices={"gpu": GPU})
    declaration.converge(31)
    incus("stop", "-f", name)
    declaration.says(f"{name}: changed")
    assert set(incus.info(name)["devices"]) == {"gpu"}


def test_what_a_refused_change_may_have_cost_is_told(declaration: Declaration) -> None:
    incus = declaration.incus
    disk = {"type": "disk", "source": "/srv/data", "path": "/data", "shift": "true"}
    name = declaration.declare(incus.name(), config=SYSTEM, devices={"data": disk})
    declaration.converge()
    incus.wait_ready(name)
    declaration.change(name, devices={"data": {**disk, "propagation": "nonsense"}})
    said = declaration.converge(31).stderr
    assert said.endswith("; devices that it changes may be missing until it is restarted\n")
    declaration.change(name, devices={"data": disk})
    declaration.says()
    incus.restart_into(name, generation=1)
    incus.sh(name, "[ -e /data/file ]")


def test_a_port_passes_from_one_to_the_other(declaration: Declaration) -> None:
    incus = declaration.incus

    def port(number: int) -> dict[str, Any]:
        listen = f"tcp:127.0.0.1:{number}"
        return {"web": {"type": "proxy", "listen": listen, "connect": "tcp:127.0.0.1:80"}}

    a = declaration.declare(incus.name("a"), config=SYSTEM, devices=port(8081))
    b = declaration.declare(incus.name("b"), config=SYSTEM, devices=port(8082))
    declaration.converge()
    for name in a, b:
        incus.wait_ready(name)
    declaration.change(a, devices=port(8082))
    declaration.change(b, devices=port(8083))
    declaration.says(f"{a}: changed", f"{b}: changed")


def test_one_that_is_protected_runs_on(declaration: Declaration) -> None:
    incus = declaration.incus
    name = declaration.declare(incus.name(), config=SYSTEM)
    declaration.converge()
    incus.wait_ready(name)
    incus.set(name, "security.protection.delete=true")
    pid = incus.pid(name)
    declaration.drop(name)
    declaration.document["dropped"] = "delete"
    assert "security.protection.delete is set" in declaration.converge(31).stderr
    assert incus.pid(name) == pid
    incus("config", "unset", name, "security.protection.delete")
    declaration.says(f"{name}: deleted, as it is no longer declared")


def test_an_ephemeral_one_that_is_stopped_is_deleted_too(declaration: Declaration) -> None:
    incus = declaration.incus
    name = declaration.declare(incus.name(), ephemeral=True, start=False)
    declaration.converge()
    assert incus.state(name) == "STOPPED"
    declaration.drop(name)
    declaration.document["dropped"] = "delete"
    declaration.says(f"{name}: deleted, as it is no longer declared")
    assert incus.state(name) == ""


def test_in_a_project_of_its_own(declaration: Declaration, host: Host) -> None:
    """The profile is that project's; the same name elsewhere is another instance."""
    incus, project = declaration.incus, "declared"
    incus("project", "create", project, "-c", "features.images=false")
    try:
        profile = incus("profile", "show", "inx").stdout
        incus("profile", "create", "inx", "--project", project, input=profile)
        name = incus.adopt(incus.name(), project)
        here = {"name": name, "project": project, "start": True, "config": SYSTEM}
        declaration.document["instances"].append(here)
        by_hand = incus.init()
        incus("config", "device", "add", by_hand, "eth0", "none")  # names are known on a network
        declaration.says(f"{project}/{name}: created", f"{project}/{name}: started")
        incus.wait_ready(name, project)
        copied = incus.adopt(incus.name("copied"))
        incus("copy", name, copied, "--project", project, "--target-project", "default")
        declaration.document |= {"instances": [], "dropped": "delete"}
        declaration.says(f"{project}/{name}: deleted, as it is no longer declared")
        assert incus.state(by_hand) == incus.state(copied) == "STOPPED"
    finally:
        incus.clean_up()
        incus("profile", "delete", "inx", "--project", project)
        incus("project", "delete", project)


RESTART = f"""
import asyncio, sys
from inx_sidecar.declared import converge, declaration_file
from inx_sidecar.incus import api as incus

(one,) = declaration_file.read_declaration("{FILE}").instances
found, _ = asyncio.run(incus.get_instance_with_etag(one.project, one.name))
asyncio.run(converge._restart_with(one, found))
"""


@pytest.mark.parametrize("ephemeral", [False, True], ids=["kept", "ephemeral"])
def test_a_restart_brings_the_change(declaration: Declaration, ephemeral: bool) -> None:
    incus, host = declaration.incus, declaration.host
    name = declaration.declare(incus.name(), config=SYSTEM, ephemeral=ephemeral)
    declaration.converge()
    incus.wait_ready(name)
    pid = incus.pid(name)
    disk = {"type": "disk", "source": "/srv/data", "path": "/data", "shift": "true"}
    incus.set(name, "user.mine=1")
    declaration.change(name, devices={"data": disk})

    def restart() -> None:
        declaration.write()
        host.run(["/opt/inx/bin/python", "-I", "-c", RESTART])
        incus.wait_ready(name)

    restart()
    assert incus.pid(name) not in (0, pid)
    incus.sh(name, "[ -e /data/file ]; touch /root/written")
    declaration.says()
    declaration.change(name, ephemeral=False, devices={})
    restart()
    declaration.says()
    incus.sh(name, "[ ! -e /data/file ] && [ -e /root/written ]")
    found = incus.info(name)
    assert found["config"]["user.mine"] == "1" and not found["ephemeral"]


def test_writes_of_others_meanwhile_are_kept(declaration: Declaration) -> None:
    """Status, and keys set by hand: none is lost, and nothing is refused for long."""
    incus, host = declaration.incus, declaration.host
    flake = incus.flake(greeting="one")
    name = declaration.declare(incus.name(), config={"user.inx.flake": f"{flake}#web"})
    declaration.converge()
    incus.wait_ready(name)
    script = """
        for n in $(seq 30); do
            until incus config set "$NAME" "user.mine$n=$n" 2>/dev/null; do :; done
        done
    """
    argv = host.enter(["bash", "-euc", script], {"NAME": name})
    with subprocess.Popen(argv) as writer:
        for number in range(10):
            config = declaration[name]["config"]
            declaration.change(name, config={**config, "user.n": number})
            declaration.converge()
        assert writer.wait(60) == 0
    found = incus.info(name)["config"]
    assert {f"user.mine{n}" for n in range(1, 31)} <= set(found) and found["user.n"] == "9"
