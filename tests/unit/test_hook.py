"""A hook sends the variables of LXC to the sidecar. The answer is its exit status and its log."""

import contextlib
import os
import posix
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disposable import REPO

from inx_sidecar import hook
from inx_sidecar.base import paths

pytestmark = pytest.mark.main

HANG = None


class Sidecar:
    """A server that answers each connection with the next of `answers`. It never answers HANG."""

    def __init__(self, path: str) -> None:
        self.answers: list[bytes | None] = []
        self.requests: list[bytes] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self._hung: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            channel, _ = self.listener.accept()
            request = b""
            while chunk := channel.recv(4096):
                request += chunk
            if request == b"end":
                channel.close()
                return
            self.requests.append(request)
            answer = self.answers.pop(0)
            if answer is HANG:
                self._hung.append(channel)
                continue
            with channel, contextlib.suppress(BrokenPipeError):  # the hook may have ended
                channel.sendall(answer)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(self.listener.getsockname())
            channel.sendall(b"end")
        self._thread.join()
        for channel in (self.listener, *self._hung):
            channel.close()


@pytest.fixture
def lxc_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment that LXC gives a hook, and the lxc.log of the instance."""
    log = tmp_path / "lxc.log"
    log.write_text("earlier\n")
    config = tmp_path / "lxc.conf"
    config.write_text(f"lxc.apparmor.profile = x\nlxc.log.file = {log}\nlxc.log.level = warn\n")
    monkeypatch.setattr(hook, "SOCKET", str(tmp_path / "sock"))
    monkeypatch.setattr(hook, "LOG", str(tmp_path / "log"))
    monkeypatch.setenv("LXC_NAME", "web")
    monkeypatch.setenv("LXC_PID", "42")
    monkeypatch.setenv("LXC_ROOTFS_PATH", "/var/lib/incus/containers/web/rootfs")
    monkeypatch.setenv("LXC_CONFIG_FILE", str(config))
    monkeypatch.delenv("LXC_TARGET", raising=False)
    return log


@pytest.fixture
def sidecar(lxc_log: Path) -> Iterator[Sidecar]:
    sidecar = Sidecar(hook.SOCKET)
    yield sidecar
    sidecar.close()


@pytest.fixture(autouse=True)
def _own_output() -> Iterator[None]:
    """A hook redirects the descriptors 1 and 2 to its own log. Restore them after the test."""
    saved = os.dup(1), os.dup(2)
    yield
    for fd, number in zip(saved, (1, 2), strict=True):
        os.dup2(fd, number)
        os.close(fd)


def run(monkeypatch: pytest.MonkeyPatch, kind: str = "pre-start", *answer: str) -> int:
    with monkeypatch.context() as patch, open(2, "w", closefd=False) as stderr:
        patch.setattr(sys, "argv", ["hook", kind, *answer])
        patch.setattr(posix, "environ", dict(os.environb))
        patch.setattr(sys, "stderr", stderr)
        stderr.reconfigure(errors="backslashreplace")  # as sys.stderr of Python has it
        return hook.main()


def own_log() -> str:
    return Path(hook.LOG, "hooks.log").read_text()


def test_a_hook_has_the_paths_of_the_sidecar() -> None:
    assert (hook.SOCKET, hook.LOG) == (paths.SOCKET, paths.LOG)


def test_a_hook_sends_the_variables_of_lxc(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar.answers = [b"0\n"]
    assert run(monkeypatch, "mount") == 0
    kind, *facts = sidecar.requests[0].decode().split("\0")
    assert kind == "start-host", "the former name, which a sidecar of the version before knows"
    assert dict(fact.split("=", 1) for fact in facts) == {
        "LXC_NAME": "web",
        "LXC_PID": "42",
        "LXC_TARGET": "",
        "LXC_ROOTFS_PATH": "/var/lib/incus/containers/web/rootfs",
        "LXC_CONFIG_FILE": os.environ["LXC_CONFIG_FILE"],
    }


def test_a_successful_hook_writes_no_log(
    sidecar: Sidecar, lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar.answers = [b"0\n"]
    assert run(monkeypatch) == 0
    assert lxc_log.read_text() == "earlier\n" and own_log() == ""


def test_a_refusal_is_the_exit_status_and_a_line_in_the_log_of_the_instance(
    sidecar: Sidecar, lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar.answers = ["20\nuser.inx.flake is 'é'".encode()]
    assert run(monkeypatch) == 20
    line = r"lxc web \d{14}\.\d{3} ERROR    inx - user\.inx\.flake is 'é'\n"
    assert re.fullmatch("earlier\n" + line, lxc_log.read_text())
    assert re.fullmatch(line, own_log())


def test_a_refusal_that_a_hook_has_got_is_shown_and_not_asked_for_again(
    sidecar: Sidecar, lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hooks/ask has asked, and passes the answer on."""
    assert run(monkeypatch, "mount", "22", "no\udcff such 'é'") == 22
    line = rb"lxc web \d{14}\.\d{3} ERROR    inx - no\xff such '\xc3\xa9'\n"
    assert re.fullmatch(b"earlier\n" + line, lxc_log.read_bytes())
    assert "such" in own_log() and sidecar.requests == []


