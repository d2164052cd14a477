"""The status of an instance that does not run: hooks that are missing, an end of PID 1."""

import re
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.incus import Incus
from support.services import check, restart_sidecar

pytestmark = pytest.mark.life

MISSING = "failed: the hooks of inx are missing: "
ENDED = "stopped: PID 1 ended by itself"


@pytest.fixture
def later(incus: Incus) -> Iterator[str]:
    """A profile with a raw.lxc of its own."""
    name = incus.profile()
    incus("profile", "set", name, "raw.lxc=lxc.signal.halt = SIGTERM")
    yield name


def test_a_forgotten_profile_is_told_and_the_command_mends_it(incus: Incus, host: Host) -> None:
    name = incus.adopt(incus.name())
    launched = incus("launch", "--empty", name, "-c", "user.inx.flake=/etc/nixos#web", check=False)
    assert launched.returncode != 0
    told = incus.wait_status(name, MISSING)
    command = re.search(r"'(incus profile add [^']*)'", told)
    assert command
    status, found = check(host)
    assert status == 1 and any(told.removeprefix("failed: ") in line for line in found)
    host.sh(command[1])
    incus.wait_status(name, "$")
    incus.start(name)
    incus.wait_ready(name)


def test_a_raw_lxc_that_hides_the_hooks_is_told_until_it_is_mended(
    incus: Incus, host: Host, later: str
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    incus.set(name, "raw.lxc=lxc.signal.halt = SIGTERM")
    assert incus("restart", "-f", name, check=False).returncode != 0
    incus.wait_status(name, f"{MISSING}raw.lxc of '{name}' replaces")
    incus("config", "unset", name, "raw.lxc")
    incus.wait_status(name, "$")

    incus("profile", "add", name, later)
    incus.wait_status(name, f"{MISSING}raw.lxc of the profile '{later}' replaces")
    restart_sidecar(host)
    # A change of the profile alone: all instances are looked at.
    incus("profile", "unset", later, "raw.lxc")
    incus.wait_status(name, "$")
    incus.start(name)
    incus.wait_ready(name)


def test_an_end_that_nobody_asked_for_is_told(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    host.run(["kill", "-KILL", str(incus.pid(name))])
    incus.wait_status(name, ENDED)
    assert incus.state(name) == "STOPPED"
    assert incus.get(name, "user.inx.status.generation") == "1"
    incus.start(name)
    incus.wait_ready(name)
    incus.run(name, "poweroff", "-f", check=False)
    incus.wait_status(name, ENDED)

    # LXC fails after the hooks have run.
    hooks = incus("profile", "get", "inx", "raw.lxc").stdout
    fails = "lxc.mount.entry = /nothing/here srv none bind,create=dir 0 0"
    incus.set(name, "user.inx.status=ready", f"raw.lxc={hooks}{fails}\n")
    assert incus.start(name, check=False).returncode != 0
    incus.wait_status(name, ENDED)


def test_a_stop_that_was_asked_for_leaves_the_status(incus: Incus) -> None:
    name, other = (incus.launch(name=incus.name(s), flake="/etc/nixos#web") for s in "ab")
    incus("stop", name)
    incus.start(name)
    incus.wait_inside(name)
    incus("stop", "-f", name)
    # The stop of the other one comes later, and its status is written then.
    incus.run(other, "poweroff", "-f", check=False)
    incus.wait_status(other, ENDED)
    assert incus.status(name) == "ready"


def test_a_shutdown_of_incus_itself_leaves_the_status(incus: Incus, host: Host) -> None:
    name, other = (
        incus.launch("-c", "boot.autostart=false", name=incus.name(s), flake="/etc/nixos#web")
        for s in "ab"
    )
    host.run(["incus", "admin", "shutdown"])
    host.run(["systemctl", "start", "incus", "incus-startup"])
    incus.start(other)
    incus.wait_ready(other)
    host.run(["kill", "-KILL", str(incus.pid(other))])
    incus.wait_status(other, ENDED)
    assert (incus.state(name), incus.status(name)) == ("STOPPED", "ready")


def test_a_failure_is_not_told_any_more_once_its_reason_was_configured_away(incus: Incus) -> None:
    changed = "stopped: its configuration was changed after it failed"
    name = incus.init(flake="/etc/nixos#web", kep="3")
    assert incus.start(name, check=False).returncode != 0
    incus.wait_status(name, "failed: unknown key 'user.inx.kep'")
    incus.set(name, "user.inx.keep=0")
    incus("config", "unset", name, "user.inx.kep")
    incus.wait_status(name, "failed: user.inx.keep is '0'")
    incus.set(name, "user.inx.keep=2")
    incus.wait_status(name, changed)
    incus.start(name)
    incus.wait_ready(name)

    # An update that failed, and a device.
    incus.set(name, "user.inx.keep=0")
    incus.wait_status(name, "failed: user.inx.keep is '0'")
    incus("stop", "-f", name)
    assert incus.status(name).startswith("failed: user.inx.keep is '0'")
    incus("config", "device", "add", name, "d", "disk", "source=/srv", "path=/nix/store")
    incus.wait_status(name, "failed: .*/nix/store")
    incus("config", "device", "remove", name, "d")
    incus.wait_status(name, "failed: user.inx.keep is '0'")
    incus.set(name, "user.inx.keep=2")
    incus.wait_status(name, changed)
