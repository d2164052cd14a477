"""Upgrade and removal of inx, and a host whose store cannot map owners."""

import contextlib
import os
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.health import is_healthy, stop_and_start
from support.incus import Incus
from support.services import check, property_of, state_of

pytestmark = pytest.mark.main

INSTALL = ["/root/inx/install", "--wheels", "/root/wheels"]
CONFIG = "/etc/inx/config.toml"


@pytest.fixture(scope="module")
def overlay() -> Iterator[Host]:
    """A host whose store lies on a file system without idmapped mounts."""
    with Host.up(f"test-{os.getpid()}-overlay", overlay_store=True) as host:
        yield host


@pytest.fixture(scope="module")
def spare() -> Iterator[Host]:
    """A host from which inx is removed."""
    with Host.up(f"test-{os.getpid()}-spare") as host:
        yield host


def test_an_upgrade_leaves_instances_running(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    before = incus.pid(name), property_of(host, "MainPID")
    incus("profile", "set", "inx", "user.mine=kept")
    for _ in range(2):
        host.run(INSTALL)
    assert incus("profile", "get", "inx", "user.mine").stdout == "kept\n"
    incus("profile", "unset", "inx", "user.mine")
    assert incus.pid(name) == before[0]
    assert property_of(host, "MainPID") != before[1]
    is_healthy(incus, name)
    stop_and_start(incus, name)


@pytest.mark.parametrize("store", ["shared", pytest.param("isolated", marks=pytest.mark.isolated)])
def test_a_store_that_cannot_map_owners_works_and_says_so(overlay: Host, store: str) -> None:
    incus = Incus(overlay, store[0])
    name = incus.init(flake="/etc/nixos#web", store=store)
    unmapped = r"ready \(store owned by nobody: its file system cannot map owners\)$"
    for _ in range(2):
        incus.start(name)
        incus.wait_status(name, unmapped)
        if store == "shared":
            is_healthy(incus, name)
        incus.wait_inside(name)
        assert incus.said(name, "stat", "-L", "-c", "%u", "/bin/sh") == "65534\n"
        incus("stop", name)
    journal = overlay.run(["journalctl", "-u", "inx-sidecar", "-p", "warning", "--no-pager"])
    assert f"{name}: store owned by nobody" in journal.stdout
    status, [found] = check(overlay)
    assert status == 1
    assert found.startswith("/nix/store on a file system that can map owners: ")
    assert found.endswith("; unprivileged containers see it owned by nobody")


def test_uninstall_refuses_while_instances_use_inx_and_then_leaves_nothing_of_inx(
    spare: Host,
) -> None:
    incus = Incus(spare, "u")
    incus("project", "create", "other")
    spare.sh("incus profile create inx --project other </etc/inx/profile.yaml")
    uninstall = ["/root/inx/install", "--uninstall"]
    for project in "default", "other":
        name = incus.launch(flake="/etc/nixos#web", project=project)
        refused = spare.run(uninstall, check=False)
        assert refused.returncode == 1
        assert refused.stderr == (
            f"inx: error: instances use the hooks of inx: {project}/{name}; "
            "delete them first: incus delete NAME --project PROJECT\n"
        )
        incus.wait_inside(name, project)
        assert check(spare) == (0, [])
        incus("delete", "-f", name, "--project", project)
    incus("project", "delete", "other", "--force", input="yes\n")
    spare.sh('cat >"$P"', env={"P": CONFIG}, input="max_builds = 1\n")
    spare.run(uninstall)
    assert incus("profile", "list", "-f", "csv", "-c", "n").stdout.split() == ["default"]
    assert "inx" not in incus("image", "list", "-f", "csv", "-c", "l").stdout.split()
    units = spare.run(["systemctl", "list-unit-files", "--no-legend", "inx-*"], check=False)
    assert units.stdout == ""
    # The slices of builds and of daemons end by themselves.
    loaded = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "inx-*"]
    services = spare.run(loaded).stdout.splitlines()
    assert not [line for line in services if ".slice" not in line]
    gone = (
        "/opt/inx /run/inx /etc/inx/hooks /etc/inx/profile.yaml /usr/local/lib/tmpfiles.d/inx.conf"
        " /usr/local/share/bash-completion/completions/inx-sidecar"
        " /usr/local/share/zsh/site-functions/_inx-sidecar"
        " /usr/local/share/fish/vendor_completions.d/inx-sidecar.fish"
    )
    spare.sh('for path in $P; do [ ! -e "$path" ] && [ ! -L "$path" ]; done', env={"P": gone})
    kept = ["/var/log/inx", "/var/lib/inx", "/nix/var/nix/gcroots/inx", CONFIG]
    spare.run(["ls", "-d", *kept])

    again = spare.run(uninstall)
    assert again.stdout.startswith("inx: inx is not installed on this host; ") and not again.stderr
    spare.run(INSTALL)
    is_healthy(incus, incus.launch(flake="/etc/nixos#web"))


@contextlib.contextmanager
def drop_in(host: Host, text: str) -> Iterator[None]:
    """While the block runs, the barrier and the guard have these lines in their units."""
    units = ["inx-barrier.service", "inx-guard.service"]
    places = [f"/run/systemd/system/{unit}.d" for unit in units]
    host.run(["mkdir", *places])
    for place in places:
        host.run(["tee", f"{place}/test.conf"], input=f"[Service]\n{text}")
    try:
        yield
    finally:
        host.run(["rm", "-r", *places])
        host.sh(f"systemctl daemon-reload; systemctl restart {' '.join(units)}")


def test_an_older_kernel_stops_no_installation_and_a_real_fault_does(host: Host) -> None:
    """Before, systemd called the end of the barrier a failure, and `install` ended there."""
    filtered = "SystemCallFilter=~fanotify_init\nSystemCallErrorNumber=ENOSYS\n"
    with drop_in(host, filtered):
        host.run(INSTALL)
        for unit, why in (
            ("inx-barrier", "this kernel cannot hold a collection"),
            ("inx-guard", "this kernel cannot keep containers from the store's lock files"),
        ):
            assert state_of(host, unit) == "inactive"
            assert why in host.run(["journalctl", "-u", unit, "-o", "cat", "-n", "20"]).stdout
    with drop_in(host, "ExecStart=\nExecStart=/bin/false\n"):
        assert host.run(INSTALL, check=False).returncode
    assert check(host) == (0, [])
