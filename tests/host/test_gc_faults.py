"""What breaks below the roots of instances: disks, limits, Nix's database, and the sidecar itself.

Each fault is a real one. While it lasts, nothing that had a root loses it and the operator is told;
once it is gone, the roots appear without anything else having to happen.
"""

import contextlib
import shlex
import threading
import time
from collections.abc import Iterator

import pytest
from host.test_gc_attacks import (
    LONGEST_COLLECTION,
    SYNC,
    add_to_store,
    collect,
    cursor,
    journal,
    keep,
    link,
    register,
    root_of,
    roots_of,
    valid,
    wait_collected,
    wait_rooted,
)
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.gc

ROOTS = "/nix/var/nix/gcroots/inx"
STATE = "/var/lib/inx"
DROP_IN = "/run/systemd/system/inx-sidecar.service.d/fault.conf"


def main_pid(host: Host) -> int:
    return int(host.run(["systemctl", "show", "-P", "MainPID", "inx-sidecar"]).stdout)


def signal_sidecar(host: Host, name: str) -> None:
    host.run(["systemctl", "kill", "--kill-whom=main", f"--signal={name}", "inx-sidecar"])


def restart_sidecar(host: Host) -> None:
    host.run(["systemctl", "restart", "inx-sidecar.service"])


def wait_for_another(incus: Incus, pid: int) -> None:
    """Until another sidecar runs than the one with this number."""
    incus.eventually(lambda: main_pid(incus.host) not in (0, pid), incus.story)


@contextlib.contextmanager
def small_disk(host: Host, place: str) -> Iterator[None]:
    """A small file system holds what `place` holds, in the sidecar's view too."""
    script = """
        mount -t tmpfs -o size=4m,nr_inodes=3000,mode=$(stat -c %a "$P") small "$P"
        mount --bind / /mnt
        cp -a "/mnt$P/." "$P"
        umount -l /mnt
        systemctl restart inx-sidecar.service
        """
    if place.startswith("/nix/"):  # a mount of its own on this host
        script = script.replace("--bind / ", "--bind /nix ").replace('"/mnt$P/', '"/mnt${P#/nix}/')
    host.sh(script, env={"P": place})
    try:
        yield
    finally:
        host.sh('umount -l "$P"; systemctl restart inx-sidecar.service', env={"P": place})


@pytest.fixture
def roots_disk(host: Host) -> Iterator[None]:
    with small_disk(host, ROOTS):
        yield


@pytest.fixture
def state_disk(host: Host) -> Iterator[None]:
    with small_disk(host, STATE):
        yield


# chattr(1): 16 is FS_IMMUTABLE_FL, set by FS_IOC_SETFLAGS.
CHATTR = (
    "python3 -c 'import fcntl, os, struct, sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), "
    '0x40086602, struct.pack("l", int(sys.argv[2])))\' "$L"'
)
FILL = 'cd "$P"; n=0; while touch .fill$n 2>/dev/null; do n=$((n + 1)); done; [ $n -gt 0 ]'
# How each fault is made and ends, $P being the directory of all roots and $L that of the links; and
# what the operator reads.
FAULTS = {
    "full": (FILL, 'rm "$P"/.fill*', "No space left on device"),
    "read-only": ('mount -o remount,ro "$P"', 'mount -o remount,rw "$P"', "Read-only file system"),
    "immutable": (f"{CHATTR} 16", f"{CHATTR} 0", "Operation not permitted"),
}

# Each tells of a comparison of its own or of another's, also if the next one begins right then.
SYNC_AT_ONCE = f"""
    for n in 1 2 3 4; do ({shlex.join(SYNC)} >/dev/null 2>&1 || echo $?) & done
    wait
"""

# A server that ends at once: all that touches the file system is told so.
DEAD_MOUNT = """
import ctypes, os, sys
fd = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
assert ctypes.CDLL(None).mount(b"dead", sys.argv[1].encode(), b"fuse", 0, data) == 0
"""


@contextlib.contextmanager
def dead_mount(host: Host, place: str) -> Iterator[None]:
    """Whatever touches `place` is refused while the block runs."""
    host.run(["python3", "-c", DEAD_MOUNT, place])
    try:
        yield
    finally:
        host.run(["umount", "-l", place])


