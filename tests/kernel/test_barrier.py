"""Who opens the directories of roots waits until the roots stand, and no longer than he must."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from support.containers import MS_BIND, apart, plain

from inx_sidecar.base import paths, sidecar_client
from inx_sidecar.base.errors import InxError, UnreachableError
from inx_sidecar.kernel.fanotify import Gate, Opening
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, MS_PRIVATE, MS_REC, mount, unshare
from inx_sidecar.roots import barrier

pytestmark = pytest.mark.gc

SECONDS: Final = 20


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gcroots, temproots = str(tmp_path / "gcroots"), str(tmp_path / "temproots")
    os.makedirs(f"{gcroots}/inx")
    monkeypatch.setattr(paths, "SOCKET", str(tmp_path / "sidecar.sock"))
    monkeypatch.setattr(paths, "GCROOTS", f"{gcroots}/inx")
    questions = {
        gcroots: (sidecar_client.DRAIN, sidecar_client.SYNC),
        temproots: (sidecar_client.DRAIN,),
    }
    monkeypatch.setattr(barrier, "_QUESTIONS", questions)


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "gcroots")


@pytest.fixture
def other(tmp_path: Path) -> str:
    return str(tmp_path / "temproots")


class Opener:
    """A process that does something; its status is None until it has ended."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                # Whoever has the gate's descriptor keeps it: only the parent shall.
                os.closerange(3, 1024)
                function()
                os._exit(0)
            finally:
                os._exit(1)

    def ended(self) -> bool:
        if self._status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    def succeeded(self) -> bool:
        """It has ended, and well."""
        return self.ended() and self._status == 0

    def kill(self) -> None:
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            eventually(self.ended)


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[], object]], Opener]]:
    """Starts processes, none of which stays."""
    with ExitStack() as openers:

        def begin(function: Callable[[], object]) -> Opener:
            opener = Opener(function)
            openers.callback(opener.kill)
            return opener

        yield begin


Start = Callable[[Callable[[], object]], Opener]


@pytest.fixture
def gate() -> Iterator[Gate]:
    """However the test ends, nobody is kept waiting by it."""
    gate = Gate()
    yield gate
    if os.path.exists(f"/proc/self/fd/{gate.fd}"):
        gate.close()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def openings(gate: Gate, count: int = 1) -> list[Opening]:
    """So many that wait."""
    found: list[Opening] = []

    def enough() -> bool:
        found.extend(gate.openings())
        return len(found) >= count

    eventually(enough)
    assert len(found) == count
    return found


def marks(pid: int | None = None) -> int:
    """The directories that a process, or this one, has marked."""
    found = 0
    for file in Path(f"/proc/{pid or os.getpid()}/fdinfo").iterdir():
        try:
            found += file.read_text().count("fanotify ino:")
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def open_it(directory: str) -> Callable[[], object]:
    return lambda: os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))


def test_an_opening_waits_until_it_is_let_through(gate: Gate, place: str, start: Start) -> None:
    gate.mark(place)
    opener = start(open_it(place))
    (opening,) = openings(gate)
    assert opening.pid == opener.pid
    assert os.path.samestat(os.fstat(opening.fd), os.stat(place))
    time.sleep(0.05)
    assert not opener.ended() and list(gate.openings()) == []
    gate.let_through(opening)
    eventually(opener.succeeded)
    assert not os.path.exists(f"/proc/self/fd/{opening.fd}")


def test_each_opening_waits_for_itself(gate: Gate, place: str, start: Start) -> None:
    gate.mark(place)
    one, two = start(open_it(place)), start(open_it(place))
    first, second = sorted(openings(gate, 2), key=lambda opening: opening.pid != one.pid)
    gate.let_through(second)
    eventually(two.succeeded)
    assert not one.ended()
    gate.let_through(first)
    eventually(one.succeeded)


