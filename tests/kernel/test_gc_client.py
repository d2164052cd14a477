"""A running collection gets the path of each new root, and its answer is awaited."""

import asyncio
import os
import socket
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.collector import Collector, locked, stays
from support.direct_roots import ONE, TWO, UUID, add, added, present, store
from support.waiting import SECONDS, until

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError
from inx_sidecar.nix import gc_client
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots

pytestmark = [pytest.mark.main, pytest.mark.usefixtures("gc_paths")]


def test_adding_a_root_waits_for_the_answer_of_a_running_collection() -> None:
    async def main() -> None:
        async with Collector().running() as collector:
            task = asyncio.create_task(added({"system-1": ONE}))
            await until(lambda: collector.received)
            assert present() == {"system-1": ONE}, "the root exists before the path is sent"
            await stays(task)
            collector.answering.set()
            await asyncio.wait_for(task, SECONDS)
            assert collector.received == [ONE]

    asyncio.run(main())


def test_the_collector_gets_every_new_path_after_all_roots_exist() -> None:
    add({"system-1": ONE, "same": ONE})

    async def main() -> None:
        async with Collector(answering=True).running() as collector:
            wanted = {"same": ONE, "system-1": TWO, "system-3": store("three")}
            await added(wanted)
            assert sorted(collector.received) == sorted([TWO, store("three")])
            assert all(roots == present() for roots in collector.roots)
            assert present() == {**wanted, f"former.{'0' * 32}": ONE}

    asyncio.run(main())


def test_the_collector_gets_no_path_of_an_existing_root() -> None:
    add({"system-1": ONE, "system-2": TWO})

    async def main() -> None:
        async with Collector().running() as collector:
            await asyncio.wait_for(added({"system-2": TWO}), 5)
            direct_roots.drop("web", UUID, ["system-1"])
            assert collector.received == [] and collector.connections == 0

    asyncio.run(main())


def test_one_connection_is_used_for_the_whole_collection() -> None:
    async def main() -> None:
        with closing(GcClient()) as client:
            async with Collector(answering=True).running() as collector:
                for number in range(20):
                    await asyncio.wait_for(client.add_temp_roots([store(f"{number}")]), 5)
                await asyncio.wait_for(client.add_temp_roots([ONE, TWO]), 5)
                assert collector.received == [*(store(f"{n}") for n in range(20)), ONE, TWO]
                assert collector.connections == 1

    asyncio.run(main())


@pytest.mark.parametrize("between", ["nothing", "a call"])
def test_the_next_collection_gets_a_new_connection(between: str) -> None:
    async def main() -> None:
        with closing(GcClient()) as client:
            for _ in range(3):
                async with Collector(answering=True).running() as collector:
                    await asyncio.wait_for(client.add_temp_roots([ONE]), 5)
                    await asyncio.wait_for(client.add_temp_roots([TWO]), 5)
                    assert collector.received == [ONE, TWO] and collector.connections == 1
                if between == "a call":
                    await asyncio.wait_for(client.add_temp_roots([ONE]), 5)

    asyncio.run(main())


def test_after_a_collection_no_descriptor_stays_open() -> None:
    async def main() -> None:
        with closing(GcClient()) as client:
            before = set(os.listdir("/proc/self/fd"))
            async with Collector(answering=True).running():
                await asyncio.wait_for(client.add_temp_roots([ONE]), 5)
            await client.add_temp_roots([TWO])
            await until(lambda: set(os.listdir("/proc/self/fd")) <= before)

    asyncio.run(main())


