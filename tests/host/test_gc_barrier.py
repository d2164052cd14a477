"""The barrier makes whoever lists gcroots wait for the sidecar, but never for long.

Sidecar and barrier hang, are killed and restarted, and many processes list gcroots at once.
"""

import contextlib
import re
import threading
import time
from collections.abc import Iterator

import pytest
from support.disposable import REPO, Host
from support.gc import (
    BARRIER,
    COLLECT,
    GCROOTS,
    SIDECAR,
    SIDECAR_UNITS,
    collect,
    journal,
    journal_end,
    main_pid,
    paused,
    send_signal,
)
from support.gc_stages import (
    Collection,
    Instance,
    Registration,
    Stage,
    again_if_nix_aborts,
    child_of,
    drain,
    restore_units,
    running,
    wait_for_successor,
    wait_held,
    wait_success,
    wait_until,
    waits_for_barrier,
)
from support.incus import PROMPT, SECONDS
from support.nixworker import NixClient
from support.services import constant

from inx_sidecar.roots import barrier

pytestmark = pytest.mark.gc

PRINT_ROOTS = ["nix-store", "--gc", "--print-roots"]


@pytest.fixture(scope="module")
def instance(host: Host) -> Iterator[Instance]:
    with Instance.launched(host) as instance:
        NixClient(instance.socket).close()  # its daemon starts: without a sidecar, none does
        yield instance


@pytest.fixture(autouse=True)
def units(host: Host) -> Iterator[None]:
    """Sidecar and barrier run again after each test."""
    yield
    restore_units(host)


@contextlib.contextmanager
def watchdog(host: Host, seconds: str) -> Iterator[None]:
    """While the block runs, systemd ends a sidecar that hangs after so many seconds, 0: never."""
    dropin = "/run/systemd/system/inx-sidecar.service.d/short.conf"
    text = f"[Service]\nWatchdogSec={seconds}\n"
    host.sh(f'mkdir -p "$(dirname {dropin})"; cat >{dropin}', input=text)
    try:
        host.sh("systemctl daemon-reload; systemctl restart inx-sidecar.service")
        yield
    finally:
        host.sh(f"rm {dropin}; systemctl daemon-reload; systemctl restart inx-sidecar.service")


def test_the_barrier_waits_longer_than_systemd_for_a_sidecar_that_hangs() -> None:
    unit = (REPO / "systemd/inx-sidecar.service").read_text()
    for setting in "WatchdogSec", "TimeoutStopSec":
        (seconds,) = re.findall(rf"^{setting}=(\d+)$", unit, re.MULTILINE)
        assert int(seconds) + 10 <= barrier.SECONDS <= barrier.SECONDS_IN_ALL / 2


def restarts(host: Host, unit: str) -> int:
    return int(host.run(["systemctl", "show", "-P", "NRestarts", unit]).stdout)


def test_a_sidecar_that_never_answers_delays_a_collection_for_a_while_and_the_journal_says_so(
    instance: Instance,
) -> None:
    """Without a watchdog, nothing ends a sidecar that hangs."""
    host = instance.host
    client = Registration(instance)
    client.complete()
    drain(host)
    seconds = 8.0
    with (
        watchdog(host, "0"),
        constant(host, "roots/barrier", "SECONDS", seconds, BARRIER),
    ):
        begin, since = time.monotonic(), journal_end(host)
        said = "goes on: the sidecar does not answer, roots may be missing"
        with contextlib.ExitStack() as asleep:
            asleep.enter_context(paused(host))
            with running(host, *PRINT_ROOTS) as listing:
                wait_until(lambda: said in journal(host, since, BARRIER), "it waits for ever")
                took = time.monotonic() - begin
                asleep.close()
                told, _ = listing.communicate(timeout=SECONDS)
    assert seconds <= took < barrier.SECONDS
    assert listing.returncode == 0 and client.path in told
    assert journal(host, since, BARRIER).count(said) == 1
    client.unlink()


def test_a_sidecar_that_hangs_is_ended_and_the_collection_waits_for_the_next_one(
    instance: Instance,
) -> None:
    host = instance.host
    with watchdog(host, "2"):
        client = Registration(instance)
        before, count, since = main_pid(host), restarts(host, SIDECAR), journal_end(host)
        send_signal(host, "STOP")
        client.complete()
        collect(host)
        assert client.in_store()
        assert main_pid(host) != before
        assert restarts(host, SIDECAR) == count + 1
        assert "Watchdog timeout" in journal(host, since, SIDECAR)
        assert "goes on" not in journal(host, since, BARRIER)
    client.unlink()


def assert_next_barrier_works(instance: Instance, before: int) -> None:
    """A barrier other than `before` holds a collection until the sidecar has seen a new root."""
    host = instance.host
    wait_for_successor(host, BARRIER, before)
    client = Registration(instance)
    with running(host, *COLLECT) as collection:
        wait_success(collection)
    with contextlib.ExitStack() as asleep:
        asleep.enter_context(paused(host))
        client.complete()
        with running(host, *COLLECT) as collection:
            wait_held(host, GCROOTS)
            asleep.close()
            wait_success(collection)
    assert client.in_store()
    client.unlink()