def test_closing_the_gate_lets_all_through(gate: Gate, place: str, start: Start) -> None:
    gate.mark(place)
    seen = start(open_it(place))
    (opening,) = openings(gate)
    unseen = [start(open_it(place)) for _ in range(5)]
    time.sleep(0.05)
    assert not any(opener.ended() for opener in (seen, *unseen))
    gate.close()
    for opener in (seen, *unseen):
        eventually(opener.succeeded)
    os.close(opening.fd)
    eventually(start(open_it(place)).succeeded)


def test_when_its_holder_is_killed_all_go_through(place: str, start: Start, tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def hold() -> None:
        gate = Gate()
        gate.mark(place)
        while True:
            for _ in gate.openings():
                ready.touch()

    holder = start(hold)

    eventually(lambda: marks(holder.pid))
    opener = start(open_it(place))
    eventually(ready.exists)
    assert not opener.ended()
    holder.kill()
    eventually(opener.succeeded)


def test_who_is_killed_while_it_waits_leaves_the_gate_in_order(
    gate: Gate, place: str, start: Start
) -> None:
    gate.mark(place)
    killed = start(open_it(place))
    (opening,) = openings(gate)
    killed.kill()
    gate.let_through(opening)
    assert not os.path.exists(f"/proc/self/fd/{opening.fd}")
    opener = start(open_it(place))
    gate.let_through(openings(gate)[0])
    eventually(opener.succeeded)


def test_many_can_wait(gate: Gate, place: str, start: Start) -> None:
    gate.mark(place)
    before = len(os.listdir("/proc/self/fd"))
    openers = [start(open_it(place)) for _ in range(200)]
    for opening in openings(gate, 200):
        gate.let_through(opening)
    for opener in openers:
        eventually(opener.succeeded)
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_but_an_opening_of_the_directory_waits(
    gate: Gate, place: str, other: str, start: Start
) -> None:
    os.symlink("/nix/store/x", f"{place}/inx/link")
    os.mkdir(other)
    gate.mark(place)

    def work() -> None:
        os.stat(place)
        os.readlink(f"{place}/inx/link")
        os.listdir(f"{place}/inx")
        os.listdir(other)
        os.close(os.open(place, os.O_PATH))
        Path(f"{place}/file").write_text("x")
        Path(f"{place}/file").read_text()
        os.mkdir(f"{place}/new")
        os.listdir(f"{place}/new")
        os.rename(f"{place}/new", f"{place}/inx/new")

    eventually(start(work).succeeded)
    assert list(gate.openings()) == []


def test_an_opening_through_another_mount_waits(
    gate: Gate, place: str, tmp_path: Path, start: Start
) -> None:
    gate.mark(place)
    (tmp_path / "bound").mkdir()

    def work() -> None:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        plain(f"{tmp_path}/bound", place, MS_BIND)
        os.listdir(f"{tmp_path}/bound")

    opener = start(work)
    (opening,) = openings(gate)
    assert opening.pid == opener.pid and not opener.ended()
    gate.let_through(opening)
    eventually(opener.succeeded)


def test_a_directory_that_is_marked_again_is_asked_about_once(
    gate: Gate, place: str, start: Start
) -> None:
    for _ in range(3):
        gate.mark(place)
    opener = start(open_it(place))
    gate.let_through(openings(gate)[0])
    eventually(opener.succeeded)
    assert list(gate.openings()) == []


def test_what_is_no_directory_cannot_be_marked(gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        gate.mark(str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError):
        gate.mark(str(tmp_path / "none"))


def test_this_kernel_can_do_it() -> None:
    before = os.listdir("/proc/self/fd")
    barrier.probe()
    assert os.listdir("/proc/self/fd") == before


class Sidecar:
    """Answers as the sidecar does, once `answering` is set; `closing` so many without a word."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answering = asyncio.Event()
        self.answer = b"0\nall is well"
        self.closing = 0
        self.tasks: set[asyncio.Task[object]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        try:
            self.asked.append((await reader.read()).decode())
            if len(self.asked) > self.closing:
                await self.answering.wait()
                writer.write(self.answer)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass  # the one who asked went, or the test ends
        finally:
            self.tasks.discard(task)
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Sidecar"]:
        async with await asyncio.start_unix_server(self.serve, paths.SOCKET):
            try:
                yield self
            finally:
                for task in self.tasks:
                    task.cancel()
                await asyncio.gather(*self.tasks)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.002)


async def held(gate: Gate, place: str, start: Start, word: str = sidecar_client.DRAIN) -> float:
    """How long an opening was held that was asked about with `word`."""
    gate.mark(place)
    opener = start(open_it(place))
    (opening,) = openings(gate)
    begin = time.monotonic()
    await barrier.hold(gate, [opening], (word,))
    took = time.monotonic() - begin
    await until(opener.succeeded)
    return took


def test_an_opening_goes_on_when_the_sidecar_has_answered(
    gate: Gate, place: str, start: Start
) -> None:
    async def main() -> None:
        async with Sidecar().running() as sidecar:
            gate.mark(place)
            opener = start(open_it(place))
            (opening,) = openings(gate)
            task = asyncio.create_task(barrier.hold(gate, [opening], (sidecar_client.SYNC,)))
            await until(lambda: sidecar.asked)
            await asyncio.sleep(0.05)
            assert not task.done() and not opener.ended()
            sidecar.answering.set()
            await asyncio.wait_for(task, SECONDS)
            await until(opener.succeeded)
            assert sidecar.asked == ["sync"]

    asyncio.run(main())


def test_a_sidecar_that_never_answers_is_waited_for_no_longer_than_that(
    gate: Gate, place: str, start: Start, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(barrier, "SECONDS", 0.5)

    async def main() -> float:
        async with Sidecar().running():
            return await held(gate, place, start)

    took = asyncio.run(main())
    assert 0.5 <= took < 5
    assert "the sidecar does not answer, roots may be missing" in caplog.text


def test_a_sidecar_that_is_never_started_is_waited_for_no_longer_than_that(
    gate: Gate, place: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is there, and nobody takes what comes."""
    monkeypatch.setattr(barrier, "SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(paths.SOCKET)
        listener.listen()
        assert 0.3 <= asyncio.run(held(gate, place, start)) < 5


@pytest.mark.parametrize("what", ["nothing", "stale", "a directory"])
def test_without_a_socket_nobody_is_waited_for(
    what: str, gate: Gate, place: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    if what == "stale":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(paths.SOCKET)
    if what == "a directory":
        os.mkdir(paths.SOCKET)
    assert asyncio.run(held(gate, place, start)) < barrier.SECONDS - 1
    assert "goes on" in caplog.text and len(caplog.records) == 1


def test_a_sidecar_that_fails_keeps_nobody(
    gate: Gate, place: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        sidecar = Sidecar()
        sidecar.answer = b"20\nthe store is on fire"
        sidecar.answering.set()
        async with sidecar.running():
            assert await held(gate, place, start) < barrier.SECONDS - 1

    asyncio.run(main())
    assert "goes on, not all roots stand: the store is on fire" in caplog.text


def test_a_sidecar_that_ends_before_it_answers_is_asked_again(
    gate: Gate, place: str, start: Start
) -> None:
    async def main() -> None:
        sidecar = Sidecar()
        sidecar.closing = 3
        sidecar.answering.set()
        async with sidecar.running():
            await held(gate, place, start, sidecar_client.DRAIN)
        assert sidecar.asked == ["drain"] * 4

    asyncio.run(main())


def test_a_sidecar_that_ends_again_and_again_is_not_asked_all_the_time() -> None:
    async def main() -> None:
        sidecar = Sidecar()
        sidecar.closing = 1_000_000
        async with sidecar.running():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sidecar_client.ask(sidecar_client.SYNC), 1)
        assert 1 < len(sidecar.asked) < 200

    asyncio.run(main())


def test_who_may_not_ask_is_told() -> None:
    def ask() -> str:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            asyncio.run(sidecar_client.ask(sidecar_client.SYNC))
        except InxError as error:
            return str(error)
        return ""

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(paths.SOCKET)
        listener.listen()
        os.chmod(paths.SOCKET, 0o600)
        assert apart(ask)


def test_who_asks_nobody_is_told() -> None:
    with pytest.raises(UnreachableError, match=r"systemctl start inx-sidecar\.socket"):
        asyncio.run(sidecar_client.ask(sidecar_client.SYNC))


@asynccontextmanager
async def guarding() -> AsyncIterator[None]:
    """From the moment it holds until it has ended, by SIGTERM."""
    task = asyncio.create_task(barrier.guard())
    try:
        await until(lambda: task.done() or marks() == 2)
        yield
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, SECONDS)


def test_each_directory_has_its_words(place: str, other: str, start: Start) -> None:
    async def main() -> None:
        async with Sidecar().running() as sidecar, guarding():
            for directory, words in ((place, ["drain", "sync"]), (other, ["drain"])):
                opener = start(open_it(directory))
                await until(lambda: sidecar.asked)
                assert sidecar.asked == words[:1] and not opener.ended()
                sidecar.answering.set()
                await until(opener.succeeded)
                assert sidecar.asked == words
                sidecar.answering.clear()
                sidecar.asked.clear()

    asyncio.run(main())


def test_it_is_ready_when_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(barrier, "notify", lambda state: told.append((state, marks())))

    async def main() -> None:
        async with guarding():
            await until(lambda: told)

    asyncio.run(main())
    assert [(state[:7], count) for state, count in told] == [("READY=1", 2)]


def test_when_it_ends_all_go_on(place: str, start: Start) -> None:
    async def main() -> None:
        async with Sidecar().running() as sidecar:
            async with guarding():
                openers = [start(open_it(place)) for _ in range(10)]
                await until(lambda: len(sidecar.asked) == 8)
                assert not any(opener.ended() for opener in openers)
            for opener in openers:
                await until(opener.succeeded)
            later = start(open_it(place))
            await until(later.succeeded)

    asyncio.run(main())


def test_nothing_is_left_open_when_it_ends(place: str, start: Start) -> None:
    before = sorted(os.listdir("/proc/self/fd"))

    async def main() -> None:
        async with Sidecar().running() as sidecar, guarding():
            start(open_it(place))
            await until(lambda: sidecar.asked)

    asyncio.run(main())
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_many_who_wait_do_not_wait_for_each_other(
    place: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barrier, "SECONDS", 1.0)

    async def main() -> float:
        async with Sidecar().running(), guarding():
            begin = time.monotonic()
            openers = [start(open_it(place)) for _ in range(20)]
            for opener in openers:
                await until(opener.succeeded)
            return time.monotonic() - begin

    assert asyncio.run(main()) < 8


def test_one_that_was_killed_while_it_waited_is_no_bug(
    place: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Sidecar().running() as sidecar, guarding():
            killed = start(open_it(place))
            await until(lambda: sidecar.asked)
            killed.kill()
            sidecar.answering.set()
            opener = start(open_it(place))
            await until(opener.succeeded)

    asyncio.run(main())
    assert "Traceback" not in caplog.text and "exception" not in caplog.text


def test_a_directory_that_was_replaced_is_held_as_well(
    place: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barrier, "_MARK_SECONDS", 0.05)

    async def main() -> None:
        async with Sidecar().running() as sidecar, guarding():
            os.rename(place, f"{place}.former")
            await until(lambda: marks() == 3)
            opener = start(open_it(place))
            await until(lambda: sidecar.asked)
            assert sidecar.asked == ["drain"] and not opener.ended()
            sidecar.answering.set()
            await until(opener.succeeded)

    asyncio.run(main())
