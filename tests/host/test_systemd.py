"""A real systemd as PID 1 of an instance: NixOS boots systemd."""

import time

import pytest
from support.disposable import Host
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


@pytest.mark.sid
def test_systemd_runs_and_gets_an_address(incus: Incus, booted: str) -> None:
    assert incus.said(booted, "cat", "/proc/1/comm").strip() == "systemd"
    incus.eventually(
        lambda: "(eth0)" in incus("list", booted, "-c", "4", "-f", "csv").stdout,
        lambda: incus.run(booted, "networkctl", "status", "eth0", check=False).stdout,
    )


def test_systemd_stops_cleanly_and_comes_back(incus: Incus, booted: str) -> None:
    begin = time.monotonic()
    incus("stop", booted)
    assert time.monotonic() - begin < 45, "systemd waits 90 s for a unit"
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


@pytest.mark.sid
def test_services_have_credentials_and_sandboxing(incus: Incus, booted: str) -> None:
    """The host has no AppArmor: nothing has to be taken from services."""
    incus.sh(booted, "echo secret >/etc/credential")
    properties = (
        "LoadCredential=x:/etc/credential", "SetCredential=y:other", "NoNewPrivileges=yes",
        "ProtectSystem=strict", "ProtectKernelTunables=yes", "PrivateTmp=yes", "PrivateNetwork=yes",
        "ProtectHome=yes", "ProcSubset=pid", "PrivateDevices=yes", "PrivateIPC=yes",
        "ProtectControlGroups=yes", "ProtectHostname=yes", "RestrictNamespaces=yes",
        "SystemCallFilter=@system-service", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
        "TemporaryFileSystem=/srv", "MemoryDenyWriteExecute=yes",
    )  # fmt: skip
    options = [word for text in properties for word in ("-p", text)]
    script = (
        "cat $CREDENTIALS_DIRECTORY/x $CREDENTIALS_DIRECTORY/y; grep NoNewPrivs /proc/self/status; "
        "touch /etc/written; ls /sys/class/net"
    )
    run = ["systemd-run", "--wait", "--pipe", "--quiet", *options, "sh", "-c", script]
    done = incus.run(booted, *run, check=False)
    assert done.stdout.split() == ["secret", "otherNoNewPrivs:", "1", "lo"], done
    assert "Read-only file system" in done.stderr


def test_options_of_services_that_a_container_lacks_the_rights_for(
    incus: Incus, booted: str
) -> None:
    """docs/nixos.md has this table: no effect, or no start."""
    run = ["systemd-run", "--wait", "--pipe", "--quiet"]
    options = ("IPAddressDeny=any", "OOMScoreAdjust=-500", "Nice=-5")
    script = (
        "ping -c 1 127.0.0.1 >&2; cut -d ' ' -f 19 /proc/self/stat; cat /proc/self/oom_score_adj"
    )
    given = [word for text in options for word in ("-p", text)]
    done = incus.run(booted, *run, *given, "sh", "-euc", script, check=False)
    assert done.stdout.split() == ["0", "0"] and "1 packets received" in done.stderr, done
    for option, status in (("CPUSchedulingPolicy=fifo", 214), ("IOSchedulingClass=realtime", 211)):
        assert incus.run(booted, *run, "-p", option, "true", check=False).returncode == status


@pytest.mark.parametrize(("groups", "accepted"), [("0 65534", True), ("0 2147483647", False)])
def test_an_unprivileged_container_has_65536_groups_for_ping(
    incus: Incus, booted: str, groups: str, accepted: bool
) -> None:
    """The first value is that of nix/container.nix, the second one the default of NixOS."""
    written = incus.run(
        booted, "sh", "-c", f"echo '{groups}' >/proc/sys/net/ipv4/ping_group_range", check=False
    )
    assert (written.returncode == 0) == accepted


def test_a_privileged_container_that_ran_can_be_deleted(incus: Incus, host: Host) -> None:
    """NixOS makes /var/empty immutable; a file of nix/container.nix with a later name undoes it."""
    name = incus.launch("-c", "security.privileged=true", flake="/etc/nixos#systemd")
    script = """
        mkdir -p /run/tmpfiles.d
        echo 'd /var/empty 0555\nh /var/empty - - - - +i' >/run/tmpfiles.d/00-nixos.conf
        echo 'h /var/empty - - - - -i' >/run/tmpfiles.d/zz-inx.conf
        systemd-tmpfiles --create
        """
    incus.sh(name, script)
    incus("delete", "-f", name)
    assert host.run(["incus", "info", name], check=False).returncode != 0