@contextlib.contextmanager
def broken(host: Host, fault: str, links: str = "") -> Iterator[str]:
    """The fault lasts as long as the block does; what is to be read of it."""
    make, end, words = FAULTS[fault]
    env = {"P": ROOTS, "L": links}
    host.sh(make, env=env)
    try:
        yield words
    finally:
        host.sh(end, env=env)


@contextlib.contextmanager
def without_calls(host: Host, *calls: str) -> Iterator[None]:
    """The kernel refuses these system calls (NAME:ERROR) to the sidecar, and to nobody else."""
    host.sh(
        'mkdir -p "${F%/*}"; printf "[Service]\\nSystemCallFilter=~%s\\n" "$C" >"$F"; '
        "systemctl daemon-reload",
        env={"F": DROP_IN, "C": " ".join(calls)},
    )
    try:
        restart_sidecar(host)
        yield
    finally:
        host.run(["rm", DROP_IN])
        host.run(["systemctl", "daemon-reload"])
        restart_sidecar(host)


# --- Where the roots lie ----------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_roots_that_cannot_be_written_are_told_and_made_once_they_can(
    roots_disk: None, incus: Incus, host: Host, fault: str
) -> None:
    path = add_to_store(incus, "kept")
    name = incus.launch(flake="/etc/nixos#web")
    before = {f"/root/before{count}": path for count in range(5)}
    after = {f"/root/after{count}": path for count in range(5)}
    keep(incus, name, before)
    link(incus, name, after)
    since = cursor(host)
    with broken(host, fault, f"{ROOTS}/{name}.{incus.uuid(name)}/links") as words:
        register(incus, name, list(after))
        status = incus.wait_status(name, rf"ready \(cannot keep .*{words}\)$")
        assert path in status and ROOTS in status
        for _ in range(5):
            assert host.sh(SYNC_AT_ONCE).stdout.split() == ["26"] * 4
            register(incus, name, list(after))
        assert set(roots_of(incus, name)) == {root_of(text, path) for text in before}
        assert collect(host) < LONGEST_COLLECTION
        told = [line for line in journal(host, since) if words.encode() in line]
        assert 1 <= len(told) <= 3, told
    begin = time.monotonic()
    wait_rooted(incus, name, before | after)
    assert time.monotonic() - begin < 20
    incus.wait_status(name, "ready$")
    assert valid(host, path)


def test_an_error_of_the_disk_is_told_and_costs_nothing(incus: Incus, host: Host) -> None:
    """The links' directory is on a file system whose server has died."""
    path = add_to_store(incus, "erring")
    name = incus.launch(flake="/etc/nixos#web")
    other = incus.launch(name=incus.name("other"), flake="/etc/nixos#web")
    keep(incus, name, {"/root/before": path})
    link(incus, name, {"/root/after": path})
    place = f"{ROOTS}/{name}.{incus.uuid(name)}/links"
    with dead_mount(host, place):
        register(incus, name, ["/root/after"])
        keep(incus, other, {"/root/meanwhile": path})
        incus.wait_status(name, r"ready \(.*Transport endpoint is not connected")
        assert incus.status(other) == "ready"
    wait_rooted(incus, name, {"/root/before": path, "/root/after": path})
    incus.wait_status(name, "ready$")


@pytest.mark.parametrize("links", ["", "/root/before"])
def test_an_error_of_the_disk_keeps_no_other_instance_from_being_compared(
    incus: Incus, host: Host, links: str
) -> None:
    path, moved = add_to_store(incus, "compared"), add_to_store(incus, "moved")
    name = incus.launch(flake="/etc/nixos#web")
    other = incus.launch(name=incus.name("other"), flake="/etc/nixos#web")
    keep(incus, name, {links: path} if links else {})
    keep(incus, other, {"/root/result": path})
    host.run(SYNC)
    with dead_mount(host, f"{ROOTS}/{name}.{incus.uuid(name)}/links"):
        incus.run(other, "ln", "-sfn", moved, "/root/result")
        said = host.run(SYNC, check=False)
        assert "the inx sidecar failed" not in said.stderr
        assert root_of("/root/result", moved) in roots_of(incus, other), said.stderr


