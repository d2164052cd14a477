"""Roots stand before a collection can miss them, and a collection that runs is told of them."""

import asyncio
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError
from inx_sidecar.nix import gc_client
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots

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
    return direct_roots.read(direct_roots.directory(name, UUID))


async def added(wanted: Mapping[str, str], name: str = "web", uuid: str = UUID) -> dict[str, str]:
    """What was new, by a collector's client of its own."""
    with closing(GcClient()) as client:
        return await direct_roots.add(client, name, uuid, wanted)


def add(wanted: Mapping[str, str], name: str = "web") -> dict[str, str]:
    return asyncio.run(added(wanted, name))


class Collection:
    """Holds gc.lock as Nix does, and answers on gc-socket once `answering` is set."""

    def __init__(self, *, answering: bool = False) -> None:
        self.told: list[str] = []
        self.seen: list[dict[str, str]] = []
        self.connections = 0
        self.answering = asyncio.Event()
        if answering:
            self.answering.set()
        self.answer = b"1"
        self._tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            while line := await reader.readline():
                self.told.append(line.decode().removesuffix("\n"))
                self.seen.append(present())
                await self.answering.wait()
                writer.write(self.answer)
                await writer.drain()
                if self.answer != b"1":
                    return
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client went, or the collection ends
        finally:
            self._tasks.discard(task)
            writer.close()

    @asynccontextmanager
    async def running(self) -> Any:
        """It ends as Nix's does: it closes all connections and its socket, then lets go."""
        with locked():
            async with await asyncio.start_unix_server(self.serve, paths.GC_SOCKET):
                try:
                    yield self
                finally:
                    for task in self._tasks:
                        task.cancel()
                    await asyncio.gather(*self._tasks)
                    os.unlink(paths.GC_SOCKET)


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


async def stays(task: asyncio.Task[Any]) -> None:
    """It has turns enough to end, and does not."""
    await asyncio.sleep(0.05)
    assert not task.done()


def test_what_is_wanted_is_there_and_what_is_new_is_told() -> None:
    wanted = {"system-1": ONE, "booted-system": ONE}
    assert add(wanted) == wanted
    assert present() == wanted
    assert add(wanted) == {}
    assert add({"system-1": ONE, "system-2": TWO}) == {"system-2": TWO}
    assert present() == {**wanted, "system-2": TWO}, "nothing is dropped"


def test_roots_are_readable_by_name() -> None:
    add({"system-1": ONE, "links/one": ONE})
    assert os.listdir(paths.GCROOTS) == [f"web.{UUID}"]
    assert os.readlink(f"{paths.GCROOTS}/web.{UUID}/system-1") == ONE
    assert os.readlink(f"{paths.GCROOTS}/web.{UUID}/links/one") == ONE
    assert present() == {"system-1": ONE, "links/one": ONE}


def test_nothing_wanted_makes_nothing() -> None:
    assert add({}) == {}
    assert not os.path.exists(paths.GCROOTS)


@pytest.mark.parametrize("name", ["booted-system", "links/some", "snapshots/before/some"])
def test_a_name_that_held_another_path_leaves_a_root_for_it(name: str) -> None:
    former = f"former.{'0' * 31}1"
    old = f"/nix/store/{'0' * 31}1-old"
    add({name: old})
    assert add({name: TWO}) == {name: TWO}
    assert present() == {name: TWO, former: old}
    assert add({name: old}) == {name: old}, "and back again"
    assert present() == {name: old, former: old, f"former.{'0' * 32}": TWO}


