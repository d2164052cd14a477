"""A forked child returns a value and descriptors, or an error, and never stays behind."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Literal, NoReturn

import pytest
from support.waiting import until

from inx_sidecar.base import errors
from inx_sidecar.base.errors import InstanceError, InxError, MountError
from inx_sidecar.kernel import forked

pytestmark = pytest.mark.main

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, InxError) and kind is not InxError
]


def call(function: Callable[[], forked.Result], seconds: float = 20) -> forked.Result:
    """The result of `function`; asserts that no child is left."""
    before = left()
    try:
        return asyncio.run(forked.run_in_child(function, "the work", seconds))
    finally:
        assert left()[0] == before[0], "a child is left"


def left() -> tuple[str, set[str]]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read(), set(os.listdir("/proc/self/fd"))


def test_a_value_comes_back() -> None:
    value = {"number": 1, "list": [None, True, "é\n"]}
    assert call(lambda: (value, [])) == (value, [])


@pytest.mark.parametrize("length", [65_000, 65_524, 65_530, 65_536, 65_600, 10_000_000])
def test_a_value_of_any_length_comes_back(length: int) -> None:
    before = left()
    assert call(lambda: ("x" * length, [])) == ("x" * length, [])
    assert left() == before


def test_a_long_value_comes_with_its_descriptors() -> None:
    value, fds = call(lambda: ("x" * 100_000, [os.memfd_create("passed")]))
    assert len(value) == 100_000 and len(fds) == 1
    assert "passed" in os.readlink(f"/proc/self/fd/{fds[0]}")
    os.close(fds[0])


def test_text_that_is_no_unicode_comes_back() -> None:
    text = os.fsdecode(b"\xff\xfe\x80")
    assert call(lambda: ({text: text}, [])) == ({text: text}, [])


def test_it_ran_in_another_process() -> None:
    assert call(lambda: (os.getpid(), []))[0] != os.getpid()


def test_descriptors_come_back_and_stay_usable() -> None:
    def make() -> forked.Result:
        fds = [os.memfd_create(name) for name in "abc"]
        for number, fd in enumerate(fds):
            os.pwrite(fd, str(number).encode(), 0)
        return None, fds

    _, fds = call(make)
    assert [os.pread(fd, 9, 0) for fd in fds] == [b"0", b"1", b"2"]
    for fd in fds:
        os.close(fd)


def test_nothing_stays_open() -> None:
    before = left()
    call(lambda: (None, []))
    with pytest.raises(MountError):
        call(lambda: fail(OSError(1, "x")))
    assert left() == before


def sleep(seconds: float) -> forked.Result:
    time.sleep(seconds)
    return None, []


def fail(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_an_error_of_ours_comes_through_as_it_is(kind: type[InxError]) -> None:
    with pytest.raises(InxError) as caught:
        call(lambda: fail(kind("what the operator reads")))
    assert type(caught.value) is kind and str(caught.value) == "what the operator reads"


def test_an_os_error_tells_what_and_where() -> None:
    with pytest.raises(MountError, match=r"the work: No such file or directory \(/gone\)"):
        call(lambda: (os.stat("/gone").st_size, []))
    with pytest.raises(MountError, match=r"the work: Operation not permitted$"):
        call(lambda: fail(PermissionError(1, "Operation not permitted")))


def test_a_bug_comes_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*in fail.*ValueError: my bug"):
        call(lambda: fail(ValueError("my bug")))


def test_a_value_that_json_cannot_carry_is_a_bug() -> None:
    with pytest.raises(RuntimeError):
        call(lambda: (object(), []))


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), AssertionError("x")])
def test_nothing_leaves_the_child_but_through_the_channel(error: BaseException) -> None:
    with pytest.raises(RuntimeError, match=type(error).__name__):
        call(lambda: fail(error))


def test_a_child_that_vanishes_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="without a word"):
        call(lambda: os._exit(0))

    def crash() -> forked.Result:
        os.kill(os.getpid(), signal.SIGKILL)
        return None, []

    with pytest.raises(RuntimeError, match="without a word"):
        call(crash)


def test_a_child_that_hangs_is_killed() -> None:
    def hang() -> forked.Result:
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        return sleep(60)

    begin = time.monotonic()
    with pytest.raises(MountError, match="the work took over"):
        call(hang, 0.1)
    assert time.monotonic() - begin < 30


def test_a_caller_that_is_cancelled_takes_the_child_with_it() -> None:
    async def main() -> None:
        task = asyncio.create_task(forked.run_in_child(lambda: sleep(60), "the work"))
        await asyncio.sleep(0.05)
        assert left()[0]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not left()[0]

    asyncio.run(main())


def test_others_go_on_while_a_child_works() -> None:
    """Each child waits until all five are there."""
    reader, writer = os.pipe()
    ready, told = os.pipe()

    def wait() -> forked.Result:
        os.write(told, b"x")
        os.read(reader, 1)
        return None, []

    async def main() -> None:
        work = [
            asyncio.create_task(forked.run_in_child(wait, "the work", fds=(told, reader)))
            for _ in range(5)
        ]
        for _ in range(5):
            await asyncio.to_thread(os.read, ready, 1)
        assert not any(task.done() for task in work)
        os.write(writer, b"xxxxx")
        await asyncio.gather(*work)

    asyncio.run(main())
    for fd in reader, writer, ready, told:
        os.close(fd)


def test_a_long_message_is_an_error_still() -> None:
    with pytest.raises(InstanceError):
        call(lambda: fail(InstanceError("x" * 200_000)))
    with pytest.raises(RuntimeError, match="my bug"):
        call(lambda: fail(ValueError("é" * 200_000 + "my bug")))


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        ("instance", "3 processes wait for a file system of 'web'"),
        ("group", "3 processes wait for a file system that does not answer"),
    ],
)
def test_children_of_one_instance_that_cannot_be_killed_are_few(
    monkeypatch: pytest.MonkeyPatch, bound: Literal["instance", "group"], text: str
) -> None:
    """As when they wait for a file system that does not answer. Other instances go on."""
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    monkeypatch.setattr(forked, "_REAP_SECONDS", 0.05)
    end, release = os.pipe()

    def wait() -> forked.Result:
        os.read(end, 1)
        return None, []

    async def attempt(function: Callable[[], forked.Result], name: str) -> forked.Result:
        instance, group = (name, "") if bound == "instance" else ("", name)
        return await forked.run_in_child(
            function, "the work", 0.05, fds=[end], instance=instance, group=group
        )

    async def main() -> None:
        exits = []
        for _ in range(forked._MAX_STUCK):
            with pytest.raises(forked.TookTooLongError) as caught:
                await attempt(wait, "web")
            exits.append(caught.value.ended)
        children = left()[0]
        with pytest.raises(MountError, match=text):
            await attempt(lambda: (1, []), "web")
        assert left()[0] == children, "no other child was started"
        monkeypatch.setattr(os, "kill", kill)
        assert await attempt(lambda: (2, []), "mail") == (2, [])
        os.close(release)
        await asyncio.wait_for(asyncio.gather(*exits), 5)
        assert await attempt(lambda: (3, []), "web") == (3, [])
        assert forked._stuck == {}

    asyncio.run(main())
    os.close(end)
    assert left()[0] == ""


def test_a_child_that_has_answered_may_end_later_and_counts_if_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exit_now = os._exit
    end, release = os.pipe()
    monkeypatch.setattr(os, "_exit", lambda status: (os.read(end, 1), exit_now(status)))
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    monkeypatch.setattr(forked, "_REAP_SECONDS", 0.05)

    async def main() -> None:
        answer = await forked.run_in_child(
            lambda: (1, []), "the work", fds=[end], instance="web", await_exit=False
        )
        assert answer == (1, []) and left()[0] != ""
        await until(lambda: forked._stuck)
        os.close(release)
        await until(lambda: not forked._stuck)
        assert left()[0] == ""

    asyncio.run(main())
    os.close(end)


def test_a_child_has_the_descriptors_that_it_is_given_and_no_others() -> None:
    """A child that never ended held the console of another instance, whose init waited for its
    end."""
    reading, writing = os.pipe()
    mine = os.open("/", os.O_PATH)

    def held() -> forked.Result:
        return sorted(map(int, os.listdir("/proc/self/fd"))), []

    try:
        found, _ = asyncio.run(forked.run_in_child(held, "the work", fds=[mine]))
    finally:
        for fd in (reading, writing, mine):
            os.close(fd)
    # The others are the channel, and that of the listing itself.
    assert mine in found and {reading, writing}.isdisjoint(found) and len(found) <= 6
