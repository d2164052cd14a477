"""Root of a container locks what Nix locks, and takes leases on files that all share."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.attacker import locking
from support.attacks import attacking, inside, staying_inside
from support.disposable import Host
from support.gc import BARRIER, SIDECAR, collect, journal_end, journal_lines
from support.incus import Incus
from support.isolated import isolated
from support.services import PROGRAM, check, state_of

pytestmark = pytest.mark.main

GUARD = "inx-guard.service"
IDMAP = ("-c", "raw.idmap=both 1000 1000")
# A build that takes longer waits for a lock.
SECONDS = 60.0
# The first build fails and leaves its lock file, which nobody holds then.
FAILING = """
let
  gathered = builtins.fromJSON (builtins.readFile /etc/nixos/deps.json);
  busybox = builtins.storePath gathered.busybox;
in derivation {
  name = "NAME";
  inherit (gathered) system;
  builder = "${busybox}/bin/sh";
  args = [ "-c" "exit 1" ];
}
"""
WORKING = FAILING.replace("exit 1", "echo >$out")
# Whether nobody holds a lock on the file, and how many seconds an open of it takes.
LOOK = """
import fcntl, json, os, sys, time
begin = time.monotonic()
fd = os.open(sys.argv[1], os.O_RDWR if os.access(sys.argv[1], os.W_OK) else os.O_RDONLY)
took = time.monotonic() - begin
try:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    free = True
except BlockingIOError:
    free = False
print(json.dumps([free, took]))
"""


def build(host: Host, text: str, name: str) -> None:
    expression = text.replace("NAME", name)
    host.run(["nix-build", "--no-out-link", "--expr", expression], timeout=SECONDS)


def left_lock(host: Host, name: str) -> str:
    """The lock file of a build that has failed."""
    argv = ["nix-build", "--no-out-link", "--expr", FAILING.replace("NAME", name)]
    assert host.run(argv, check=False).returncode
    argv = ["find", "/nix/store", "-maxdepth", "1", "-name", f"*-{name}.lock"]
    (path,) = host.run(argv).stdout.split()
    return path


def look(host: Host, path: str) -> tuple[bool, float]:
    """Whether nobody holds a lock on the file, and how long an open of it takes, in seconds."""
    free, took = json.loads(host.run(["python3", "-I", "-c", LOOK, path]).stdout)
    return free, took


def told(host: Host, name: str) -> list[str]:
    argv = ["journalctl", "-u", GUARD, "-o", "cat", "--no-pager", f"INX_INSTANCE={name}"]
    return host.run(argv).stdout.splitlines()


def test_no_way_to_lock_leads_from_a_container_to_a_lock_of_nix(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    path = left_lock(host, incus.prefix)
    incus.sh(name, "mkdir -p /mnt")
    outcome = inside(incus, name, locking.lock_in_every_way, path)
    assert {how for how, result in outcome.items() if result == "done"} == set()
    assert set(outcome.values()) <= {"EPERM", "EBADF", "EROFS"}
    by_exec = incus.run(name, "/dev/.inx/busybox", "flock", "-n", path, "true", check=False)
    assert by_exec.returncode
    assert look(host, path)[0]
    assert len(told(host, name)) == 1


def test_an_overlay_inside_leads_to_no_lock_of_nix(incus: Incus, host: Host) -> None:
    """The kernel may open the file below without asking; then the lock is the overlay's own."""
    name = incus.launch(flake="/etc/nixos#web")
    path = left_lock(host, incus.prefix)
    incus.sh(name, "mkdir -p /mnt")
    with staying_inside(incus, name, locking.lock_in_an_overlay, path) as output:
        assert output.readline() == '"mounted"\n'
        assert output.readline() in ('"EPERM"\n', '"locked"\n')
        assert look(host, path)[0]


def test_host_builds_go_on_while_a_container_locks_all_it_can(incus: Incus, host: Host) -> None:
    """Before, some of these builds waited for ever."""
    name = incus.launch(flake="/etc/nixos#web")
    left_lock(host, f"{incus.prefix}-0")
    with staying_inside(incus, name, locking.lock_new_files, "/nix/store", 8) as output:
        assert output.readline() == '"ready"\n'
        for number in range(20):
            build(host, WORKING, f"{incus.prefix}-{number}")
        incus("stop", "-f", name)
        assert output.read() == ""


