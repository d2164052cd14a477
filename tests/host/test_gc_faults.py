"""What breaks below the roots: the disk, limits of the kernel, Nix's database, and times of files.

Each fault is a real one. While it lasts, no root is lost and the operator is told. When it is gone,
the missing roots appear without any help.
"""

import contextlib
import shlex
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.gc import (
    ROOTS,
    SIDECAR,
    STATE,
    SYNC,
    add_to_store,
    collect,
    in_store,
    journal_end,
    journal_lines,
    link_roots,
    make_links,
    make_roots,
    register,
    root_directory,
    root_name,
    wait_gone,
    wait_rooted,
)
from support.incus import PROMPT, Incus
from support.services import unreadable_database

pytestmark = pytest.mark.gc

DROP_IN = "/run/systemd/system/inx-sidecar.service.d/fault.conf"


def restart_sidecar(host: Host) -> None:
    host.run(["systemctl", "restart", SIDECAR])


@contextlib.contextmanager
def small_disk(host: Host, place: str) -> Iterator[None]:
    """While the block runs, a small file system with the same files covers `place`."""
    script = """
        # Exit status 1: the sidecar has changed something meanwhile; it begins anew below.
        tar -C "$P" -cf /run/small.tar . || [ $? = 1 ]
        mount -t tmpfs -o size=4m,nr_inodes=3000,mode=$(stat -c %a "$P") small "$P"
        tar -C "$P" -xf /run/small.tar || { umount -l "$P"; exit 1; }
        systemctl restart inx-sidecar.service
        """
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
# Commands that make and end each fault, and what the operator reads. $P is the directory of all
# roots, and $L that of the roots for links.
FAULTS = {
    "full": (FILL, 'rm "$P"/.fill*', "No space left on device"),
    "read-only": ('mount -o remount,ro "$P"', 'mount -o remount,rw "$P"', "Read-only file system"),
    "immutable": (f"{CHATTR} 16", f"{CHATTR} 0", "Operation not permitted"),
}

# Four at once: each has to report its own comparison or one of the others.
SYNC_AT_ONCE = f"""
    for n in 1 2 3 4; do ({shlex.join(SYNC)} >/dev/null 2>&1 || echo $?) & done
    wait
"""

# Mounts a file system whose server ends at once: each access fails.
DEAD_MOUNT = """
import ctypes, os, sys
fd = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
assert ctypes.CDLL(None).mount(b"dead", sys.argv[1].encode(), b"fuse", 0, data) == 0
"""


@contextlib.contextmanager
def dead_mount(host: Host, place: str) -> Iterator[None]:
    """While the block runs, each access to `place` fails."""
    host.run(["python3", "-c", DEAD_MOUNT, place])
    try:
        yield
    finally:
        host.run(["umount", "-l", place])


@contextlib.contextmanager
def broken(host: Host, fault: str, links: str = "") -> Iterator[str]:
    """While the block runs, there is this fault. The block gets what the operator reads of it."""
    make, end, words = FAULTS[fault]
    env = {"P": ROOTS, "L": links}
    host.sh(make, env=env)
    try:
        yield words
    finally:
        host.sh(end, env=env)


@contextlib.contextmanager
def without_calls(host: Host, *calls: str) -> Iterator[None]:
    """While the block runs, the sidecar's system calls of these names fail (NAME:ERROR)."""
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