def test_no_moment_is_without_a_root_for_what_a_name_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The path that was held before is held between any two changes of the directory."""
    add({"system-1": ONE})
    seen: list[set[str]] = []
    rename, symlink = os.rename, os.symlink

    def watched(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            seen.append(set(present().values()))
            function(*args, **kwargs)
            seen.append(set(present().values()))

        return call

    monkeypatch.setattr(os, "rename", watched(rename))
    monkeypatch.setattr(os, "symlink", watched(symlink))
    add({"system-1": TWO})
    assert seen and all(ONE in held for held in seen)


def test_without_a_collection_nobody_is_told() -> None:
    add({"system-1": ONE})
    with locked():
        pass
    add({"system-1": TWO})
    assert present()["system-1"] == TWO


def test_what_a_crash_left_is_seen_and_can_be_dropped() -> None:
    add({"system-1": ONE})
    os.symlink(TWO, f"{paths.GCROOTS}/web.{UUID}/.0123456789abcdef")
    assert present() == {"system-1": ONE, ".0123456789abcdef": TWO}
    direct_roots.drop("web", UUID, [".0123456789abcdef"])
    assert present() == {"system-1": ONE}


def test_what_is_dropped_is_gone_and_all_else_stays() -> None:
    add({"system-1": ONE, "system-2": TWO, "links/one": ONE, "links/two": TWO})
    direct_roots.drop("web", UUID, ["system-2", "links/one"])
    assert present() == {"system-1": ONE, "links/two": TWO}
    direct_roots.drop("web", UUID, [])
    assert present() == {"system-1": ONE, "links/two": TWO}


def test_what_cannot_be_dropped_is_named() -> None:
    add({"system-1": ONE, "links/one": ONE})
    with pytest.raises(RootError, match=r"cannot drop the root links of 'web' in .*directory"):
        direct_roots.drop("web", UUID, ["system-1", "links"])
    assert present() == {"links/one": ONE}


def test_the_roots_of_an_instance_are_removed_and_no_others() -> None:
    other = UUID[::-1]
    for name, uuid in (("web", UUID), ("web", other), ("old", UUID)):
        asyncio.run(added({"system-1": ONE, "links/one": ONE}, name, uuid))
    direct_roots.remove("web", UUID)
    assert direct_roots.owners() == {("web", other), ("old", UUID)}
    assert direct_roots.read(direct_roots.directory("web", other)) == {
        "system-1": ONE,
        "links/one": ONE,
    }
    direct_roots.remove("web", UUID)
    direct_roots.remove("none", UUID)


def test_a_directory_of_roots_is_removed_alone() -> None:
    add({"system-1": ONE, "snapshots/one/x": ONE, "snapshots/one.1/x": ONE, "links/one": ONE})
    direct_roots.remove("web", UUID, "snapshots/one")
    assert present() == {"system-1": ONE, "snapshots/one.1/x": ONE, "links/one": ONE}


def test_a_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    """Nobody but the host's root writes there; a mistake of his costs nothing but the link."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    add({"system-1": ONE})
    os.symlink(tmp_path / "precious", f"{paths.GCROOTS}/web.{UUID}/directory")
    direct_roots.remove("web", UUID)
    assert (tmp_path / "precious/file").exists() and direct_roots.owners() == set()


def test_a_collection_that_runs_is_told_and_its_answer_awaited() -> None:
    async def main() -> None:
        async with Collection().running() as collection:
            task = asyncio.create_task(added({"system-1": ONE}))
            await until(lambda: collection.told)
            assert present() == {"system-1": ONE}, "the root stands before anyone is told"
            await stays(task)
            collection.answering.set()
            await asyncio.wait_for(task, 5)
            assert collection.told == [ONE]

    asyncio.run(main())


def test_every_new_path_is_told_after_all_roots_stand() -> None:
    add({"system-1": ONE, "same": ONE})

    async def main() -> None:
        async with Collection(answering=True).running() as collection:
            wanted = {"same": ONE, "system-1": TWO, "system-3": store("three")}
            await added(wanted)
            assert sorted(collection.told) == sorted([TWO, store("three")])
            assert all(seen == present() for seen in collection.seen)
            assert present() == {**wanted, f"former.{'0' * 32}": ONE}

    asyncio.run(main())


def test_what_stands_already_disturbs_no_collection() -> None:
    add({"system-1": ONE, "system-2": TWO})

    async def main() -> None:
        async with Collection().running() as collection:
            await asyncio.wait_for(added({"system-2": TWO}), 5)
            direct_roots.drop("web", UUID, ["system-1"])
            assert collection.told == [] and collection.connections == 0

    asyncio.run(main())


