"""Processes of the Nix daemons of instances that hold locks for too long are ended, no others."""

import contextlib
import fcntl
import os
import select
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.links import join_cgroup, remove_cgroup
from support.openers import Opener, Start
from support.waiting import SECONDS, eventually

from inx_sidecar.base import paths
from inx_sidecar.kernel import cgroups
from inx_sidecar.kernel.fanotify import PermissionGroup
from inx_sidecar.kernel.flocks import awaited_file, held_files
from inx_sidecar.nix import lock_watch, store_locks
from inx_sidecar.nix.daemon_processes import end_daemon, end_worker, workers
from inx_sidecar.nix.lock_refusals import Refusals
from inx_sidecar.nix.lock_waits import Times
from inx_sidecar.nix.lock_watcher import Watcher

pytestmark = pytest.mark.main

# Short times for what a test waits for. A slow machine must be able to do within `poll` and
# `refusal` what comes before their end: a process that opened a file waits for its lock by then.
PATIENCE = 0.3
TIMES = Times(again=0.1, neighbour=0.6, poll=10.0, look=0.02, refusal=2.0)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock file in the store."""
    (tmp_path / "store").mkdir()
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(paths, "STORE", str(tmp_path / "store"))
    monkeypatch.setattr(paths, "NIX_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(paths, "GC_LOCK", str(tmp_path / "state/gc.lock"))
    monkeypatch.setattr(paths, "HOST_TEMPROOTS", str(tmp_path / "state"))
    path = tmp_path / "store/x.lock"
    path.touch(0o600)
    return path


@pytest.fixture
def daemons() -> Iterator[list[str]]:
    """The uuids of two instances with cgroups for their daemons."""
    slices = Path(f"{cgroups.hierarchy()}/inx.slice/inx-nix.slice")
    slices.mkdir(parents=True, exist_ok=True)
    uuids = [str(uuid.uuid4()) for _ in range(2)]
    groups = [slices / paths.daemon_service_unit(name) for name in uuids]
    for group in groups:
        group.mkdir()
    yield uuids
    for group in groups:
        (group / "cgroup.kill").write_text("1")
        remove_cgroup(group)


@pytest.fixture
def guard(
    lock: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> Iterator[Watcher]:
    """A guard that answers in a thread, with its watching process."""
    patience = getattr(request, "param", PATIENCE)
    times = replace(TIMES, again=max(TIMES.again, patience - PATIENCE))
    group = PermissionGroup(threads=True)
    watcher = Watcher(lambda: patience, str, group.close, times)
    watcher.start()
    guard = store_locks.Guard(group, watcher)
    guard.mark()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            poll = select.poll()
            poll.register(group.fd, select.POLLIN)
            poll.register(watcher.fd, select.POLLIN)
            events = dict(poll.poll(20))
            if watcher.fd in events:
                watcher.read()
            if group.fd in events:
                guard.answer()

    thread = threading.Thread(target=work)
    thread.start()
    yield watcher
    stop.set()
    thread.join()
    watcher.stop()
    group.close()
    os.wait()


def in_daemon(instance: str, function: Callable[[], object]) -> Callable[[], object]:
    group = Path(f"{cgroups.hierarchy()}/inx.slice/inx-nix.slice")

    def run() -> None:
        join_cgroup(group / paths.daemon_service_unit(instance), os.getpid())
        function()

    return run


def holds(path: Path, how: int = fcntl.LOCK_EX) -> Callable[[], object]:
    def run() -> None:
        fcntl.flock(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), how)
        signal.pause()

    return run


def locks(path: Path) -> Callable[[], object]:
    """As Nix adds a path: wait in flock(2)."""
    return lambda: fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX)


def tries(path: Path) -> Callable[[], object]:
    """As a build of Nix: open and try again and again."""

    def run() -> None:
        while True:
            fd = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                os.close(fd)
                time.sleep(0.1)

    return run


def fifo(path: Path) -> Path:
    """A fifo that children open by its name: they have no descriptors of the test."""
    os.mkfifo(path)
    return path


def locked(path: Path) -> bool:
    status = path.stat()
    file = status.st_dev, status.st_ino
    return any(held_files(int(pid), {file}) for pid in os.listdir("/proc") if pid.isdecimal())


def started_holder(start: Start, lock: Path, instance: str = "") -> Opener:
    function = holds(lock)
    holder = start(in_daemon(instance, function) if instance else function)
    eventually(lambda: locked(lock))
    return holder


def test_it_is_seen_who_holds_a_lock_and_who_waits(lock: Path, start: Start) -> None:
    status = lock.stat()
    file = status.st_dev, status.st_ino
    holder = started_holder(start, lock)
    waiter, trier = start(locks(lock)), start(tries(lock))
    eventually(lambda: awaited_file(waiter.pid) == file)
    assert held_files(holder.pid, {file, (0, 0)}) == {file: (str(lock), False)}
    assert held_files(waiter.pid, {file}) == {} and awaited_file(holder.pid) is None
    assert awaited_file(trier.pid) is None and awaited_file(os.getpid()) is None
    holder.kill()
    eventually(waiter.succeeded)
    eventually(trier.succeeded)
    assert awaited_file(waiter.pid) is None and held_files(holder.pid, {file}) == {}


@pytest.mark.parametrize("how", [locks, tries])
def test_a_daemon_that_holds_what_the_host_waits_for_is_ended(
    guard: Watcher,
    lock: Path,
    daemons: list[str],
    start: Start,
    how: Callable[[Path], Callable[[], object]],
) -> None:
    idle = start(in_daemon(daemons[0], signal.pause))
    holder = started_holder(start, lock, daemons[0])
    time.sleep(2 * PATIENCE)
    assert not holder.ended(), "nobody waits"
    begin = time.monotonic()
    waiter = start(how(lock))
    eventually(waiter.succeeded)
    assert time.monotonic() - begin > PATIENCE
    eventually(holder.ended)
    assert not idle.ended()


def test_a_holder_of_the_host_is_never_ended(
    guard: Watcher, lock: Path, daemons: list[str], start: Start
) -> None:
    holder = started_holder(start, lock)
    waiters = [start(locks(lock)), start(in_daemon(daemons[0], locks(lock)))]
    time.sleep(4 * PATIENCE)
    assert not holder.ended() and not any(waiter.ended() for waiter in waiters)


def test_a_daemon_that_takes_the_lock_again_is_ended_wholly(
    guard: Watcher, lock: Path, daemons: list[str], start: Start
) -> None:
    """Many clients wait for the lock as well, or try to get it all the time."""
    crowd = [start(in_daemon(daemons[0], holds(lock))) for _ in range(10)]
    eventually(lambda: locked(lock))
    waiters = [start(locks(lock)) for _ in range(2)]
    eventually(lambda: all(waiter.succeeded() for waiter in waiters))
    eventually(lambda: all(each.ended() for each in crowd))


def test_a_build_of_the_host_gets_the_lock_before_the_next_client(
    guard: Watcher, lock: Path, daemons: list[str], start: Start
) -> None:
    """After the end of the holder, the file is refused to daemons until the host has tried."""
    told = fifo(lock.parent.with_name("told"))

    def tries_when_told() -> None:
        reader = os.open(told, os.O_RDONLY)
        while os.read(reader, 1):
            fd = os.open(lock, os.O_RDWR)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            os.close(fd)

    holder = started_holder(start, lock, daemons[0])
    waiter = start(tries_when_told)
    writer = os.open(told, os.O_WRONLY)
    os.write(writer, b"xx")  # by its second open, it is seen that it tries again
    eventually(holder.ended)
    assert not waiter.ended()
    assert not any(may_open(start, instance, lock) for instance in daemons)
    os.write(writer, b"x")
    eventually(waiter.ended)
    assert waiter.succeeded()
    eventually(lambda: may_open(start, daemons[0], lock))
    os.close(writer)


def test_who_waited_before_the_guard_started_is_seen(
    lock: Path, daemons: list[str], start: Start
) -> None:
    status = lock.stat()
    started_holder(start, lock, daemons[0])
    waiter = start(locks(lock))
    eventually(lambda: awaited_file(waiter.pid) == (status.st_dev, status.st_ino))
    before = _children()
    watcher = Watcher(lambda: PATIENCE, str, lambda: None, TIMES)
    watcher.start()
    (watching,) = _children() - before
    eventually(waiter.succeeded)
    watcher.stop()
    os.waitpid(watching, 0)


def _children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def test_many_short_holders_of_gc_lock_delay_no_collection(
    guard: Watcher, lock: Path, daemons: list[str], start: Start
) -> None:
    """A holder lets go when another one has the lock, so it is never free by itself."""
    gc_lock = Path(paths.GC_LOCK)
    gc_lock.touch(0o600)
    others = fifo(lock.parent.with_name("others"))

    def verify() -> None:
        pipe = os.open(others, os.O_RDWR)
        while True:
            fd = os.open(gc_lock, os.O_RDWR)
            fcntl.flock(fd, fcntl.LOCK_SH)
            os.write(pipe, b"x")
            time.sleep(0.05)
            os.read(pipe, 1)
            os.close(fd)

    pipe = os.open(others, os.O_RDWR)
    crowd = [start(in_daemon(daemons[0], verify)) for _ in range(12)]
    os.read(pipe, 1)  # so one of them has no other one to wait for, and keeps the lock
    collector = start(locks(gc_lock))
    eventually(collector.succeeded)
    eventually(lambda: any(each.ended() for each in crowd))
    os.close(pipe)


def has(process: Opener, path: Path) -> bool:
    status = path.stat()
    return bool(held_files(process.pid, {(status.st_dev, status.st_ino)}))


def may_open(start: Start, instance: str, path: Path) -> bool:
    process = start(in_daemon(instance, lambda: os.open(path, os.O_RDWR)))
    eventually(process.ended)
    return process.succeeded()


@pytest.mark.parametrize("guard", [1.3], indirect=True)
def test_instances_that_share_gc_lock_in_turn_delay_no_collection(
    guard: Watcher, lock: Path, daemons: list[str], start: Start
) -> None:
    """One holds it all the time, the other one around each end of the first. Before the other one
    is to blame for as long, it comes so early that its own end is in the time of the first."""
    gc_lock = Path(paths.GC_LOCK)
    gc_lock.touch(0o600)

    def client(instance: str) -> Opener:
        return start(in_daemon(instance, holds(gc_lock, fcntl.LOCK_SH)))

    first, second = client(daemons[0]), None
    eventually(lambda: has(first, gc_lock))
    collector = start(locks(gc_lock))
    begin = since = opened = time.monotonic()
    blame = 0.0
    while not collector.succeeded():
        assert time.monotonic() - begin < SECONDS, "the host waits without end"
        now = time.monotonic()
        if first.ended():
            first, since = client(daemons[0]), now
            if second is not None:
                while not first.ended() and not has(first, gc_lock):
                    time.sleep(0.002)
                second.kill()
                second, blame = None, blame + now - opened
        elif second is not None and second.ended():
            second, blame = None, 0.0
        elif second is None and now - since > (0.8 if blame < 0.5 else 0.1):
            second, opened = client(daemons[1]), now
        time.sleep(0.005)
    eventually(lambda: may_open(start, daemons[1], gc_lock))


def test_daemons_are_not_kept_from_gc_lock_while_the_host_itself_has_it(
    guard: Watcher, lock: Path, daemons: list[str], start: Start
) -> None:
    gc_lock = Path(paths.GC_LOCK)
    gc_lock.touch(0o600)
    host = start(holds(gc_lock, fcntl.LOCK_SH))
    holder = start(in_daemon(daemons[0], holds(gc_lock, fcntl.LOCK_SH)))
    eventually(lambda: has(host, gc_lock) and has(holder, gc_lock))
    collector = start(locks(gc_lock))
    eventually(holder.ended)
    assert not may_open(start, daemons[1], gc_lock)
    eventually(lambda: may_open(start, daemons[1], gc_lock))
    assert not collector.ended() and not host.ended()


def test_a_neighbour_waits_longer_than_the_host(
    guard: Watcher, lock: Path, daemons: list[str], start: Start
) -> None:
    holder = started_holder(start, lock, daemons[0])
    begin = time.monotonic()
    waiter = start(in_daemon(daemons[1], locks(lock)))
    eventually(waiter.succeeded)
    assert time.monotonic() - begin > TIMES.neighbour
    eventually(holder.ended)


def test_a_flood_of_opens_and_locks_hides_nobody(
    guard: Watcher, lock: Path, daemons: list[str], start: Start
) -> None:
    def flood() -> None:
        taken = []
        for number in range(900):
            taken.append(os.open(lock.with_name(f"{number}.lock"), os.O_RDWR | os.O_CREAT, 0o600))
            fcntl.flock(taken[-1], fcntl.LOCK_EX)
        while True:
            os.close(os.open(lock.with_name("1.lock"), os.O_RDWR))

    holder = started_holder(start, lock, daemons[0])
    flooding = start(in_daemon(daemons[1], flood))
    eventually(lock.with_name("899.lock").exists)
    waiter = start(locks(lock))
    eventually(waiter.succeeded)
    eventually(holder.ended)
    assert not flooding.ended()


def test_another_watching_process_follows_one_that_ended() -> None:
    watcher = Watcher(lambda: PATIENCE, str, lambda: None, TIMES)
    before = _children()
    watcher.start()
    (watching,) = _children() - before
    daemon, refusals = str(uuid.uuid4()), Refusals(TIMES)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    own, watcher.fd = watcher.fd, reader
    os.write(writer, refusals.begin((1, 2), 3, 0.0))
    watcher.read()
    watcher.tell((1, 2), 3, "")
    assert watcher.refuses((1, 2), daemon) and not watcher.refuses((1, 4), daemon)
    watcher.fd = own
    os.close(reader)
    os.close(writer)
    os.kill(watching, signal.SIGKILL)
    os.waitpid(watching, 0)
    watcher.read()
    watcher.tell((1, 2), 3, "")
    assert watcher.fd == -1 and not watcher.start_again_if_ended()
    assert not watcher.refuses((1, 2), daemon), "nobody would end the refusal"
    watcher._next_start = 0.0
    assert watcher.start_again_if_ended() and not watcher.start_again_if_ended()
    watcher.stop()
    os.wait()


def test_a_worker_with_too_many_temporary_roots_is_ended(
    lock: Path, daemons: list[str], start: Start
) -> None:
    large, small, stale = (start(in_daemon(daemons[0], _has_roots(size))) for size in (20, 2, 0))
    for pid, size in (large.pid, 20), (small.pid, 2):
        eventually(lambda pid=pid, size=size: _size(pid) == size << 20)  # type: ignore[misc]
    path = Path(f"{paths.HOST_TEMPROOTS}/{stale.pid}")
    path.touch()
    os.truncate(path, 20 << 20)
    reader, writer = os.pipe()
    watch = lock_watch.Watch(writer, lambda: PATIENCE, str, TIMES)
    watch.look_at_temporary_roots()
    eventually(large.ended)
    watch.look_at_temporary_roots()
    assert not small.ended() and not stale.ended()
    os.close(reader)
    os.close(writer)


def _has_roots(size: int) -> Callable[[], object]:
    def run() -> None:
        if size:
            fd = os.open(f"{paths.HOST_TEMPROOTS}/{os.getpid()}", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.truncate(fd, size << 20)
        signal.pause()

    return run


def _size(pid: int) -> int:
    path = Path(f"{paths.HOST_TEMPROOTS}/{pid}")
    return path.stat().st_size if path.exists() else 0


def _cgroup(pid: int) -> str:
    return cgroups.cgroup_of(pid) or ""


def test_with_a_worker_its_builds_end_and_what_other_daemons_have_does_not(
    lock: Path, daemons: list[str], start: Start
) -> None:
    def work() -> None:
        for instance in daemons:
            if os.fork() == 0:
                in_daemon(instance, signal.pause)()
        signal.pause()

    worker = start(in_daemon(daemons[0], work))
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
    pids: list[int] = []

    def begun() -> bool:
        pids[:] = map(int, children.read_text().split())
        groups = [_cgroup(pid) for pid in pids]
        return [name in group for name, group in zip(daemons, groups, strict=False)] == [True] * 2

    eventually(begun)
    assert end_worker(daemons[0], worker.pid)
    eventually(worker.ended)
    eventually(lambda: not os.path.exists(f"/proc/{pids[0]}") or _is_zombie(pids[0]))
    assert not _is_zombie(pids[1])
    os.kill(pids[1], signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_only_processes_of_a_daemon_are_ended_and_builds_are_no_workers(
    lock: Path, daemons: list[str], start: Start
) -> None:
    def build() -> None:
        os.setresuid(65536, 65536, 65536)
        signal.pause()

    worker = start(in_daemon(daemons[0], signal.pause))
    builder = start(in_daemon(daemons[0], build))
    host = start(signal.pause)
    eventually(lambda: paths.daemon_service_unit(daemons[0]) in _cgroup(builder.pid))
    eventually(lambda: {pid for name, pid in workers() if name == daemons[0]} == {worker.pid})
    assert not end_worker(daemons[1], worker.pid) and not end_worker(daemons[0], host.pid)
    end_daemon(daemons[0])
    eventually(worker.ended)
    eventually(builder.ended)
    assert not host.ended()