@pytest.mark.parametrize("fault", FAULTS)
def test_roots_that_cannot_be_written_are_reported_and_made_later(
    roots_disk: None, incus: Incus, host: Host, fault: str
) -> None:
    path = add_to_store(incus, "kept")
    name = incus.launch(flake="/etc/nixos#web")
    before = {f"/root/before{count}": path for count in range(5)}
    after = {f"/root/after{count}": path for count in range(5)}
    make_roots(incus, name, before)
    make_links(incus, name, after)
    since = journal_end(host)
    with broken(host, fault, f"{root_directory(incus, name)}/links") as words:
        register(incus, name, list(after))
        status = incus.wait_status(name, rf"ready \(cannot keep .*{words}[^)]*\)$")
        assert path in status and ROOTS in status
        for _ in range(5):
            assert host.sh(SYNC_AT_ONCE).stdout.split() == ["26"] * 4
            register(incus, name, list(after))
        assert set(link_roots(incus, name)) == {root_name(text, path) for text in before}
        assert collect(host) < PROMPT
        told = [line for line in journal_lines(host, since) if words.encode() in line]
        assert 1 <= len(told) <= 3, told
    wait_rooted(incus, name, before | after)
    incus.wait_status(name, "ready$")
    assert in_store(host, path)


def test_an_error_of_the_disk_is_reported_and_loses_nothing(incus: Incus, host: Host) -> None:
    """The roots lie on a file system whose server has died."""
    path = add_to_store(incus, "erring")
    name = incus.launch(flake="/etc/nixos#web")
    other = incus.launch(name=incus.name("other"), flake="/etc/nixos#web")
    make_roots(incus, name, {"/root/before": path})
    make_links(incus, name, {"/root/after": path})
    place = f"{root_directory(incus, name)}/links"
    with dead_mount(host, place):
        register(incus, name, ["/root/after"])
        make_roots(incus, other, {"/root/meanwhile": path})
        incus.wait_status(name, r"ready \(.*Transport endpoint is not connected")
        incus.wait_status(other, "ready$")
    wait_rooted(incus, name, {"/root/before": path, "/root/after": path})
    incus.wait_status(name, "ready$")


@pytest.mark.parametrize("links", ["", "/root/before"])
def test_an_error_of_the_disk_at_one_instance_does_not_stop_the_update_of_another(
    incus: Incus, host: Host, links: str
) -> None:
    path, moved = add_to_store(incus, "compared"), add_to_store(incus, "moved")
    name = incus.launch(flake="/etc/nixos#web")
    other = incus.launch(name=incus.name("other"), flake="/etc/nixos#web")
    make_roots(incus, name, {links: path} if links else {})
    make_roots(incus, other, {"/root/result": path})
    host.run(SYNC)
    with dead_mount(host, f"{root_directory(incus, name)}/links"):
        incus.run(other, "ln", "-sfn", moved, "/root/result")
        said = host.run(SYNC, check=False)
        assert "the inx sidecar failed" not in said.stderr
        assert root_name("/root/result", moved) in link_roots(incus, other), said.stderr


def test_a_root_that_cannot_be_dropped_is_reported_and_dropped_later(
    roots_disk: None, incus: Incus, host: Host
) -> None:
    path, other = add_to_store(incus, "let-go"), add_to_store(incus, "stays")
    name = incus.launch(flake="/etc/nixos#web")
    make_roots(incus, name, {"/root/gone": path, "/root/stays": other})
    with broken(host, "read-only") as words:
        incus.run(name, "rm", "/root/gone")
        assert host.run(SYNC, check=False).returncode == 26
        incus.wait_status(name, rf"ready \(cannot drop .*{words}\)$")
    only = {root_name("/root/stays", other)}
    incus.eventually(lambda: set(link_roots(incus, name)) == only, incus.story)
    incus.wait_status(name, "ready$")
    wait_gone(incus, path)


def test_a_snapshot_made_while_the_disk_is_full_gets_its_roots_later(
    roots_disk: None, incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "snapped")
    name = incus.launch(flake="/etc/nixos#web")
    make_roots(incus, name, {"/root/result": path})
    with broken(host, "full") as words:
        incus("snapshot", "create", name, "snap")
        asked = host.run(SYNC, check=False)
        assert words in asked.stderr
        incus.run(name, "rm", "/root/result")
        collect(host)
        assert in_store(host, path), "the snapshot has no roots of its own yet"
    place = f"{root_directory(incus, name)}/snapshots"
    incus.eventually(
        lambda: path in host.sh(f"find {place} -type l -printf '%l\\n' || :").stdout, incus.story
    )
    collect(host)
    assert in_store(host, path)


