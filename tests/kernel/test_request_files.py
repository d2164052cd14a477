"""The hooks of a start ask in files, without a process of Python, and by the socket as soon as that
fails. The hooks run as LXC runs them; a script in the place of Python writes down its arguments."""

import asyncio
import functools
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from support.disposable import REPO, tree
from support.waiting import SECONDS, eventually, until

from inx_sidecar import request_files, server
from inx_sidecar.base import paths
from inx_sidecar.incus.instance import LxcFacts
from inx_sidecar.request_files import PLACES, RequestFiles

pytestmark = pytest.mark.main

FACTS: Final = {
    "LXC_NAME": "shop_web",
    "LXC_PID": "4711",
    "LXC_ROOTFS_PATH": "/var/lib/incus/a b'\"$x/rootfs",
    "LXC_CONFIG_FILE": "/run/incus/web/lxc.conf",
}
# Long for an answer, and well below the five seconds that a hook waits for one.
PROMPT: Final = 2.5
Answer = Callable[[bytes], Coroutine[Any, Any, bytes]]


@functools.cache
def busybox() -> str:
    """Not at the import: the tree may have to be made, which takes minutes."""
    return f"{tree()}/usr/bin/busybox"


class Hooks:
    """The hooks pre-start and mount, with the paths of this test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked_by_socket = directory / "arguments"
        self.output = directory / "output"
        python = directory / "python"
        # As `ask`, it has no other facts than those of LXC.
        python.write_text(
            f'#!{busybox()} sh\nshift 3\nfor word in "$@"; do printf "%s|" "$word"; done'
            f" >{self.asked_by_socket}.new\nexport -p >{directory}/variables\n"
            f"{busybox()} mv {self.asked_by_socket}.new {self.asked_by_socket}\nexit 9\n"
        )
        for name in ("ask", "pre-start", "mount"):
            text = (REPO / "hooks" / name).read_text()
            text = text.replace("/opt/inx/libexec/inx/busybox", busybox())
            text = text.replace("/opt/inx/bin/python", str(python))
            (directory / name).write_text(text.replace("/run/inx/hooks", paths.HOOK_REQUESTS))
        for path in directory.iterdir():
            path.chmod(0o755)

    def begin(self, kind: str = "mount", **environment: str) -> subprocess.Popen[bytes]:
        # LXC gives a hook one line of a shell (lxc src/lxc/utils.c).
        with self.output.open("a") as output:
            return subprocess.Popen(
                ["/bin/sh", "-c", f"exec {self.directory}/{kind}"],
                env=FACTS | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def run(self, kind: str = "mount", **environment: str) -> int:
        self.asked_by_socket.unlink(missing_ok=True)
        process = self.begin(kind, **environment)
        await asyncio.to_thread(process.wait, SECONDS)
        assert self.output.read_text() == ""
        return process.returncode

    def arguments(self) -> list[str] | None:
        """Those of Python; None if it was not started."""
        if not self.asked_by_socket.exists():
            return None
        return self.asked_by_socket.read_text().split("|")[:-1]


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hooks:
    monkeypatch.setattr(paths, "HOOK_REQUESTS", str(tmp_path / "hooks"))
    (tmp_path / "scripts").mkdir()
    return Hooks(tmp_path / "scripts")


def with_sidecar(answer: Answer, body: Callable[[RequestFiles], Awaitable[None]]) -> None:
    async def main() -> None:
        files = RequestFiles(answer)
        files.open()
        try:
            await body(files)
        finally:
            files.close()

    asyncio.run(main())


async def allow(_: bytes) -> bytes:
    return b"0\n"


def test_a_start_that_is_allowed_starts_no_python_and_sends_all_facts(hooks: Hooks) -> None:
    requests: list[bytes] = []

    async def answer(request: bytes) -> bytes:
        requests.append(request)
        return b"0\n"

    async def body(_: RequestFiles) -> None:
        assert await hooks.run("pre-start") == 0 and hooks.arguments() is None
        assert await hooks.run("mount") == 0 and hooks.arguments() is None

    with_sidecar(answer, body)
    facts = LxcFacts(*(FACTS[f"LXC_{name}"] for name in ("NAME", "ROOTFS_PATH", "CONFIG_FILE")))
    assert [server.parse(request) for request in requests] == [
        server.Request("pre-start", facts, 0, ""),
        server.Request("mount", facts, 4711, ""),
    ]


def test_the_hooks_are_the_same_but_for_their_names() -> None:
    def code(name: str) -> str:
        text = (REPO / "hooks" / name).read_text()
        return re.sub("(?m)^#.*\n", "", text).replace(name, "KIND")

    assert code("pre-start") == code("mount")


def test_a_refusal_goes_to_python_with_its_reason_and_is_not_asked_for_again(hooks: Hooks) -> None:
    reason = "user.inx.flake of 'wéb' is \"$(id)\" * `id` \\n;  see 'docs'"

    async def refuse(_: bytes) -> bytes:
        return f"20\n{reason}\nand more".encode()

    async def body(_: RequestFiles) -> None:
        assert await hooks.run("pre-start") == 9
        assert hooks.arguments() == ["pre-start", "20", f"{' '.join(reason.split())} and more"]

    with_sidecar(refuse, body)
    variables = (hooks.directory / "variables").read_text()
    assert set(re.findall(r"export (LXC_\w+|status)=", variables)) == {*FACTS, "LXC_TARGET"}


def test_a_long_reason_is_cut_and_blocks_nothing(hooks: Hooks) -> None:
    async def refuse(_: bytes) -> bytes:
        return b"24\n" + b"x" * 200_000

    async def body(_: RequestFiles) -> None:
        assert await hooks.run() == 9
        arguments = hooks.arguments()
        assert arguments and arguments[1] == "24" and len(arguments[2]) > 30_000

    with_sidecar(refuse, body)


def test_without_a_directory_the_hook_asks_by_the_socket(hooks: Hooks) -> None:
    assert asyncio.run(hooks.run()) == 9
    assert hooks.arguments() == ["mount", "", ""]


def test_a_half_installed_hook_asks_by_the_socket(hooks: Hooks) -> None:
    (hooks.directory / "ask").unlink()
    (hooks.directory / "trap").write_text("")

    async def body(_: RequestFiles) -> None:
        assert await hooks.run(PATH=str(hooks.directory)) == 9
        assert hooks.arguments() == ["mount", "", ""]

    with_sidecar(allow, body)


@contextmanager
def forked_sidecar(answer: Answer) -> Iterator[int]:
    """The PID of a process that takes requests, and is killed at the end."""
    pid = os.fork()
    if pid == 0:

        async def body(_: RequestFiles) -> None:
            await asyncio.Event().wait()

        with_sidecar(answer, body)
        os._exit(0)
    try:
        eventually(lambda: Path(paths.HOOK_REQUESTS).exists())
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_sidecar_that_was_killed_is_noticed_at_once_by_every_hook(hooks: Hooks) -> None:
    """Its directory is still there. More hooks come than it has places."""
    with forked_sidecar(allow):
        pass
    begin = time.monotonic()
    for _ in range(len(PLACES) + 3):
        assert asyncio.run(hooks.run()) == 9
        assert hooks.arguments() == ["mount", "", ""]
    assert time.monotonic() - begin < PROMPT

    async def body(_: RequestFiles) -> None:
        assert await hooks.run() == 0, "the next sidecar takes requests"

    with_sidecar(allow, body)


def test_a_hook_that_waits_notices_that_the_sidecar_is_killed(hooks: Hooks) -> None:
    asked = hooks.directory / "asked"

    async def never(_: bytes) -> bytes:
        asked.touch()
        await asyncio.Event().wait()
        raise AssertionError

    with forked_sidecar(never):
        process = hooks.begin()
        eventually(asked.exists)
        assert process.poll() is None
        begin = time.monotonic()
    assert process.wait(SECONDS) == 9 and time.monotonic() - begin < PROMPT
    assert hooks.arguments() == ["mount", "", ""]


def test_a_sidecar_that_does_not_answer_is_asked_by_the_socket(hooks: Hooks) -> None:
    """The file is complete, and nobody reads it: the sidecar hangs."""
    ask = hooks.directory / "ask"
    text = ask.read_text()
    assert text.count("read -r -t 5 ") == 1
    ask.write_text(text.replace("read -r -t 5 ", "read -r -t 1 "))
    with forked_sidecar(allow) as pid:
        os.kill(pid, signal.SIGSTOP)
        assert asyncio.run(hooks.run(status="0", reason="x")) == 9
        assert hooks.arguments() == ["mount", "", ""]


def test_a_hook_that_asks_by_the_socket_as_well_is_answered_once(hooks: Hooks) -> None:
    """A start that takes long is not decided twice, and no other process gets its answer."""
    go, requests = asyncio.Event(), []

    async def answer(request: bytes) -> bytes:
        requests.append(request)
        await go.wait()
        return f"{len(requests)}\n".encode()

    async def body(files: RequestFiles) -> None:
        process = hooks.begin("pre-start")
        await until(lambda: requests)
        (request,) = requests
        by_socket = asyncio.create_task(files.answer_to(process.pid, request))
        other = asyncio.create_task(files.answer_to(process.pid + 1, request))
        later = asyncio.create_task(files.answer_to(process.pid, request + b"x"))
        await until(lambda: len(requests) == 3)
        by_socket.cancel()  # the client has gone: the hook gets its answer nevertheless
        again = asyncio.create_task(files.answer_to(process.pid, request))
        await asyncio.sleep(0)
        go.set()
        assert [await task for task in (again, other, later)] == [b"3\n"] * 3
        assert await asyncio.to_thread(process.wait, SECONDS) == 9
        assert hooks.arguments() == ["pre-start", "3", ""]
        assert len(requests) == 3
        assert await files.answer_to(process.pid, request) == b"4\n"

    with_sidecar(answer, body)


def test_each_of_many_hooks_gets_its_own_answer(hooks: Hooks) -> None:
    """Also where the answers come in another order than the requests."""

    async def answer(request: bytes) -> bytes:
        parsed = server.parse(request)
        assert isinstance(parsed, server.Request)
        number = int(parsed.facts.lxc_name)
        await asyncio.sleep(0.001 * (number % 7))
        return f"{20 + number}\n".encode()

    async def body(_: RequestFiles) -> None:
        for number in range(40):
            (hooks.directory / f"{number}").mkdir()
        many = [Hooks(hooks.directory / f"{number}") for number in range(40)]
        started = [own.begin(LXC_NAME=f"{number}") for number, own in enumerate(many)]
        for process in started:
            await asyncio.to_thread(process.wait, SECONDS)
        found = [own.arguments() for own in many]
        # Some found no free place.
        by_socket = [number for number, words in enumerate(found) if words == ["mount", "", ""]]
        for number in set(range(40)).difference(by_socket):
            assert found[number] == ["mount", str(20 + number), ""]
        assert len(by_socket) < 40

    with_sidecar(answer, body)


def test_hooks_that_are_killed_leave_their_places_to_others(hooks: Hooks) -> None:
    async def body(_: RequestFiles) -> None:
        for number in range(3 * len(PLACES)):
            process = hooks.begin()
            await asyncio.sleep(number / 5000)
            os.killpg(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait, SECONDS)
        await until(lambda: not os.listdir(f"{paths.HOOK_REQUESTS}/in"))
        assert sorted(os.listdir(f"{paths.HOOK_REQUESTS}/out")) == list(PLACES)
        assert await hooks.run() == 0

    with_sidecar(allow, body)


def test_a_part_of_a_request_is_no_request(hooks: Hooks) -> None:
    """The PID of a request that was cut would be that of another process."""
    requests: list[bytes] = []

    async def answer(request: bytes) -> bytes:
        requests.append(request)
        return b"0\n"

    async def body(_: RequestFiles) -> None:
        whole = "\0".join(
            ["mount", *(f"{key}={value}" for key, value in FACTS.items()), "HOOK_PID=7", "END"]
        )
        for length in range(0, len(whole), 7):
            Path(paths.HOOK_REQUESTS, "in", "3").write_text(whole[:length])
            await until(lambda: not os.listdir(f"{paths.HOOK_REQUESTS}/in"))
        assert requests == []
        assert await hooks.run() == 0

    with_sidecar(answer, body)


def test_a_hook_without_a_free_place_asks_by_the_socket(hooks: Hooks) -> None:
    async def body(_: RequestFiles) -> None:
        held = [open(f"{paths.HOOK_REQUESTS}/in/{place}", "x") for place in PLACES]
        assert await hooks.run() == 9 and hooks.arguments() == ["mount", "", ""]
        for file in held:
            file.close()
        await until(lambda: not os.listdir(f"{paths.HOOK_REQUESTS}/in"))
        assert await hooks.run() == 0

    with_sidecar(allow, body)


def test_a_fifo_that_is_missing_keeps_nobody_from_a_start(hooks: Hooks) -> None:
    async def body(_: RequestFiles) -> None:
        for place in PLACES:
            os.unlink(f"{paths.HOOK_REQUESTS}/out/{place}")
        assert await hooks.run() == 9 and hooks.arguments() == ["mount", "", ""]
        await until(lambda: not os.listdir(f"{paths.HOOK_REQUESTS}/in"))
        assert await hooks.run() == 0, "the place has a fifo again"

    with_sidecar(allow, body)


def test_a_request_that_is_taken_away_costs_no_place(hooks: Hooks) -> None:
    async def body(_: RequestFiles) -> None:
        for place in PLACES:
            with open(f"{paths.HOOK_REQUESTS}/in/{place}", "x") as file:
                os.unlink(file.name)
                os.unlink(f"{paths.HOOK_REQUESTS}/out/{place}")
            await until(Path(f"{paths.HOOK_REQUESTS}/out/{place}").is_fifo)
        assert await hooks.run() == 0

    with_sidecar(allow, body)


def test_the_environment_of_an_instance_changes_nothing(hooks: Hooks, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("ask", "printf", "read", "cd", "exec", "[", "profile", "env"):
        (trap / name).write_text(f"#!{busybox()} sh\n: >{trap}/sprung\n")
        (trap / name).chmod(0o755)
    hostile = {
        "PATH": str(trap),
        "ENV": f"{trap}/profile",
        "BASH_ENV": f"{trap}/profile",
        "CDPATH": str(trap),
        "IFS": "0123456789/",
        "PS4": f"$(: >{trap}/sprung)",
        "SHELLOPTS": "xtrace:noexec",
        "OPTIND": "9",
        "TMOUT": "1",
        "LC_ALL": "xx_YY.UTF-16",
        "POSIXLY_CORRECT": "1",
        "place": "../../x",
        "status": "0",
        "reason": "none",
    }

    async def refuse(_: bytes) -> bytes:
        return b"21\nno"

    async def body(_: RequestFiles) -> None:
        assert await hooks.run("pre-start", **hostile) == 9
        assert hooks.arguments() == ["pre-start", "21", "no"]

    with_sidecar(refuse, body)
    (hooks.directory / "ask").unlink()
    assert asyncio.run(hooks.run("pre-start", **hostile)) == 9
    assert hooks.arguments() == ["pre-start", "", ""]
    assert not (trap / "sprung").exists()


def test_only_root_can_reach_the_requests(hooks: Hooks) -> None:
    async def body(_: RequestFiles) -> None:
        assert stat.S_IMODE(os.stat(paths.HOOK_REQUESTS).st_mode) == 0o700

    with_sidecar(allow, body)
    assert not Path(paths.HOOK_REQUESTS).exists(), "a sidecar that ends takes it away"


def test_without_inotify_hooks_ask_by_the_socket(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_inotify(**_: object) -> None:
        raise OSError(24, "Too many open files")

    async def body(_: RequestFiles) -> None:
        assert await hooks.run() == 9 and hooks.arguments() == ["mount", "", ""]

    monkeypatch.setattr(request_files, "INotify", no_inotify)
    with_sidecar(allow, body)
    assert "hooks ask by the socket alone: Too many open files" in caplog.text
