"""A process of a container gets no lock file of the store open; all other opens go on."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.containers import MS_BIND, plain
from support.links import join_cgroup, remove_cgroup
from support.openers import Opener, Start
from support.waiting import eventually

from inx_sidecar.base import paths
from inx_sidecar.kernel import cgroups
from inx_sidecar.kernel.fanotify import PermissionGroup
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, MS_PRIVATE, MS_REC, mount, unshare
from inx_sidecar.nix import lock_files, store_locks
from inx_sidecar.nix.lock_watcher import Watcher

pytestmark = pytest.mark.main

NAME = "0123456789abcdfghijklmnpqrsvwxyz-web"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a lock file, a valid path that is one file, and a directory."""
    path = tmp_path / "store"
    (path / f"{NAME}.d").mkdir(parents=True)
    for name, mode in {f"{NAME}.lock": 0o600, f"{NAME}-Cargo.lock": 0o444}.items():
        (path / name).touch()
        (path / name).chmod(mode)
    (path / f"{NAME}.d/file.lock").touch()
    monkeypatch.setattr(paths, "STORE", str(path))
    monkeypatch.setattr(paths, "NIX_STATE", str(tmp_path / "state"))
    return path


@pytest.fixture
def container() -> Iterator[Path]:
    cgroup = Path(f"{cgroups.hierarchy()}/lxc.payload.test-{os.getpid()}")
    cgroup.mkdir()
    yield cgroup
    remove_cgroup(cgroup)


def guard_of() -> store_locks.Guard:
    """A guard that nobody watches with."""
    group = PermissionGroup(threads=True)
    return store_locks.Guard(group, Watcher(lambda: 0, str, group.close))


@pytest.fixture
def guard(store: Path) -> Iterator[store_locks.Guard]:
    """A guard that answers in a thread, until the end of the test."""
    guard = guard_of()
    guard.group.mark_files_in(str(store))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            guard.answer()
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    yield guard
    stop.set()
    thread.join()
    guard.group.close()


def opens(path: Path, flags: int = os.O_RDONLY) -> Callable[[], object]:
    return lambda: os.close(os.open(path, flags))