@pytest.mark.parametrize("end", ["too late", "cancelled"])
def test_a_late_answer_does_not_count_for_the_next_path(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with closing(GcClient()) as client:
            async with Collector().running() as collector:
                monkeypatch.setattr(gc_client, "_SECONDS", 0.1 if end == "too late" else 10.0)
                first = asyncio.create_task(client.add_temp_roots([ONE]))
                await until(lambda: collector.received)
                if end == "cancelled":
                    first.cancel()
                with pytest.raises((RootError, asyncio.CancelledError)):
                    await asyncio.wait_for(first, SECONDS)
                monkeypatch.setattr(gc_client, "_SECONDS", 10.0)
                late, collector.answering = collector.answering, asyncio.Event()
                second = asyncio.create_task(client.add_temp_roots([TWO]))
                await until(lambda: collector.received == [ONE, ONE])
                late.set()
                await stays(second)
                collector.answering.set()
                await asyncio.wait_for(second, SECONDS)
                # A path that was not confirmed is sent again: its root exists, so no other call
                # would send it.
                assert collector.received == [ONE, ONE, TWO] and collector.connections == 2

    asyncio.run(main())


def test_a_cancelled_call_leaves_its_answer_to_no_other_call() -> None:
    async def main() -> None:
        with closing(GcClient()) as client:
            async with Collector().running() as collector:
                first = asyncio.create_task(client.add_temp_roots([ONE]))
                second = asyncio.create_task(client.add_temp_roots([TWO]))
                await until(lambda: collector.received)
                first.cancel()
                late, collector.answering = collector.answering, asyncio.Event()
                await until(lambda: collector.received == [ONE, ONE])
                late.set()
                await stays(second)
                collector.answering.set()
                await asyncio.wait_for(second, SECONDS)
                assert first.cancelled() and collector.received == [ONE, ONE, TWO]

    asyncio.run(main())


def test_all_calls_fail_together_if_a_collection_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each call may belong to the start of an instance."""
    monkeypatch.setattr(gc_client, "_SECONDS", 2.0)

    async def main() -> float:
        with closing(GcClient()) as client:
            async with Collector().running():
                begin = time.monotonic()
                work = (client.add_temp_roots([store(f"{number}")]) for number in range(20))
                ends = await asyncio.gather(*work, return_exceptions=True)
                assert all(isinstance(end, RootError) for end in ends)
                return time.monotonic() - begin

    assert asyncio.run(main()) < 20, "one after the other takes 40 s"


@pytest.mark.parametrize("socket_file", ["stale", "missing"])
def test_a_call_waits_for_a_collection_without_a_socket(socket_file: str) -> None:
    """Such a collection has just begun, has just ended, or was killed."""
    if socket_file == "stale":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(paths.GC_SOCKET)

    async def main() -> None:
        with locked():
            task = asyncio.create_task(added({"system-1": ONE}))
            await asyncio.sleep(0.1)
            assert not task.done()
        await asyncio.wait_for(task, SECONDS)

    asyncio.run(main())
    assert present() == {"system-1": ONE}


def test_a_collector_that_opens_its_socket_late_gets_the_path() -> None:
    async def main() -> None:
        collector = Collector(answering=True)
        with locked():
            task = asyncio.create_task(added({"system-1": ONE}))
            await asyncio.sleep(0.05)
            server = await asyncio.start_unix_server(collector.serve, paths.GC_SOCKET)
            async with server:
                await asyncio.wait_for(task, SECONDS)
        assert collector.received == [ONE]

    asyncio.run(main())


def test_waiting_for_a_collection_uses_little_cpu_time() -> None:
    async def main() -> float:
        with locked():
            task = asyncio.create_task(added({"system-1": ONE}))
            begin = time.process_time()
            await asyncio.sleep(0.4)
            used = time.process_time() - begin
        await asyncio.wait_for(task, SECONDS)
        return used

    assert asyncio.run(main()) < 0.1


def test_a_collector_that_closes_without_an_answer_gets_the_path_again() -> None:
    async def main() -> None:
        async with Collector().running() as collector:
            collector.answer = b""
            collector.answering.set()
            task = asyncio.create_task(added({"system-1": ONE}))
            await until(lambda: len(collector.received) > 1)
            assert not task.done()
            collector.answer = b"1"
            await asyncio.wait_for(task, SECONDS)

    asyncio.run(main())


def test_a_collector_that_never_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_client, "_SECONDS", 0.1)
    add({"old": ONE})

    async def main() -> None:
        async with Collector().running() as collector:
            with pytest.raises(RootError, match=f"collector did not confirm {TWO}"):
                await asyncio.wait_for(added({"system-2": TWO}), 5)
            collector.answering.set()

    asyncio.run(main())
    assert present() == {"old": ONE, "system-2": TWO}, "no root is dropped after an error"


def test_a_lock_that_is_never_released_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits for ever would hold the lock of an instance, which could not be stopped."""
    monkeypatch.setattr(gc_client, "_SECONDS", 0.1)

    async def main() -> None:
        with locked(), pytest.raises(RootError):
            await asyncio.wait_for(added({"system-1": ONE}), 2)

    asyncio.run(main())


def test_roots_of_many_instances_can_be_added_at_once() -> None:
    uuids = [f"{number:08}{UUID[8:]}" for number in range(50)]

    async def main() -> None:
        with closing(GcClient()) as client:
            async with Collector(answering=True).running() as collector:
                wanted = {uuid: {"system-1": store(uuid), "system-2": ONE} for uuid in uuids}
                work = (direct_roots.add(client, "web", uuid, wanted[uuid]) for uuid in uuids)
                await asyncio.wait_for(asyncio.gather(*work), 10)
                assert set(collector.received) == {*map(store, uuids), ONE}
                assert collector.connections == 1

    asyncio.run(main())
    assert len(os.listdir(paths.GCROOTS)) == len(uuids)


def test_the_collector_gets_the_paths_of_the_roots_made_before_an_error(tmp_path: Path) -> None:
    os.makedirs(f"{paths.GCROOTS}/web.{UUID}/system-2/x")

    async def main() -> None:
        async with Collector(answering=True).running() as collector:
            with pytest.raises(RootError):
                await asyncio.wait_for(added({"system-1": ONE, "system-2": TWO}), 5)
            assert collector.received == [ONE]

    asyncio.run(main())
