"""An instance registers more roots than it may, or than the sidecar is prepared for."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.gc import (
    CONFIG,
    LONGEST_COLLECTION,
    REGISTER,
    STATE,
    SYNC,
    add_to_store,
    collect,
    daemon_socket,
    in_store,
    journal_end,
    journal_lines,
    left,
    link_roots,
    make_links,
    make_roots,
    paused,
    register,
    root_name,
    unharmed_neighbour,
    wait_rooted,
)
from support.incus import Incus

pytestmark = pytest.mark.gc


@contextlib.contextmanager
def flood(incus: Incus, name: str, prefix: str) -> Iterator[None]:
    """While the block runs, a client registers new texts as fast as the daemon accepts them."""
    argv = ["python3", "-c", REGISTER, daemon_socket(incus, name), prefix]
    with subprocess.Popen(
        incus.host.enter(argv),
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # nsenter's child ends with it
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"[]")
        process.stdin.close()
        try:
            yield
            assert process.poll() is None, "the flood ended by itself"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def limit(host: Host) -> Iterator[int]:
    """Instances that start during the test may have this number of roots."""
    host.sh(f"mkdir -p /etc/inx; echo max_roots_per_instance = 50 >{CONFIG}")
    yield 50
    host.run(["rm", "-f", CONFIG])


def test_a_flood_is_refused_and_reported_and_does_not_harm_others(
    incus: Incus, host: Host, limit: int
) -> None:
    path = add_to_store(incus, "flood")
    first = {f"/root/first-{count}": path for count in range(limit)}
    with unharmed_neighbour(incus) as neighbour:
        name = incus.launch(flake="/etc/nixos#web")
        make_roots(incus, name, first)
        make_links(incus, name, {f"/root/more-{count}": path for count in range(2000)})
        since, begin = journal_end(host), time.monotonic()
        register(incus, name, [f"/root/more-{count}" for count in range(2000)])
        with flood(incus, name, "/root/flood-"):
            status = incus.wait_status(name, r"ready \(.*max_roots_per_instance")
            theirs = {f"/root/r{count}": path for count in range(20)}
            asked = time.monotonic()
            make_roots(incus, neighbour, theirs)
            assert time.monotonic() - asked < 10, "others wait for an instance that floods"
            assert collect(host) < LONGEST_COLLECTION
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
    links = {f"/root/l{count}": path for count in range(10_000)}
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