def by_container(cgroup: Path, function: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        join_cgroup(cgroup, os.getpid())
        function()

    return run


def refused(opener: Opener) -> bool:
    eventually(opener.ended)
    return not opener.succeeded()


def test_only_a_container_is_refused_and_only_a_lock_file(
    guard: store_locks.Guard, store: Path, container: Path, start: Start
) -> None:
    lock = store / f"{NAME}.lock"
    assert refused(start(by_container(container, opens(lock))))
    assert refused(start(by_container(container, opens(lock, os.O_RDWR))))
    for path in store / f"{NAME}-Cargo.lock", store / f"{NAME}.d/file.lock":
        for _ in range(2):
            eventually(start(by_container(container, opens(path))).succeeded)
    for _ in range(2):
        eventually(start(opens(lock, os.O_RDWR)).succeeded)
    eventually(start(opens(store / "new.lock", os.O_RDWR | os.O_CREAT)).succeeded)


def test_neither_a_mount_nor_a_removal_hides_a_lock_file(
    guard: store_locks.Guard, store: Path, container: Path, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "bound").mkdir()
    (tmp_path / "file").touch()

    def work() -> None:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        name = os.open(store / f"{NAME}.lock", os.O_PATH)
        plain(str(tmp_path / "bound"), str(store), flags=MS_BIND)
        plain(str(tmp_path / "file"), str(store / f"{NAME}.lock"), flags=MS_BIND)
        for path in f"{tmp_path}/bound/{NAME}.lock", f"{tmp_path}/file", f"/proc/self/fd/{name}":
            with pytest.raises(PermissionError):
                os.open(path, os.O_RDONLY)

    eventually(start(by_container(container, work)).succeeded)


def test_what_was_opened_once_waits_no_more(
    asked: store_locks.Guard, store: Path, start: Start
) -> None:
    opener = start(opens(store / f"{NAME}-Cargo.lock"))
    answered(asked, opener.ended)
    eventually(start(opens(store / f"{NAME}-Cargo.lock")).succeeded)  # nobody answers
    waits = start(opens(store / f"{NAME}.lock"))
    eventually(lambda: asked.group.waiting() == 1)
    assert not waits.ended()
    answered(asked, waits.succeeded)


def test_the_kernel_ends_a_guard_that_takes_too_long(
    store: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_locks, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(store_locks, "notify", lambda _: None)
    monkeypatch.setattr(store_locks.Guard, "_answer", lambda *_: time.sleep(60))
    guard = start(lambda: store_locks.guard(lambda: 0, str))
    time.sleep(0.2)
    opener = start(opens(store / f"{NAME}-Cargo.lock"))
    eventually(opener.succeeded)
    eventually(guard.ended)


def flood(cgroup: Path, path: Path, threads: int) -> Callable[[], object]:
    def open_without_end() -> None:
        while True:
            try:
                os.open(path, os.O_RDONLY)
            except PermissionError:
                pass

    def run() -> None:
        for _ in range(threads - 1):
            threading.Thread(target=open_without_end).start()
        open_without_end()

    return by_container(cgroup, run)


def answered(guard: store_locks.Guard, holds: Callable[[], bool]) -> None:
    def answer() -> bool:
        guard.answer()
        return holds()

    eventually(answer)


@pytest.fixture
def asked(store: Path) -> Iterator[store_locks.Guard]:
    """A guard that the test lets answer."""
    guard = guard_of()
    guard.group.mark_files_in(str(store))
    yield guard
    guard.group.close()


def test_a_process_that_floods_is_ended(
    asked: store_locks.Guard, store: Path, container: Path, start: Start
) -> None:
    """A process of another container, which opens one file after the other, goes on."""
    other = container.with_name(f"{container.name}-other")
    other.mkdir()
    try:
        flooding = start(flood(container, store / f"{NAME}.lock", 100))
        alone = start(flood(other, store / f"{NAME}.lock", 1))
        eventually(lambda: asked.group.waiting() > 90)
        answered(asked, flooding.ended)
        assert not alone.ended()
        alone.kill()
    finally:
        remove_cgroup(other)


def test_a_container_whose_processes_flood_together_is_ended(
    asked: store_locks.Guard,
    store: Path,
    container: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_locks, "_CROWD", 60)
    idle = start(by_container(container, signal.pause))
    many = [start(flood(container, store / f"{NAME}.lock", 1)) for _ in range(80)]
    eventually(lambda: asked.group.waiting() > 60)
    answered(asked, lambda: all(opener.ended() for opener in [*many, idle]))


def test_a_process_with_a_lock_file_open_is_ended_and_no_other(
    store: Path, container: Path, start: Start
) -> None:
    def holds(path: Path, *, remove: bool = False) -> Callable[[], object]:
        def hold() -> None:
            os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
            if remove:
                path.unlink()
            Path(f"{path}.opened").touch()
            signal.pause()

        return hold

    removed = store / f"{NAME}-removed.lock"
    ended = [start(by_container(container, holds(path, remove=path == removed)))
             for path in (store / f"{NAME}.lock", removed)]  # fmt: skip
    others = [start(by_container(container, holds(store / f"{NAME}-Cargo.lock"))),
              start(by_container(container, holds(store / f"{NAME}.d/file.lock"))),
              start(holds(store / f"{NAME}.lock"))]  # fmt: skip
    for path in f"{NAME}.lock", removed.name, f"{NAME}-Cargo.lock", f"{NAME}.d/file.lock":
        eventually((store / f"{path}.opened").exists)
    time.sleep(0.1)
    assert lock_files.end_openers() == 2
    assert all(opener.ended() for opener in ended)
    assert not any(opener.ended() for opener in others)
    assert lock_files.end_openers() == 0


def test_this_kernel_can_refuse_an_open(store: Path) -> None:
    def opened_by_probe() -> list[str]:
        """Numbers would not tell: an accept(2) in another thread takes one while it waits."""
        found = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # that of the list itself
                found.append(os.readlink(f"/proc/self/fd/{number}"))
        return [name for name in found if name in ("anon_inode:[fanotify]", str(store))]

    store_locks.probe()
    assert opened_by_probe() == []
    with contextlib.closing(PermissionGroup(threads=True)):
        assert opened_by_probe() == ["anon_inode:[fanotify]"]
