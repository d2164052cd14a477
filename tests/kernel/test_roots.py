"""Roots stand before a collection can miss them, and go only after their successors stand."""

import asyncio
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from inx_sidecar import paths, roots
from inx_sidecar.errors import RootError

pytestmark = pytest.mark.main

UUID = "11111111-2222-3333-4444-555555555555"


def store(name: str) -> str:
    return f"/nix/store/{'0' * 32}-{name}"


ONE, TWO = store("one"), store("two")


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path / "gcroots"))
    monkeypatch.setattr(paths, "GC_LOCK", str(tmp_path / "gc.lock"))
    monkeypatch.setattr(paths, "GC_SOCKET", str(tmp_path / "socket"))


def present(name: str = "web") -> dict[str, str]:
    return roots.read(roots.directory(name, UUID))


def keep(wanted: Mapping[str, str], name: str = "web") -> None:
    asyncio.run(roots.keep(name, UUID, wanted))


class Collector:
    """Holds gc.lock as Nix does, and answers on gc-socket once `answering` is set."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.seen: list[dict[str, str]] = []
        self.answering = asyncio.Event()
        self.answer = b"1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.told.append(line.decode().removesuffix("\n"))
                self.seen.append(present())
                await self.answering.wait()
                writer.write(self.answer)
                await writer.drain()
                if self.answer != b"1":
                    return
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self) -> Any:
        server = await asyncio.start_unix_server(self._serve, paths.GC_SOCKET)
        with locked():
            async with server:
                yield self


@contextmanager
def locked() -> Iterator[None]:
    lock = os.open(paths.GC_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        os.close(lock)


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def test_what_is_wanted_is_there() -> None:
    keep({"system-1": ONE, "booted-system": ONE})
    assert present() == {"system-1": ONE, "booted-system": ONE}
    keep({"system-1": ONE, "system-2": TWO, "booted-system": TWO})
    assert present() == {"system-1": ONE, "system-2": TWO, "booted-system": TWO}
    keep({"system-2": TWO})
    assert present() == {"system-2": TWO}


def test_roots_are_readable_by_name() -> None:
    keep({"system-1": ONE})
    assert os.listdir(paths.GCROOTS) == [f"web.{UUID}"]
    assert os.readlink(f"{paths.GCROOTS}/web.{UUID}/system-1") == ONE


def test_nothing_wanted_makes_nothing() -> None:
    keep({})
    assert not os.path.exists(paths.GCROOTS)


def test_without_a_collection_nobody_is_told() -> None:
    keep({"system-1": ONE})
    with locked():
        pass
    keep({"system-1": TWO})
    assert present() == {"system-1": TWO}


def test_what_a_crash_left_is_removed() -> None:
    keep({"system-1": ONE})
    os.symlink(TWO, f"{paths.GCROOTS}/web.{UUID}/.0123456789abcdef")
    keep({"system-1": ONE})
    assert present() == {"system-1": ONE}


def test_the_roots_of_a_former_name_go_after_the_new_ones_stand() -> None:
    keep({"system-1": ONE}, name="old")
    other = f"{paths.GCROOTS}/old.{UUID[::-1]}"
    os.mkdir(other)
    keep({"system-1": ONE}, name="new")
    assert present("new") == {"system-1": ONE}
    assert sorted(os.listdir(paths.GCROOTS)) == sorted([f"new.{UUID}", os.path.basename(other)])


def test_a_collection_that_runs_is_told_and_its_answer_awaited() -> None:
    async def main() -> None:
        async with Collector().running() as collector:
            task = asyncio.create_task(roots.keep("web", UUID, {"system-1": ONE}))
            await until(lambda: collector.told)
            assert present() == {"system-1": ONE}, "the root stands before anyone is told"
            await asyncio.sleep(0.05)
            assert not task.done()
            collector.answering.set()
            await asyncio.wait_for(task, 5)
            assert collector.told == [ONE]

    asyncio.run(main())


def test_every_new_path_is_told_and_the_old_root_stands_until_then() -> None:
    keep({"system-1": ONE, "gone": ONE, "same": ONE})

    async def main() -> None:
        async with Collector().running() as collector:
            collector.answering.set()
            wanted = {"same": ONE, "system-2": TWO, "system-3": store("three")}
            await roots.keep("web", UUID, wanted)
            assert sorted(collector.told) == sorted([TWO, store("three")])
            assert all({"gone", "system-1"} <= seen.keys() for seen in collector.seen)
            assert present() == wanted

    asyncio.run(main())


def test_a_change_that_only_drops_disturbs_no_collection() -> None:
    keep({"system-1": ONE, "system-2": TWO})

    async def main() -> None:
        async with Collector().running() as collector:
            await roots.keep("web", UUID, {"system-2": TWO})
            assert collector.told == [] and present() == {"system-2": TWO}

    asyncio.run(main())


def test_the_former_name_stands_until_the_collection_was_told() -> None:
    keep({"system-1": ONE}, name="old")

    async def main() -> None:
        async with Collector().running() as collector:
            task = asyncio.create_task(roots.keep("web", UUID, {"system-1": ONE}))
            await until(lambda: collector.told)
            assert present("old") == {"system-1": ONE}
            collector.answering.set()
            await asyncio.wait_for(task, 5)
            assert present("old") == {}

    asyncio.run(main())


@pytest.mark.parametrize("socket_file", ["stale", "missing"])
def test_a_collection_without_a_socket_is_waited_for(socket_file: str) -> None:
    """It has just begun, or just ended, or was killed."""
    if socket_file == "stale":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(paths.GC_SOCKET)

    async def main() -> None:
        with locked():
            task = asyncio.create_task(roots.keep("web", UUID, {"system-1": ONE}))
            await asyncio.sleep(0.1)
            assert not task.done()
        await asyncio.wait_for(task, 5)

    asyncio.run(main())
    assert present() == {"system-1": ONE}


def test_a_collection_that_is_late_with_its_socket_is_told() -> None:
    async def main() -> None:
        collector = Collector()
        collector.answering.set()
        with locked():
            task = asyncio.create_task(roots.keep("web", UUID, {"system-1": ONE}))
            await asyncio.sleep(0.05)
            server = await asyncio.start_unix_server(collector._serve, paths.GC_SOCKET)
            async with server:
                await asyncio.wait_for(task, 5)
        assert collector.told == [ONE]

    asyncio.run(main())


def test_waiting_for_a_collection_does_not_burn_the_processor() -> None:
    async def main() -> float:
        with locked():
            task = asyncio.create_task(roots.keep("web", UUID, {"system-1": ONE}))
            begin = time.process_time()
            await asyncio.sleep(0.4)
            used = time.process_time() - begin
        await asyncio.wait_for(task, 5)
        return used

    assert asyncio.run(main()) < 0.1


def test_a_collection_that_closes_without_an_answer_is_asked_again() -> None:
    async def main() -> None:
        async with Collector().running() as collector:
            collector.answer = b""
            collector.answering.set()
            task = asyncio.create_task(roots.keep("web", UUID, {"system-1": ONE}))
            await until(lambda: len(collector.told) > 1)
            assert not task.done()
            collector.answer = b"1"
            await asyncio.wait_for(task, 5)

    asyncio.run(main())


def test_a_collection_that_never_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "_COLLECTOR_SECONDS", 0.1)
    keep({"old": ONE})

    async def main() -> None:
        async with Collector().running() as collector:
            with pytest.raises(RootError, match=f"collector did not confirm {TWO}"):
                await asyncio.wait_for(roots.keep("web", UUID, {"system-2": TWO}), 5)
            collector.answering.set()

    asyncio.run(main())
    assert present() == {"old": ONE, "system-2": TWO}, "nothing is dropped on an error"


def test_a_lock_that_is_held_for_ever_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instance could not even be stopped: its lock is held meanwhile."""
    monkeypatch.setattr(roots, "_COLLECTOR_SECONDS", 0.1)

    async def main() -> None:
        with locked(), pytest.raises(RootError):
            await asyncio.wait_for(roots.keep("web", UUID, {"system-1": ONE}), 2)

    asyncio.run(main())


def test_many_instances_can_be_kept_at_once() -> None:
    uuids = [f"{number:08}{UUID[8:]}" for number in range(50)]

    async def main() -> None:
        async with Collector().running() as collector:
            collector.answering.set()
            work = (roots.keep("web", uuid, {"system-1": ONE}) for uuid in uuids)
            await asyncio.wait_for(asyncio.gather(*work), 10)
            assert len(collector.told) == len(uuids)

    asyncio.run(main())
    assert len(os.listdir(paths.GCROOTS)) == len(uuids)


def test_roots_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "gcroots").write_text("a file")
    with pytest.raises(RootError, match=r"cannot keep the system of 'web' in .*Not a directory"):
        keep({"system-1": ONE})


def test_a_directory_in_the_place_of_a_root_is_named() -> None:
    os.makedirs(f"{paths.GCROOTS}/web.{UUID}/system-1/x")
    with pytest.raises(RootError, match="cannot keep the system of 'web'"):
        keep({"system-1": ONE})