def test_one_connection_is_kept_as_long_as_a_collection_lasts() -> None:
    async def main() -> None:
        with closing(GcClient()) as client:
            async with Collection(answering=True).running() as collection:
                for number in range(20):
                    await asyncio.wait_for(client.add_temp_roots([store(f"{number}")]), 5)
                await asyncio.wait_for(client.add_temp_roots([ONE, TWO]), 5)
                assert collection.told == [*(store(f"{n}") for n in range(20)), ONE, TWO]
                assert collection.connections == 1

    asyncio.run(main())


@pytest.mark.parametrize("between", ["nothing", "a call"])
def test_the_next_collection_is_told_by_a_new_connection(between: str) -> None:
    async def main() -> None:
        with closing(GcClient()) as client:
            for _ in range(3):
                async with Collection(answering=True).running() as collection:
                    await asyncio.wait_for(client.add_temp_roots([ONE]), 5)
                    await asyncio.wait_for(client.add_temp_roots([TWO]), 5)
                    assert collection.told == [ONE, TWO] and collection.connections == 1
                if between == "a call":
                    await asyncio.wait_for(client.add_temp_roots([ONE]), 5)

    asyncio.run(main())


def test_after_a_collection_no_descriptor_stays_open() -> None:
    async def main() -> None:
        with closing(GcClient()) as client:
            before = set(os.listdir("/proc/self/fd"))
            async with Collection(answering=True).running():
                await asyncio.wait_for(client.add_temp_roots([ONE]), 5)
            await client.add_temp_roots([TWO])
            await until(lambda: set(os.listdir("/proc/self/fd")) <= before)

    asyncio.run(main())


