"""A process that opens a directory of GC roots waits until the roots exist, and not longer."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.descriptors import open_descriptors
from support.openers import Start, marks, open_requests, opens
from support.sidecar import Sidecar
from support.waiting import SECONDS, until

from inx_sidecar.base import paths, sidecar_client
from inx_sidecar.kernel.fanotify import PermissionGroup
from inx_sidecar.roots import barrier

pytestmark = [pytest.mark.gc, pytest.mark.usefixtures("sidecar_socket")]


@pytest.fixture(autouse=True)
def _directories(gcroots: str, temproots: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "GCROOTS", f"{gcroots}/inx")
    requests = {
        gcroots: (sidecar_client.DRAIN, sidecar_client.SYNC),
        temproots: (sidecar_client.DRAIN,),
    }
    monkeypatch.setattr(barrier, "_REQUESTS", requests)


async def held(
    group: PermissionGroup, gcroots: str, start: Start, request: str = sidecar_client.DRAIN
) -> float:
    """How many seconds `allow_when_rooted` held an opening for the answer to `request`."""
    group.mark(gcroots)
    opener = start(opens(gcroots))
    (opening,) = open_requests(group)
    begin = time.monotonic()
    await barrier.allow_when_rooted(group, [opening], (request,))
    took = time.monotonic() - begin
    await until(opener.succeeded)
    return took


def test_this_kernel_can_hold_an_open() -> None:
    before = open_descriptors()
    barrier.probe()
    assert open_descriptors() == before


def test_an_opening_waits_for_the_answer_of_the_sidecar(
    group: PermissionGroup, gcroots: str, start: Start
) -> None:
    async def main() -> None:
        async with Sidecar().running() as sidecar:
            group.mark(gcroots)
            opener = start(opens(gcroots))
            (opening,) = open_requests(group)
            task = asyncio.create_task(
                barrier.allow_when_rooted(group, [opening], (sidecar_client.SYNC,))
            )
            await until(lambda: sidecar.asked)
            await asyncio.sleep(0.05)
            assert not task.done() and not opener.ended()
            sidecar.answering.set()
            await asyncio.wait_for(task, SECONDS)
            await until(opener.succeeded)
            assert sidecar.asked == ["sync"]

    asyncio.run(main())


def test_an_opening_waits_a_limited_time_for_a_sidecar_that_never_answers(
    group: PermissionGroup, gcroots: str, start: Start, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(barrier, "SECONDS", 0.5)

    async def main() -> float:
        async with Sidecar().running():
            return await held(group, gcroots, start)

    took = asyncio.run(main())
    assert 0.5 <= took < 5
    assert "the sidecar does not answer, roots may be missing" in caplog.text


def test_an_opening_waits_a_limited_time_for_a_sidecar_that_is_never_started(
    group: PermissionGroup, gcroots: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket exists, but no process accepts a connection."""
    monkeypatch.setattr(barrier, "SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(paths.SOCKET)
        listener.listen()
        assert 0.3 <= asyncio.run(held(group, gcroots, start)) < 5


@pytest.mark.parametrize("socket_file", ["nothing", "stale", "a directory"])
def test_an_opening_does_not_wait_without_a_socket(
    socket_file: str,
    group: PermissionGroup,
    gcroots: str,
    start: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if socket_file == "stale":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(paths.SOCKET)
    if socket_file == "a directory":
        os.mkdir(paths.SOCKET)
    assert asyncio.run(held(group, gcroots, start)) < barrier.SECONDS - 1
    assert "goes on" in caplog.text and len(caplog.records) == 1


def test_an_opening_does_not_wait_after_an_error_of_the_sidecar(
    group: PermissionGroup, gcroots: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        sidecar = Sidecar()
        sidecar.answer = b"20\nthe disk is full"
        sidecar.answering.set()
        async with sidecar.running():
            assert await held(group, gcroots, start) < barrier.SECONDS - 1

    asyncio.run(main())
    assert "goes on, not all roots stand: the disk is full" in caplog.text


def test_a_sidecar_that_ends_before_it_answers_is_asked_again(
    group: PermissionGroup, gcroots: str, start: Start
) -> None:
    async def main() -> None:
        sidecar = Sidecar()
        sidecar.closing = 3
        sidecar.answering.set()
        async with sidecar.running():
            await held(group, gcroots, start, sidecar_client.DRAIN)
        assert sidecar.asked == ["drain"] * 4

    asyncio.run(main())


@asynccontextmanager
async def guarding() -> AsyncIterator[None]:
    """Run the barrier. The block starts when it holds both directories; SIGTERM ends it."""
    task = asyncio.create_task(barrier.guard())
    try:
        await until(lambda: task.done() or marks() == 2)
        yield
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, SECONDS)


def test_each_directory_has_its_own_requests(gcroots: str, temproots: str, start: Start) -> None:
    async def main() -> None:
        async with Sidecar().running() as sidecar, guarding():
            for directory, requests in ((gcroots, ["drain", "sync"]), (temproots, ["drain"])):
                opener = start(opens(directory))
                await until(lambda: sidecar.asked)
                assert sidecar.asked == requests[:1] and not opener.ended()
                sidecar.answering.set()
                await until(opener.succeeded)
                assert sidecar.asked == requests
                sidecar.answering.clear()
                sidecar.asked.clear()

    asyncio.run(main())


def test_the_barrier_is_ready_when_both_directories_are_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notified: list[tuple[str, int]] = []
    monkeypatch.setattr(barrier, "notify", lambda state: notified.append((state, marks())))

    async def main() -> None:
        async with guarding():
            await until(lambda: notified)

    asyncio.run(main())
    assert [(state[:7], count) for state, count in notified] == [("READY=1", 2)]


def test_the_end_of_the_barrier_allows_all_openings(gcroots: str, start: Start) -> None:
    async def main() -> None:
        async with Sidecar().running() as sidecar:
            async with guarding():
                openers = [start(opens(gcroots)) for _ in range(10)]
                await until(lambda: len(sidecar.asked) == 8)
                assert not any(opener.ended() for opener in openers)
            for opener in openers:
                await until(opener.succeeded)
            later = start(opens(gcroots))
            await until(later.succeeded)

    asyncio.run(main())


def test_the_barrier_leaves_no_descriptor_open(gcroots: str, start: Start) -> None:
    before = open_descriptors()

    async def main() -> None:
        async with Sidecar().running() as sidecar, guarding():
            start(opens(gcroots))
            await until(lambda: sidecar.asked)

    asyncio.run(main())
    assert open_descriptors() == before


def test_openings_do_not_wait_for_each_other(
    gcroots: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barrier, "SECONDS", 1.5)

    async def main() -> float:
        async with Sidecar().running(), guarding():
            begin = time.monotonic()
            openers = [start(opens(gcroots)) for _ in range(20)]
            for opener in openers:
                await until(opener.succeeded)
            return time.monotonic() - begin

    assert asyncio.run(main()) < 20, "one after the other takes 30 s"


def test_a_process_may_be_killed_while_it_waits(
    gcroots: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Sidecar().running() as sidecar, guarding():
            killed = start(opens(gcroots))
            await until(lambda: sidecar.asked)
            killed.kill()
            sidecar.answering.set()
            opener = start(opens(gcroots))
            await until(opener.succeeded)

    asyncio.run(main())
    assert "Traceback" not in caplog.text and "exception" not in caplog.text


def test_a_directory_that_was_replaced_is_marked_again(
    gcroots: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barrier, "_MARK_SECONDS", 0.05)

    async def main() -> None:
        async with Sidecar().running() as sidecar, guarding():
            os.rename(gcroots, f"{gcroots}.former")
            await until(lambda: marks() == 3)
            opener = start(opens(gcroots))
            await until(lambda: sidecar.asked)
            assert sidecar.asked == ["drain"] and not opener.ended()
            sidecar.answering.set()
            await until(opener.succeeded)

    asyncio.run(main())


def test_a_process_that_waits_may_open_as_many_files_as_it_may_allow_itself() -> None:
    """A collector needs a descriptor for each level of a store path that it deletes."""
    with subprocess.Popen(
        ["sh", "-c", "ulimit -Sn 64; echo; read _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as waits:
        assert waits.stdin and waits.stdout and waits.stdout.readline() == b"\n"
        hard = resource.prlimit(waits.pid, resource.RLIMIT_NOFILE)[1]
        barrier.raise_file_limit(waits.pid)
        assert resource.prlimit(waits.pid, resource.RLIMIT_NOFILE) == (hard, hard) != (64, hard)
        waits.stdin.close()
    barrier.raise_file_limit(waits.pid)  # it has ended
