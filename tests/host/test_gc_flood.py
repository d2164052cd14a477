"""An instance registers more roots than it may, or than the sidecar is prepared for."""

import contextlib
import subprocess
import time
from collections.abc import Iterator

import pytest
from support.attacks import flooded
from support.disposable import Host
from support.gc import (
    CONFIG,
    SIDECAR,
    STATE,
    SYNC,
    add_to_store,
    collect,
    collect_in_time,
    daemon_socket,
    in_store,
    journal_end,
    journal_lines,
    left,
    link_roots,
    main_pid,
    make_links,
    make_roots,
    paused,
    register,
    root_name,
    unharmed_neighbour,
    wait_rooted,
)
from support.incus import PROMPT, Incus

from inx_sidecar.roots.registration_limit import overfull_at

pytestmark = pytest.mark.gc


@pytest.fixture
def limit(host: Host) -> Iterator[int]:
    """Instances that start during the test may have this number of roots."""
    host.sh(f"mkdir -p /etc/inx; echo max_roots_per_instance = 50 >{CONFIG}")
    yield 50
    host.run(["rm", "-f", CONFIG])


@contextlib.contextmanager
def background(incus: Incus, name: str, script: str) -> Iterator[None]:
    """While the block runs, a script runs inside."""
    argv = incus.host.enter(["incus", "exec", name, "--", "sh", "-euc", script])
    null = subprocess.DEVNULL
    with subprocess.Popen(argv, stdin=null, stdout=null, stderr=null) as process:
        try:
            yield
        finally:
            incus("stop", "-f", name)
            process.wait(60)


def daemon_listens(incus: Incus, name: str) -> bool:
    """Whether the instance's daemon takes connections."""
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    argv = ["python3", "-c", connect, daemon_socket(incus, name)]
    return bool(incus.host.run(argv, check=False).returncode == 0)


def test_a_flood_is_refused_and_reported_and_does_not_harm_others(
    incus: Incus, host: Host, limit: int
) -> None:
    path = add_to_store(incus, "flood")
    first = {f"/root/first-{count}": path for count in range(limit)}
    with unharmed_neighbour(incus) as neighbour:
        name = incus.launch(flake="/etc/nixos#web")
        make_roots(incus, name, first)
        more = [f"/root/more-{count}" for count in range(overfull_at(limit) - 2 * limit)]
        make_links(incus, name, dict.fromkeys(more, path))
        since, begin = journal_end(host), time.monotonic()
        register(incus, name, more)  # too few at once for an end of the daemon
        with flooded(incus, name, 1):
            status = incus.wait_status(name, r"ready \(.*max_roots_per_instance")
            theirs = {f"/root/r{count}": path for count in range(20)}
            asked = time.monotonic()
            make_roots(incus, neighbour, theirs)
            assert time.monotonic() - asked < PROMPT, "others wait for an instance that floods"
            collect_in_time(host)
        assert "50" in status
        # The roots that were made first stay, and there are no more than the limit.
        assert set(link_roots(incus, name)) == {root_name(text, path) for text in first}
        auto = f"{STATE}/{incus.uuid(name)}/auto"
        incus.eventually(
            lambda: len(host.run(["ls", auto]).stdout.split()) <= limit,
            lambda: f"{host.sh(f'ls {auto} | wc -l').stdout} are left in {auto}",
        )
        lines = journal_lines(host, since)
        assert len(lines) < 40 + 5 * (time.monotonic() - begin), lines[:100]


def test_a_flood_stops_the_daemon_of_its_instance_alone(
    incus: Incus, host: Host, limit: int
) -> None:
    """Root inside registers by six connections, and makes them again, faster than anybody looks."""
    path = add_to_store(incus, "kept")
    name = incus.launch(flake="/etc/nixos#web")
    make_roots(incus, name, {"/root/kept": path})
    neighbour = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    uuid, before = incus.uuid(name), main_pid(host)
    most = overfull_at(limit)
    sizes: list[int] = []
    with flooded(incus, name, 6):
        status = incus.wait_status(name, rf"ready \(over {most} GC roots were registered inside")
        assert name in status and "max_roots_per_instance" in status
        for number in range(10):
            asked = time.monotonic()
            make_roots(incus, neighbour, {f"/root/r{number}": path})
            assert time.monotonic() - asked < PROMPT, "others wait for an instance that floods"
            sizes.append(int(host.sh(f"ls {STATE}/{uuid} {STATE}/{uuid}/auto | wc -l").stdout))
        collect_in_time(host)
        # It is stopped again and again, each time for longer.
        incus.wait_status(name, r"ready \(.* is stopped for [24]0 s")
    assert max(sizes) < 20 * most, sizes
    assert main_pid(host) == before, "the sidecar was restarted"
    assert in_store(host, path) and root_name("/root/kept", path) in link_roots(incus, name)
    # After the flood, the daemon starts again by itself.
    incus.eventually(lambda: daemon_listens(incus, name), incus.story)
    make_roots(incus, name, {"/root/after": path})