def test_a_container_still_builds_and_reads_files_that_end_in_lock(
    incus: Incus, host: Host
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    host.sh("echo pinned >/srv/Cargo.lock")
    path = host.run(["nix-store", "--add", "/srv/Cargo.lock"]).stdout.strip()
    assert incus.said(name, "cat", path) == "pinned\n"
    assert inside(incus, name, locking.lock_in_every_way, path)["open"] == "done"
    incus.sh(name, "echo inside >/root/yarn.lock; nix-store --add /root/yarn.lock")


def lonely_file(host: Host, name: str) -> str:
    """A file in the store that no process has open."""
    host.sh('echo alone >"/srv/$N"', env={"N": name})
    return host.run(["nix-store", "--add", f"/srv/{name}"]).stdout.strip()


@pytest.mark.parametrize(
    ("store", "more"),
    [("isolated", ()), ("isolated", IDMAP), ("own", ())],
    ids=["isolated", "isolated, raw.idmap", "own"],
)
def test_an_isolated_container_can_neither_lock_nor_hold_what_the_host_uses(
    incus: Incus, host: Host, store: str, more: tuple[str, ...]
) -> None:
    file = lonely_file(host, incus.prefix)
    name = isolated(incus, *more, store=store, store_include=file)
    lock = left_lock(host, f"{incus.prefix}-build")
    incus.sh(name, "mkdir -p /mnt")
    outcome = inside(incus, name, locking.lock_in_every_way, lock)
    assert set(outcome.values()) == {"ENOENT"}
    assert set(inside(incus, name, locking.lock_in_every_way, file).values()) >= {"done"}
    with leases(host, enabled=True):
        paths = [file, "/dev/.inx/busybox", "/dev/.inx/init"]
        boot = f"/run/inx/{incus.uuid(name)}/boot"
        with staying_inside(incus, name, locking.take_leases, paths) as output:
            taken = json.loads(output.readline())
            assert taken == {paths[0]: "done", paths[1]: "EACCES", paths[2]: "EACCES"}
            for path in file, "/run/inx/busybox", f"{boot}/init", f"{boot}/busybox":
                assert look(host, path)[1] < 20
    incus.start(name)
    incus.wait_inside(name)
    with staying_inside(incus, name, locking.lock_and_stay, file, 1) as output:
        assert output.readline() == '"locked"\n'
        assert look(host, file)[0]


@contextmanager
def leases(host: Host, *, enabled: bool) -> Iterator[None]:
    """The setting is that of the whole kernel. A boot sets what inx ships."""
    host.sh(f"echo {int(enabled)} >/proc/sys/fs/leases-enable")
    try:
        yield
    finally:
        host.run(["/usr/lib/systemd/systemd-sysctl", "--prefix=/fs/leases-enable"])


@pytest.mark.parametrize("store", ["shared", "isolated", "own"])
def test_no_container_takes_leases_on_a_host_as_installed(
    incus: Incus, host: Host, store: str
) -> None:
    """A lease let the host wait for 45 s."""
    host.run(["/usr/lib/systemd/systemd-sysctl", "--prefix=/fs/leases-enable"])
    file = lonely_file(host, incus.prefix)
    include = {"store_include": file} if store != "shared" else {}
    name = incus.launch(flake="/etc/nixos#web", store=store, **include)
    with staying_inside(incus, name, locking.take_leases, [file]) as output:
        assert json.loads(output.readline()) == {file: "EINVAL"}
        assert look(host, file)[1] < 20


def test_check_says_what_follows_if_leases_are_on(host: Host) -> None:
    with leases(host, enabled=True):
        done = host.run([PROGRAM, "check"])
        (line,) = [line for line in done.stdout.splitlines() if "leases" in line]
        assert line.startswith("warn  fs.leases-enable: it is on, so root of a container with")
    assert check(host) == (0, [])
    assert "warn" not in host.run([PROGRAM, "check"]).stdout


def test_who_locked_while_no_guard_ran_is_ended(incus: Incus, host: Host) -> None:
    """Also the children that a process made, to which its lock passes."""
    name = incus.launch(flake="/etc/nixos#web")
    path = left_lock(host, incus.prefix)
    host.run(["systemctl", "stop", GUARD])
    try:
        status, [found] = check(host)
        assert status == 1
        with staying_inside(incus, name, locking.lock_and_stay, path, 50) as output:
            assert output.readline() == '"locked"\n'
            assert not look(host, path)[0]
            host.sh(found.partition("run '")[2].rstrip("'"))
            incus.eventually(lambda: look(host, path)[0], incus.story)
            assert incus.state(name) == "RUNNING"
    finally:
        host.run(["systemctl", "start", GUARD])
    assert check(host) == (0, [])
    assert [line for line in told(host, name) if "while no guard ran" in line]


def test_a_flood_of_opens_delays_the_host_by_little(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    path = left_lock(host, incus.prefix)
    with staying_inside(incus, name, locking.open_without_end, path, 500) as output:
        assert output.readline() == '"ready"\n'
        begin = time.monotonic()
        build(host, WORKING, f"{incus.prefix}-b")
        assert time.monotonic() - begin < SECONDS / 2
    assert any("are ended" in line for line in told(host, name))
    assert state_of(host, GUARD) == "active"
    assert host.run(["systemctl", "show", "-P", "NRestarts", GUARD]).stdout.strip() == "0"


@pytest.mark.parametrize("store", ["shared", "isolated"])
def test_a_container_that_takes_all_groups_of_fanotify_keeps_no_guard_away(
    incus: Incus, host: Host, store: str
) -> None:
    """The kernel counts what a container has for root of the host, whose namespaces it has."""
    name = incus.launch(flake="/etc/nixos#web", store=store)
    with attacking(incus, name, locking.take_groups):
        for unit in (GUARD, BARRIER):
            host.run(["systemctl", "restart", unit])
            assert state_of(host, unit) == "active"
        path = left_lock(host, incus.prefix)
        assert look(host, path)[0]
        collect(host)


def test_a_container_that_takes_all_instances_of_inotify_blinds_no_sidecar(
    incus: Incus, host: Host
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    with attacking(incus, name, locking.take_instances):
        since = journal_end(host)
        host.run(["systemctl", "restart", SIDECAR])
        assert state_of(host, SIDECAR) == "active"
        assert not [line for line in journal_lines(host, since) if b"limit of inotify" in line]