def test_a_root_that_cannot_be_dropped_is_told_and_dropped_later(
    roots_disk: None, incus: Incus, host: Host
) -> None:
    path, other = add_to_store(incus, "let-go"), add_to_store(incus, "stays")
    name = incus.launch(flake="/etc/nixos#web")
    keep(incus, name, {"/root/gone": path, "/root/stays": other})
    with broken(host, "read-only") as words:
        incus.run(name, "rm", "/root/gone")
        assert host.run(SYNC, check=False).returncode == 26
        incus.wait_status(name, rf"ready \(cannot drop .*{words}\)$")
    only = {root_of("/root/stays", other)}
    incus.eventually(lambda: set(roots_of(incus, name)) == only, incus.story)
    incus.wait_status(name, "ready$")
    wait_collected(incus, path)


def test_a_snapshot_made_while_the_disk_is_full_gets_its_roots_later(
    roots_disk: None, incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "snapped")
    name = incus.launch(flake="/etc/nixos#web")
    keep(incus, name, {"/root/result": path})
    with broken(host, "full") as words:
        incus("snapshot", "create", name, "snap")
        asked = host.run(SYNC, check=False)
        assert words in asked.stderr
        incus.run(name, "rm", "/root/result")
        collect(host)
        assert valid(host, path), "the snapshot has no roots of its own yet"
    place = f"{ROOTS}/{name}.{incus.uuid(name)}/snapshots"
    incus.eventually(
        lambda: path in host.sh(f"find {place} -type l -printf '%l\\n' || :").stdout, incus.story
    )
    collect(host)
    assert valid(host, path)


def test_an_instance_that_starts_on_a_full_disk_says_why_it_cannot(
    roots_disk: None, incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "neighbours")
    other = incus.launch(name=incus.name("other"), flake="/etc/nixos#web")
    keep(incus, other, {"/root/result": path})
    name = incus.init(system=incus.get(other, "user.inx.status.system"))
    with broken(host, "full") as words:
        assert incus.start(name, check=False).returncode != 0
        assert words in incus.log(name)
        incus.wait_status(name, rf"failed: cannot keep .*{words}")
        collect(host)
        assert valid(host, path)
    incus.start(name)
    incus.wait_ready(name)


# --- Where registrations lie ------------------------------------------------------------------


def test_a_full_disk_of_registrations_is_the_clients_error_and_passes(
    state_disk: None, incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "state")
    name = incus.launch(flake="/etc/nixos#web")
    keep(incus, name, {"/root/before": path})
    incus.sh(name, f"nix-store --add-root /root/nix --realise {path}")
    link(incus, name, {"/root/after": path})
    host.sh(FILL, env={"P": STATE})
    try:
        refused = incus.sh(name, f"nix-store --add-root /root/no --realise {path}", check=False)
        assert refused.returncode != 0 and "No space left on device" in refused.stderr
        incus.run(name, "rm", "/root/no", "/root/nix", check=False)
        host.run(SYNC)
        collect(host)
        assert root_of("/root/before", path) in roots_of(incus, name)
        assert root_of("/root/nix", path) not in roots_of(incus, name)
    finally:
        host.sh(f"rm {STATE}/.fill*")
    register(incus, name, ["/root/after"])
    wait_rooted(incus, name, {"/root/before": path, "/root/after": path})
    incus.wait_status(name, "ready$")


# --- Events -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["inotify_init1:EMFILE", "inotify_add_watch:ENOSPC"])
def test_without_inotify_registrations_are_found_all_the_same(
    incus: Incus, host: Host, call: str
) -> None:
    """As when the host's limit of instances or of watches is reached."""
    path = add_to_store(incus, "polled")
    name = incus.launch(flake="/etc/nixos#web")
    since = cursor(host)
    with without_calls(host, call):
        keep(incus, name, {"/root/polled": path})
        link(incus, name, {"/root/collected": path})
        register(incus, name, ["/root/collected"])
        collect(host)
        assert root_of("/root/collected", path) in roots_of(incus, name)
        told = [line for line in journal(host, since) if b"fs.inotify." in line]
        assert len(told) == 1, told
    keep(incus, name, {"/root/heard": path})


def test_a_burst_of_ten_thousand_links_is_rooted(incus: Incus, host: Host) -> None:
    path = add_to_store(incus, "burst")
    links = {f"/root/l{count}": path for count in range(10_000)}
    name = incus.launch(flake="/etc/nixos#web")
    link(incus, name, links)
    register(incus, name, list(links))
    collect(host)
    assert valid(host, path)
    wait_rooted(incus, name, links)
    incus.wait_status(name, "ready$")


