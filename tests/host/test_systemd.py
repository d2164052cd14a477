"""A real systemd as PID 1 of an instance: NixOS boots systemd."""

import time

import pytest
from support.incus import Incus

pytestmark = pytest.mark.main


@pytest.fixture
def booted(incus: Incus) -> str:
    name = incus.init(flake="/etc/nixos#systemd")
    incus.start(name)
    incus.wait_ready(name)
    wait_running(incus, name)
    return name


def wait_running(incus: Incus, name: str) -> None:
    """Not degraded: the example has no unit that may fail."""
    state = ["systemctl", "is-system-running", "--wait"]
    incus.eventually(
        lambda: incus.run(name, *state, check=False).stdout.strip() == "running",
        lambda: incus.run(name, "systemctl", "--failed", check=False).stdout,
    )


def test_systemd_runs_and_gets_an_address(incus: Incus, booted: str) -> None:
    assert incus.said(booted, "cat", "/proc/1/comm").strip() == "systemd"
    incus.eventually(
        lambda: "(eth0)" in incus("list", booted, "-c", "4", "-f", "csv").stdout,
        lambda: incus.run(booted, "networkctl", "status", "eth0", check=False).stdout,
    )


def test_systemd_stops_cleanly_and_comes_back(incus: Incus, booted: str) -> None:
    begin = time.monotonic()
    incus("stop", booted)
    assert time.monotonic() - begin < 5
    incus.start(booted)
    incus.wait_inside(booted)
    wait_running(incus, booted)
    assert incus.get(booted, "user.inx.status.generation") == "1"


def test_systemd_reboots_from_inside(incus: Incus, booted: str) -> None:
    """LXC runs the hooks pre-start and mount again: they attach the store again."""
    before = incus.pid(booted)
    incus.run(booted, "systemctl", "reboot", check=False)
    incus.eventually(lambda: incus.pid(booted) not in (0, before), lambda: incus.story())
    incus.wait_inside(booted)
    wait_running(incus, booted)
    mounts = incus.said(booted, "cat", "/proc/mounts")
    assert mounts.count(" /nix/store ") == 1
    assert incus.run(booted, "nix", "store", "info").returncode == 0


def test_a_service_of_systemd_reaches_the_daemon(incus: Incus, booted: str) -> None:
    """With the empty environment that a unit has."""
    nix = "/run/current-system/sw/bin/nix"
    done = incus.run(booted, "systemd-run", "--pipe", "--wait", "--quiet", nix, "store", "info")
    assert "Store URL: daemon" in done.stdout + done.stderr


def test_switching_inside_from_systemd_to_a_new_generation(incus: Incus, booted: str) -> None:
    """nixos-rebuild's two steps; PID 1 stays."""
    other = incus.launch(name=incus.name("b"), flake="/etc/nixos#second")
    system = incus.get(other, "user.inx.status.system")
    pid = incus.pid(booted)
    incus.run(booted, "nix-env", "-p", "/nix/var/nix/profiles/system", "--set", system)
    incus.run(booted, f"{system}/bin/switch-to-configuration", "switch")
    assert incus.said(booted, "readlink", "/run/current-system").strip() == system
    assert incus.pid(booted) == pid