@pytest.mark.parametrize("end", ["too late", "cancelled"])
def test_an_answer_that_is_late_is_never_taken_for_anothers(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with closing(GcClient()) as client:
            async with Collection().running() as collection:
                monkeypatch.setattr(gc_client, "_SECONDS", 0.1 if end == "too late" else 10.0)
                first = asyncio.create_task(client.add_temp_roots([ONE]))
                await until(lambda: collection.told)
                if end == "cancelled":
                    first.cancel()
                with pytest.raises((RootError, asyncio.CancelledError)):
                    await asyncio.wait_for(first, 5)
                monkeypatch.setattr(gc_client, "_SECONDS", 10.0)
                late, collection.answering = collection.answering, asyncio.Event()
                second = asyncio.create_task(client.add_temp_roots([TWO]))
                await until(lambda: collection.told == [ONE, ONE])
                late.set()
                await stays(second)
                collection.answering.set()
                await asyncio.wait_for(second, 5)
                # What nobody confirmed is told again: its root is no news to anyone.
                assert collection.told == [ONE, ONE, TWO] and collection.connections == 2

    asyncio.run(main())


def test_who_waits_for_its_turn_has_an_answer_of_its_own() -> None:
    async def main() -> None:
        with closing(GcClient()) as client:
            async with Collection().running() as collection:
                first = asyncio.create_task(client.add_temp_roots([ONE]))
                second = asyncio.create_task(client.add_temp_roots([TWO]))
                await until(lambda: collection.told)
                first.cancel()
                late, collection.answering = collection.answering, asyncio.Event()
                await until(lambda: collection.told == [ONE, ONE])
                late.set()
                await stays(second)
                collection.answering.set()
                await asyncio.wait_for(second, 5)
                assert first.cancelled() and collection.told == [ONE, ONE, TWO]

    asyncio.run(main())


def test_a_collection_that_hangs_costs_all_who_wait_the_time_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of them may be an instance that starts."""
    monkeypatch.setattr(gc_client, "_SECONDS", 0.3)

    async def main() -> float:
        with closing(GcClient()) as client:
            async with Collection().running():
                begin = time.monotonic()
                work = (client.add_temp_roots([store(f"{number}")]) for number in range(20))
                ends = await asyncio.gather(*work, return_exceptions=True)
                assert all(isinstance(end, RootError) for end in ends)
                return time.monotonic() - begin

    assert asyncio.run(main()) < 3


@pytest.mark.parametrize("socket_file", ["stale", "missing"])
def test_a_collection_without_a_socket_is_waited_for(socket_file: str) -> None:
    """It has just begun, or just ended, or was killed."""
    if socket_file == "stale":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(paths.GC_SOCKET)

    async def main() -> None:
        with locked():
            task = asyncio.create_task(added({"system-1": ONE}))
            await asyncio.sleep(0.1)
            assert not task.done()
        await asyncio.wait_for(task, 5)

    asyncio.run(main())
    assert present() == {"system-1": ONE}


def test_a_collection_that_is_late_with_its_socket_is_told() -> None:
    async def main() -> None:
        collection = Collection(answering=True)
        with locked():
            task = asyncio.create_task(added({"system-1": ONE}))
            await asyncio.sleep(0.05)
            server = await asyncio.start_unix_server(collection.serve, paths.GC_SOCKET)
            async with server:
                await asyncio.wait_for(task, 5)
        assert collection.told == [ONE]

    asyncio.run(main())


def test_waiting_for_a_collection_does_not_burn_the_processor() -> None:
    async def main() -> float:
        with locked():
            task = asyncio.create_task(added({"system-1": ONE}))
            begin = time.process_time()
            await asyncio.sleep(0.4)
            used = time.process_time() - begin
        await asyncio.wait_for(task, 5)
        return used

    assert asyncio.run(main()) < 0.1


def test_a_collection_that_closes_without_an_answer_is_asked_again() -> None:
    async def main() -> None:
        async with Collection().running() as collection:
            collection.answer = b""
            collection.answering.set()
            task = asyncio.create_task(added({"system-1": ONE}))
            await until(lambda: len(collection.told) > 1)
            assert not task.done()
            collection.answer = b"1"
            await asyncio.wait_for(task, 5)

    asyncio.run(main())


def test_a_collection_that_never_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_client, "_SECONDS", 0.1)
    add({"old": ONE})

    async def main() -> None:
        async with Collection().running() as collection:
            with pytest.raises(RootError, match=f"collector did not confirm {TWO}"):
                await asyncio.wait_for(added({"system-2": TWO}), 5)
            collection.answering.set()

    asyncio.run(main())
    assert present() == {"old": ONE, "system-2": TWO}, "nothing is dropped on an error"


def test_a_lock_that_is_held_for_ever_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instance could not even be stopped: its lock is held meanwhile."""
    monkeypatch.setattr(gc_client, "_SECONDS", 0.1)

    async def main() -> None:
        with locked(), pytest.raises(RootError):
            await asyncio.wait_for(added({"system-1": ONE}), 2)

    asyncio.run(main())


def test_many_instances_can_be_kept_at_once() -> None:
    uuids = [f"{number:08}{UUID[8:]}" for number in range(50)]

    async def main() -> None:
        with closing(GcClient()) as client:
            async with Collection(answering=True).running() as collection:
                wanted = {uuid: {"system-1": store(uuid), "system-2": ONE} for uuid in uuids}
                work = (direct_roots.add(client, "web", uuid, wanted[uuid]) for uuid in uuids)
                await asyncio.wait_for(asyncio.gather(*work), 10)
                assert set(collection.told) == {*map(store, uuids), ONE}
                assert collection.connections == 1

    asyncio.run(main())
    assert len(os.listdir(paths.GCROOTS)) == len(uuids)


def test_roots_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "gcroots").write_text("a file")
    with pytest.raises(RootError, match=f"cannot keep {ONE} for 'web' in .*Not a directory"):
        add({"system-1": ONE})


def test_a_directory_in_the_place_of_a_root_is_named() -> None:
    os.makedirs(f"{paths.GCROOTS}/web.{UUID}/system-1/x")
    with pytest.raises(RootError, match=f"cannot keep {ONE} for 'web' in "):
        add({"system-1": ONE})


def test_what_stood_before_an_error_was_told(tmp_path: Path) -> None:
    os.makedirs(f"{paths.GCROOTS}/web.{UUID}/system-2/x")

    async def main() -> None:
        async with Collection(answering=True).running() as collection:
            with pytest.raises(RootError):
                await asyncio.wait_for(added({"system-1": ONE, "system-2": TWO}), 5)
            assert collection.told == [ONE]

    asyncio.run(main())


def test_no_unfinished_link_is_left_when_a_root_cannot_be_made() -> None:
    os.makedirs(f"{paths.GCROOTS}/web.{UUID}/links/one/x")
    with pytest.raises(RootError):
        add({"links/one": ONE})
    assert present() == {}