def test_many_links_in_many_namespaces_delay_no_other_instance(incus: Incus, host: Host) -> None:
    """The root of another one is there before a look at all of them has ended."""
    path, links, namespaces = add_to_store(incus, "spread"), 6000, 100
    name = incus.launch(flake="/etc/nixos#web")
    neighbour = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    make_links(incus, name, {f"/srv/links/l{number}": path for number in range(links)})
    script = f"""
        mkdir /away
        for number in $(seq {namespaces}); do
            unshare -m sh -c 'mount -o bind /srv/links /away; exec sleep 3600' &
        done
        wait
        """
    with background(incus, name, script):
        incus.eventually(
            lambda: int(incus.said(name, "sh", "-c", "pidof sleep | wc -w")) >= namespaces,
            incus.story,
        )
        register(incus, name, [f"/away/l{number}" for number in range(links)])
        for number in range(3):
            asked = time.monotonic()
            make_roots(incus, neighbour, {f"/root/r{number}": path})
            assert number or len(link_roots(incus, name)) < links, "it waited for all links"
            assert time.monotonic() - asked < PROMPT, "others wait for an instance with many links"
            collect_in_time(host)
        wait_rooted(incus, name, {"/away/l0": path, f"/away/l{links - 1}": path})
        size = int(host.sh(f"stat -c %s {STATE}/{incus.uuid(name)}/away.json").stdout)
        assert size < 100 * links, "the places of each link are few"
    assert in_store(host, path)


def test_a_new_sidecar_starts_a_daemon_that_the_former_one_stopped(
    incus: Incus, host: Host, limit: int
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    with flooded(incus, name, 6):
        incus.wait_status(name, r"ready \(over .* GC roots were registered inside")
    host.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", SIDECAR])
    incus.eventually(lambda: daemon_listens(incus, name), incus.story)


def test_an_instance_that_flooded_is_deleted_without_harm(
    incus: Incus, host: Host, limit: int
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    uuid, before = incus.uuid(name), main_pid(host)
    with flooded(incus, name, 6):
        incus.wait_status(name, r"ready \(over .* GC roots were registered inside")
        incus("delete", "-f", name)
    gone = ["test", "!", "-e", f"{STATE}/{uuid}"]
    incus.eventually(lambda: host.run(gone, check=False).returncode == 0, incus.story)
    assert main_pid(host) == before


def test_the_status_of_a_full_instance_says_what_to_do(incus: Incus, limit: int) -> None:
    path = add_to_store(incus, "many")
    name = incus.launch(flake="/etc/nixos#web")
    links = {f"/root/l{count}": path for count in range(limit + 1)}
    make_links(incus, name, links)
    register(incus, name, list(links))
    status = incus.wait_status(name, r"ready \(.*max_roots_per_instance")
    assert "remove" in status and CONFIG in status


def test_a_full_instance_recovers_after_links_are_removed(incus: Incus, limit: int) -> None:
    path = add_to_store(incus, "full")
    name = incus.launch(flake="/etc/nixos#web")
    make_roots(incus, name, {f"/root/l{count}": path for count in range(limit)})
    make_links(incus, name, {"/root/new": path})
    register(incus, name, ["/root/new"])
    incus.wait_status(name, r"ready \(")
    incus.sh(name, "rm /root/l*")

    def accepted() -> bool:
        register(incus, name, ["/root/new"])
        return root_name("/root/new", path) in link_roots(incus, name)

    incus.eventually(accepted, incus.story)
    incus.wait_status(name, "ready$")


@pytest.mark.parametrize("targets", ["one", "many"])
def test_links_to_what_never_was_in_the_store_do_not_fill_the_journal(
    incus: Incus, host: Host, targets: str
) -> None:
    path = add_to_store(incus, "in-the-store")
    name = incus.launch(flake="/etc/nixos#web")
    missing = "/nix/store/" + "0" * 32 + "-never-built"
    links = {
        f"/root/l{count}": missing + (str(count) if targets == "many" else "")
        for count in range(1000)
    }
    make_links(incus, name, links)
    since = journal_end(host)
    register(incus, name, list(links))
    make_roots(incus, name, {"/root/good": path})
    host.run(SYNC)
    lines = journal_lines(host, since)
    assert any(b"/root/good" in line for line in lines) and len(lines) < 100, len(lines)


def test_ten_thousand_links_at_once_get_their_roots(incus: Incus, host: Host) -> None:
    path = add_to_store(incus, "burst")
    links = {f"/root/l{count}": path for count in range(10_000)}
    name = incus.launch(flake="/etc/nixos#web")
    make_links(incus, name, links)
    register(incus, name, list(links))
    collect(host)
    assert in_store(host, path)
    wait_rooted(incus, name, links)
    incus.wait_status(name, "ready$")


def test_nothing_is_lost_after_the_queue_of_events_overflowed(incus: Incus, host: Host) -> None:
    path, last = add_to_store(incus, "overflow"), add_to_store(incus, "last")
    links = {f"/root/l{count}": path for count in range(1000)}
    name = incus.launch(flake="/etc/nixos#web")
    make_links(incus, name, links | {"/root/last": last})
    size = int(host.run(["sysctl", "-n", "fs.inotify.max_queued_events"]).stdout)
    with paused(host):
        # The same links fill the queue. The last one is registered when no more events fit.
        texts = list(links)
        for _ in range(size // len(texts) + 1):
            register(incus, name, texts)
        register(incus, name, ["/root/last"])
    wait_rooted(incus, name, links | {"/root/last": last})
    collect(host)
    assert left(host, path, last) == {path, last}