def test_an_instance_that_starts_on_a_full_disk_says_why_it_cannot(
    roots_disk: None, incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "neighbours")
    other = incus.launch(name=incus.name("other"), flake="/etc/nixos#web")
    make_roots(incus, other, {"/root/result": path})
    name = incus.init(system=incus.get(other, "user.inx.status.system"))
    with broken(host, "full") as words:
        assert incus.start(name, check=False).returncode != 0
        incus.wait_log(name, words)
        incus.wait_status(name, rf"failed: cannot keep .*{words}")
        collect(host)
        assert in_store(host, path)
    incus.start(name)
    incus.wait_ready(name)


def test_if_registrations_fill_their_disk_the_client_gets_the_error(
    state_disk: None, incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "state")
    name = incus.launch(flake="/etc/nixos#web")
    make_roots(incus, name, {"/root/before": path})
    incus.sh(name, f"nix-store --add-root /root/nix --realise {path}")
    make_links(incus, name, {"/root/after": path})
    host.sh(FILL, env={"P": STATE})
    try:
        refused = incus.sh(name, f"nix-store --add-root /root/no --realise {path}", check=False)
        assert refused.returncode != 0 and "No space left on device" in refused.stderr
        incus.run(name, "rm", "/root/no", "/root/nix", check=False)
        host.run(SYNC)
        collect(host)
        assert root_name("/root/before", path) in link_roots(incus, name)
        assert root_name("/root/nix", path) not in link_roots(incus, name)
    finally:
        host.sh(f"rm {STATE}/.fill*")
    register(incus, name, ["/root/after"])
    wait_rooted(incus, name, {"/root/before": path, "/root/after": path})
    incus.wait_status(name, "ready$")


@pytest.mark.parametrize("call", ["inotify_init1:EMFILE", "inotify_add_watch:ENOSPC"])
def test_without_inotify_registrations_are_found(incus: Incus, host: Host, call: str) -> None:
    """The kernel refuses inotify when its limit of instances or of watches is reached."""
    path = add_to_store(incus, "polled")
    name = incus.launch(flake="/etc/nixos#web")
    since = journal_end(host)
    with without_calls(host, call):
        make_roots(incus, name, {"/root/polled": path})
        make_links(incus, name, {"/root/collected": path})
        register(incus, name, ["/root/collected"])
        collect(host)
        assert root_name("/root/collected", path) in link_roots(incus, name)
        told = [line for line in journal_lines(host, since) if b"fs.inotify." in line]
        assert len(told) == 1, told
    make_roots(incus, name, {"/root/heard": path})


def test_no_root_is_dropped_while_nixs_database_cannot_be_read(incus: Incus, host: Host) -> None:
    path = add_to_store(incus, "database")
    name = incus.launch(flake="/etc/nixos#web")
    make_roots(incus, name, {"/root/before": path})
    make_links(incus, name, {"/root/after": path})
    with unreadable_database(host):
        register(incus, name, ["/root/after"])
        said = host.run(SYNC, check=False)
        assert root_name("/root/before", path) in link_roots(incus, name), said
        # The status is about the roots alone, or says that nothing can be decided now.
        incus.wait_status(name, r"(ready|failed).*cannot read Nix's database")
    wait_rooted(incus, name, {"/root/before": path, "/root/after": path})
    incus.wait_status(name, "ready$")
    collect(host)
    assert in_store(host, path)


def test_files_from_the_past_and_the_future_change_no_root(incus: Incus, host: Host) -> None:
    path, other = add_to_store(incus, "times"), add_to_store(incus, "times-gone")
    name = incus.launch(flake="/etc/nixos#web")
    links = {"/root/past": path, "/root/future": path}
    make_roots(incus, name, links | {"/root/gone": other})
    place = f"{root_directory(incus, name)}/links"
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
    wait_gone(incus, other)
    wait_rooted(incus, name, links)