def test_a_queue_of_events_that_ran_over_loses_nothing(incus: Incus, host: Host) -> None:
    path, last = add_to_store(incus, "overflow"), add_to_store(incus, "last")
    links = {f"/root/l{count}": path for count in range(10_000)}
    name = incus.launch(flake="/etc/nixos#web")
    link(incus, name, links | {"/root/last": last})
    limit = int(host.run(["sysctl", "-n", "fs.inotify.max_queued_events"]).stdout)
    signal_sidecar(host, "STOP")
    try:
        # The same links again and again until no more events fit: the last one has none.
        texts = list(links)
        for _ in range(limit // len(texts) + 1):
            register(incus, name, texts)
        register(incus, name, ["/root/last"])
    finally:
        signal_sidecar(host, "CONT")
    wait_rooted(incus, name, links | {"/root/last": last})
    collect(host)
    assert valid(host, path) and valid(host, last)


# --- Nix's database, times, and the sidecar's own end -----------------------------------------


def test_a_database_that_cannot_be_read_for_a_moment_drops_nothing(
    incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "database")
    name = incus.launch(flake="/etc/nixos#web")
    keep(incus, name, {"/root/before": path})
    link(incus, name, {"/root/after": path})
    within = ["nsenter", "-m", "-t", str(main_pid(host))]
    host.run([*within, "mount", "--bind", "/dev/null", "/nix/var/nix/db/db.sqlite"])
    try:
        register(incus, name, ["/root/after"])
        said = host.run(SYNC, check=False)
        assert root_of("/root/before", path) in roots_of(incus, name), said
        # What is said of its roots, or also that nothing can be decided for it just now.
        incus.wait_status(name, r"(ready|failed).*cannot read Nix's database")
    finally:
        host.run([*within, "umount", "/nix/var/nix/db/db.sqlite"])
    wait_rooted(incus, name, {"/root/before": path, "/root/after": path})
    incus.wait_status(name, "ready$")
    collect(host)
    assert valid(host, path)


def test_times_from_the_past_and_the_future_change_nothing(incus: Incus, host: Host) -> None:
    path, other = add_to_store(incus, "times"), add_to_store(incus, "times-gone")
    name = incus.launch(flake="/etc/nixos#web")
    links = {"/root/past": path, "/root/future": path}
    keep(incus, name, links | {"/root/gone": other})
    place = f"{ROOTS}/{name}.{incus.uuid(name)}/links"
    for stamp in ("@1", "2100-01-01"):
        host.sh(f"touch -h -d {stamp} {place}/* {STATE}/{incus.uuid(name)}/auto/* {place}")
        incus.sh(name, f"touch -h -d '{stamp} 00:00' /root/past /root/gone || touch -h -d @1 /root")
        register(incus, name, ["/root/past"])
        host.run(SYNC)
        shown = host.run(["/opt/inx/bin/inx-sidecar", "roots", name]).stdout
        ages = [line.split()[1] for line in shown.splitlines()[1:]]
        assert ages and not any(age.startswith("-") for age in ages)
        wait_rooted(incus, name, links | {"/root/gone": other})
    restart_sidecar(host)
    incus.run(name, "rm", "/root/gone")
    wait_collected(incus, other)
    wait_rooted(incus, name, links)


def test_a_sidecar_killed_again_and_again_loses_no_registration(incus: Incus, host: Host) -> None:
    first, second = add_to_store(incus, "killed"), add_to_store(incus, "killed-too")
    name = incus.launch(flake="/etc/nixos#web")
    links = {f"/root/l{count}": second if count % 2 else first for count in range(900)}
    link(incus, name, links)
    keep(incus, name, dict([links.popitem(), links.popitem()]))  # a collection may come at once
    texts = list(links)
    ended = threading.Event()
    troubles: list[Exception] = []

    def register_all() -> None:
        try:
            for begin in range(0, len(texts), 10):
                register(incus, name, texts[begin : begin + 10])
        except Exception as error:
            troubles.append(error)
        finally:
            ended.set()

    registering = threading.Thread(target=register_all)
    registering.start()
    kills = 0
    try:
        while kills < 30 or not ended.is_set():
            before = main_pid(host)
            signal_sidecar(host, "KILL")
            kills += 1
            if kills % 10 == 0:
                assert collect(host) < LONGEST_COLLECTION
            wait_for_another(incus, before)
    finally:
        registering.join(60)
    assert not troubles
    wait_rooted(incus, name, links)
    collect(host)
    assert valid(host, first) and valid(host, second)
    incus.wait_status(name, "ready$")
