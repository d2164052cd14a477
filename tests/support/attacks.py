"""Run the programs of `support.attacker` inside an instance, or on the host."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import IO, Any

from support.attacker.registering import flood
from support.attacker.stalling import never_answer
from support.disposable import Host
from support.incus import Incus

# The copy of the project on the host, where Python must not write its caches.
ON_HOST = {"PYTHONPATH": "/root/inx/tests", "PYTHONDONTWRITEBYTECODE": "1"}


def command_inside(incus: Incus, name: str, function: Callable[..., Any]) -> list[str]:
    """The command line for the host that runs `function` as root of the container.

    The function is one of `support.attacker`, and reads its arguments from stdin. The filter of
    system calls that Incus adds does not hold for the function.
    """
    pid = incus.pid(name)
    assert pid, f"{name} does not run"
    return _command(function, pid)


def _command(function: Callable[..., Any], pid: int) -> list[str]:
    variables = [f"{key}={value}" for key, value in ON_HOST.items()]
    words = [str(pid), function.__module__, function.__name__]
    return ["env", *variables, "python3", "-m", "support.attacker", *words]


def inside(incus: Incus, name: str, function: Callable[..., Any], *args: Any) -> Any:
    """What `function` gives as root of the container."""
    argv = command_inside(incus, name, function)
    return json.loads(incus.host.run(argv, input=json.dumps(args)).stdout)


@contextlib.contextmanager
def stalled(
    incus: Incus, name: str, place: str, how: Callable[..., Any] = never_answer
) -> Iterator[IO[str]]:
    """While the block runs, a file system at `place` inside never answers.

    The file that the block gets has a line `"asked"` for each request to that file system. At the
    end the instance is stopped: only that lets the processes go that wait for an answer.
    """
    argv = incus.host.enter(command_inside(incus, name, how))
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as stall:
        try:
            assert stall.stdin and stall.stdout
            stall.stdin.write(json.dumps([place]))
            stall.stdin.close()
            assert stall.stdout.readline() == '"mounted"\n'
            yield stall.stdout
        finally:
            incus("stop", "-f", name, check=False)
            stall.kill()


def flooded(
    incus: Incus, name: str, connections: int, length: int = 0
) -> contextlib.AbstractContextManager[None]:
    """While the block runs, root inside registers GC roots without end, by `connections`."""
    return attacking(incus, name, flood, connections, "/root/flood-", length)


@contextlib.contextmanager
def attacking(incus: Incus, name: str, function: Callable[..., Any], *args: Any) -> Iterator[None]:
    """While the block runs, `function` runs inside; it has told that it began."""
    with _running(incus, name, function, args) as process:
        assert process.stdout and process.stdout.readline() == '"begun"\n'
        yield


@contextlib.contextmanager
def staying_inside(
    incus: Incus, name: str, function: Callable[..., Any], *args: Any
) -> Iterator[IO[str]]:
    """While the block runs, `function` runs as root of the container; the block gets its output.

    What the function started inside ends with the instance.
    """
    with _running(incus, name, function, args) as process:
        assert process.stdout
        try:
            yield process.stdout
        finally:
            incus("stop", "-f", name, check=False)


@contextlib.contextmanager
def _running(
    incus: Incus, name: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> Iterator[subprocess.Popen[str]]:
    argv = incus.host.enter(command_inside(incus, name, function))
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdin
            process.stdin.write(json.dumps(args))
            process.stdin.close()
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):  # it ended with its instance
                os.killpg(process.pid, signal.SIGKILL)


def on_host(host: Host, function: Callable[..., Any], *args: Any) -> Any:
    """What `function` gives as root of the host."""
    return json.loads(host.run(_command(function, 0), input=json.dumps(args)).stdout)