@pytest.mark.parametrize("status", ["", "0"])
def test_a_hook_without_an_answer_asks_within_the_same_deadline(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """Nobody but the sidecar lets a start go on."""
    sidecar.answers = [b"0\n", HANG]
    assert run(monkeypatch, "mount", status, "") == 0
    assert len(sidecar.requests) == 1
    monkeypatch.setattr(hook, "DEADLINE_SECONDS", hook.ASKED_SECONDS + 0.2)
    begin = time.monotonic()
    assert run(monkeypatch, "mount", status, "") == hook.UNREACHABLE
    assert time.monotonic() - begin < hook.ASKED_SECONDS


def test_a_long_answer_is_complete(
    sidecar: Sidecar, lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar.answers = [b"24\n" + b"x" * 200_000]
    assert run(monkeypatch) == 24
    assert "x" * 200_000 in lxc_log.read_text()


def test_a_sidecar_that_ends_before_it_answers_is_asked_again(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar.answers = [b"", b"", b"0\n"]
    assert run(monkeypatch) == 0
    assert len(sidecar.requests) == 3 and len(set(sidecar.requests)) == 1


def test_a_sidecar_that_resets_the_connection_is_asked_again(
    lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sidecar ends before it has read the request. systemd keeps the socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(hook.SOCKET)
        listener.listen()

        def serve() -> None:
            listener.accept()[0].close()
            channel, _ = listener.accept()
            with channel:
                while channel.recv(4096):
                    pass
                channel.sendall(b"0\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert run(monkeypatch) == 0
        thread.join()


def test_without_a_socket_the_log_names_the_command_that_starts_it(
    lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch) == hook.UNREACHABLE
    assert "run 'systemctl start inx-sidecar.socket'" in lxc_log.read_text()


def test_a_hook_does_not_wait_for_a_socket_without_a_server(
    lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(hook.SOCKET)
    begin = time.monotonic()
    assert run(monkeypatch) == hook.UNREACHABLE
    assert time.monotonic() - begin < hook.DEADLINE_SECONDS / 2


def test_a_start_has_a_deadline(
    sidecar: Sidecar, lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "DEADLINE_SECONDS", 0.2)
    sidecar.answers = [HANG]
    assert run(monkeypatch) == hook.UNREACHABLE
    assert "did not answer within" in lxc_log.read_text()


def test_a_sidecar_that_ends_again_and_again_is_asked_until_the_deadline(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "DEADLINE_SECONDS", 0.2)
    sidecar.answers = [b""] * 1_000_000
    assert run(monkeypatch) == hook.UNREACHABLE


@pytest.mark.parametrize("answer", [b"22\nno such instance", b"", HANG])
def test_a_stop_never_fails(
    sidecar: Sidecar, lxc_log: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    monkeypatch.setattr(hook, "DEADLINE_SECONDS", 0.2)
    sidecar.answers = [answer] * 1_000_000
    assert run(monkeypatch, "stop") == 0
    assert lxc_log.read_text() == "earlier\n" and own_log() != ""


def test_a_stop_without_a_socket_does_not_fail(
    lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "stop") == 0


@pytest.mark.parametrize("config", [None, "", "/gone/lxc.conf", "/"])
def test_without_a_log_the_hook_has_the_exit_status(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, config: str | None
) -> None:
    sidecar.answers = [b"22\nbroken"]
    if config is None:
        monkeypatch.delenv("LXC_CONFIG_FILE")
    else:
        monkeypatch.setenv("LXC_CONFIG_FILE", config)
    assert run(monkeypatch) == 22
    assert "broken" in own_log()


def test_a_configuration_without_a_log_is_no_error(
    sidecar: Sidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lxc.conf").write_text("lxc.log.level = warn\nlxc.log.file =\n")
    sidecar.answers = [b"22\nbroken"]
    assert run(monkeypatch) == 22


def test_a_configuration_that_is_not_utf_8_is_read(
    sidecar: Sidecar, lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration has raw.lxc and environment.* of the instance."""
    config = Path(os.environ["LXC_CONFIG_FILE"])
    config.write_bytes(b"lxc.environment = A=\xff\n" + config.read_bytes())
    sidecar.answers = [b"22\nbroken"]
    assert run(monkeypatch) == 22
    assert "inx - broken\n" in lxc_log.read_text()


def test_a_hook_runs_without_its_log_directory(
    sidecar: Sidecar, tmp_path: Path, lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").write_text("a file")
    sidecar.answers = [b"0\n", b"22\nbroken"]
    assert run(monkeypatch) == 0
    assert run(monkeypatch) == 22
    assert "broken" in lxc_log.read_text()


def test_only_root_can_read_the_log_of_the_hooks(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar.answers = [b"0\n"]
    run(monkeypatch)
    assert Path(hook.LOG, "hooks.log").stat().st_mode & 0o777 == 0o600


def test_an_environment_that_is_not_utf_8_is_sent(
    sidecar: Sidecar, lxc_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "LXC_NAME", "w\udcff\n")
    sidecar.answers = [b"0\n", b"22\nbroken"]
    assert run(monkeypatch) == 0
    assert b"\0LXC_NAME=w\xff\n\0" in sidecar.requests[0]
    assert run(monkeypatch) == 22
    assert b"broken" in lxc_log.read_bytes()


def test_a_hook_as_lxc_runs_it(sidecar: Sidecar, lxc_log: Path, processes: None) -> None:
    """LXC sets no locale. The name is not UTF-8. The hook writes nothing to descriptors 1 and 2."""
    code = """if True:
        import sys
        sys.path.insert(0, sys.argv.pop())
        from inx_sidecar import hook
        hook.LOG, hook.SOCKET = sys.argv.pop(), sys.argv.pop()
        sys.exit(hook.main())
    """
    sidecar.answers = [b"23\nbroken"]
    environment = {"LXC_NAME": "\udcff", "LXC_CONFIG_FILE": os.environ["LXC_CONFIG_FILE"]}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, "pre-start", hook.SOCKET, hook.LOG, str(REPO)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (23, b"", b""), own_log()
    assert sidecar.requests[0].startswith(b"pre-start\0LXC_NAME=\xff\0LXC_PID=\0")
    assert b"broken" in lxc_log.read_bytes()