def test_a_barrier_that_hangs_is_ended_and_collections_go_on(instance: Instance) -> None:
    host = instance.host
    before, since = main_pid(host, BARRIER), journal_end(host)
    send_signal(host, "STOP", BARRIER)
    with running(host, *PRINT_ROOTS) as collection:
        wait_until(lambda: waits_for_barrier(child_of(collection)), "it does not wait")
        wait_success(collection)
    assert "Watchdog timeout" in journal(host, since, BARRIER)
    assert_next_barrier_works(instance, before)


@again_if_nix_aborts
def test_a_barrier_that_is_killed_lets_all_go_at_once_and_comes_back(instance: Instance) -> None:
    host = instance.host
    before = main_pid(host, BARRIER)
    with (
        paused(host),
        running(host, "ls", GCROOTS) as listing,
        Collection(host) as collection,
    ):
        collection.reach(Stage.LOCKED)
        collection.let_go()
        wait_until(
            lambda: waits_for_barrier(child_of(listing)) and waits_for_barrier(collection.pid),
            "they do not wait",
        )
        begin = time.monotonic()
        send_signal(host, "KILL", BARRIER)
        wait_success(listing)
        collection.reach(Stage.READ)
        assert time.monotonic() - begin < PROMPT
    assert_next_barrier_works(instance, before)


def test_without_a_sidecar_collections_go_on_at_once(instance: Instance) -> None:
    """A collection that waits already goes on, too, when the sidecar is stopped."""
    host = instance.host
    since = journal_end(host)
    with contextlib.ExitStack() as asleep:
        asleep.enter_context(paused(host))
        with running(host, *PRINT_ROOTS) as waiting:
            wait_held(host, GCROOTS)
            begin = time.monotonic()
            host.run(["systemctl", "stop", *SIDECAR_UNITS])  # systemd wakes what it stops
            wait_success(waiting)
        host.run(PRINT_ROOTS)
        assert time.monotonic() - begin < PROMPT
        host.run(["systemctl", "start", *SIDECAR_UNITS])
    said = journal(host, since, BARRIER)
    assert "goes on: the inx sidecar is not reachable" in said, said
    assert "systemctl start inx-sidecar.socket" in said


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_collection_that_waits_waits_for_the_next_sidecar(instance: Instance, how: str) -> None:
    host = instance.host
    since = journal_end(host)
    client = Registration(instance)
    send_signal(host, "STOP")
    client.complete()
    with running(host, *COLLECT) as collection:
        wait_held(host, GCROOTS)
        if how == "restart":
            host.run(["systemctl", "restart", SIDECAR])
        else:
            send_signal(host, "KILL")
        wait_success(collection)
    assert client.in_store()
    assert "goes on" not in journal(host, since, BARRIER)
    client.unlink()


def test_many_may_list_gcroots_at_once_and_the_barrier_keeps_no_file_open(
    instance: Instance,
) -> None:
    host = instance.host
    open_files = 'ls /proc/"$(systemctl show -P MainPID inx-barrier)"/fd | wc -l'
    assert "inx" in host.run(["ls", GCROOTS]).stdout.split()
    before = int(host.sh(open_files).stdout)
    script = f"""
        for i in {{1..$N}}; do ls {GCROOTS} >/tmp/listing-$i & done
        wait
        for i in {{1..$N}}; do grep -qx inx /tmp/listing-$i; rm /tmp/listing-$i; done
    """
    host.sh(script.replace("$N", "50"))
    wait_until(lambda: int(host.sh(open_files).stdout) == before, "files are left open")


def test_more_may_wait_than_a_process_usually_may_have_files_open(instance: Instance) -> None:
    """No process is refused, and none goes on before the sidecar has answered."""
    host = instance.host
    since = journal_end(host)
    script = f"""
        for i in {{1..1500}}; do ls {GCROOTS} >/dev/null & pids+=" $!"; done
        echo begun
        failed=0
        for pid in $pids; do wait $pid || failed=1; done
        exit $failed
    """
    client = Registration(instance)
    with contextlib.ExitStack() as asleep:
        asleep.enter_context(paused(host))
        client.complete()
        with running(host, "bash", "-c", script) as listings:
            assert listings.stdout is not None and listings.stdout.readline() == "begun\n"
            asleep.close()
            wait_success(listings)
    said = journal(host, since, BARRIER)
    assert "Too many open files" not in said and "cannot be asked" not in said, said[-2000:]
    client.unlink()


def test_a_client_that_registers_without_pause_delays_nobody(instance: Instance) -> None:
    host = instance.host
    since = journal_end(host)
    stop = threading.Event()
    failed: list[Exception] = []
    client = Registration(instance)
    client.complete()
    drain(host)
    client.begin()

    def register() -> None:
        try:
            while not stop.is_set():
                client.register()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=register)
    thread.start()
    try:
        for _ in range(3):
            host.run(["ls", GCROOTS])
        assert "goes on" not in journal(host, since, BARRIER)
    finally:
        stop.set()
        thread.join(SECONDS)
        client.leave()
    assert failed == []
    client.unlink()
