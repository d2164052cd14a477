"""Run a function in a forked child: changes to its namespaces and its user stay in the child."""

import asyncio
import gc
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final

from inx_sidecar.base.errors import InxError, MountError

_SECONDS: Final = 20.0
_REAP_SECONDS: Final = 2.0
_MESSAGE_MAX: Final = 1 << 16
_IN_A_FILE: Final = b"memfd"
_FDS_MAX: Final = 16
_STDERR: Final = 2
# The kernel has no more (fs/file.c, sysctl_nr_open_max).
_FD_MAX: Final = (1 << 31) - 1
_TRACE_MAX: Final = 4000

# By instance or group: the exits of children that were killed and did not exit.
_stuck: dict[str, set[asyncio.Future[None]]] = {}
_MAX_STUCK: Final = 3

# A value that JSON can represent, and file descriptors for the parent.
Result = tuple[Any, list[int]]


class TookTooLongError(MountError):
    """The child did not finish in time and was killed.

    `ended` is done when the child has exited. That may be never: the kernel does not kill a process
    that waits for a file system whose server does not answer.
    """

    def __init__(self, message: str, ended: asyncio.Future[None]) -> None:
        super().__init__(message)
        self.ended = ended


async def run_in_child(
    function: Callable[[], Result],
    action: str,
    seconds: float = _SECONDS,
    *,
    fds: Iterable[int] = (),
    instance: str = "",
    group: str = "",
    await_exit: bool = True,
) -> Result:
    """The result of `function`, which runs in a forked child and must not use the event loop.

    The child has the descriptors `fds` and no others of this process. A child that never ends would
    hold them for ever: the connection of a hook, or the console of another instance, whose init
    waits for its end.

    `action` names the work in errors. A direct subclass of InxError is raised here with its text,
    an OSError as MountError, anything else as RuntimeError. TookTooLongError if `function` does not
    return within `seconds`.

    `instance` names the instance whose files `function` uses, if any. MountError, and no child, if
    too many children of that instance could not be killed. `group` names children that use the
    files of no single instance, with the same bound for all of them together.

    The end of a process takes the kernel a millisecond. Without `await_exit`, a child that has
    answered ends meanwhile: it may hold what it has opened for a moment.
    """
    bound = f"instance {instance}" if instance else group
    stuck = len(_stuck.get(bound, ())) if bound else 0
    if stuck >= _MAX_STUCK and instance:
        raise MountError(
            f"{action}: {stuck} processes wait for a file system of {instance!r} that does not "
            f"answer; end it, or stop the instance with 'incus stop -f {instance}'"
        )
    if stuck >= _MAX_STUCK:
        raise MountError(
            f"{action}: {stuck} processes wait for a file system that does not answer; end it"
        )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _close_all_except({*fds, theirs.fileno()})
        _run_and_exit(function, theirs)
    theirs.close()
    ours.setblocking(False)
    late = answered = False
    try:
        await _wait_readable(ours, seconds)
        message, given, _, _ = socket.recv_fds(ours, _MESSAGE_MAX, _FDS_MAX)
        answered = True
    except TimeoutError:
        late = True
    finally:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        ended = _reap(pid)
        if await_exit or not answered:
            await asyncio.wait([ended], timeout=_REAP_SECONDS)
            _note_if_stuck(bound, ended)
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(_REAP_SECONDS, _note_if_stuck, bound, ended)
    if late:
        raise TookTooLongError(f"{action} took over {seconds:.0f} s", ended)
    if message == _IN_A_FILE:
        with open(given.pop(), "rb") as file:
            file.seek(0)
            message = file.read()
    return _result(message, list(given), action)


def _note_if_stuck(bound: str, ended: asyncio.Future[None]) -> None:
    if bound and not ended.done():
        _stuck.setdefault(bound, set()).add(ended)
        ended.add_done_callback(lambda exited: _forget_stuck(bound, exited))


def _forget_stuck(bound: str, exited: asyncio.Future[None]) -> None:
    _stuck[bound].discard(exited)
    if not _stuck[bound]:
        del _stuck[bound]


def _result(message: bytes, fds: list[int], action: str) -> Result:
    answer = json.loads(message or '{"bug": "the child ended without a word"}')
    if "ok" in answer:
        return answer["ok"], fds
    if "bug" in answer:
        raise RuntimeError(answer["bug"])
    for kind in InxError.__subclasses__():
        if kind.__name__ == answer["kind"]:
            raise kind(answer["text"])
    raise MountError(f"{action}: {answer['text']}")


def _close_all_except(kept: set[int]) -> None:
    first = _STDERR + 1
    for number in sorted(number for number in kept if number > _STDERR):
        os.closerange(first, number)
        first = number + 1
    os.closerange(first, _FD_MAX)


def _run_and_exit(function: Callable[[], Result], channel: socket.socket) -> None:
    # A collection would write to, and so copy, all objects of the parent.
    gc.disable()
    try:
        value, fds = function()
        answer: dict[str, Any] = {"ok": value}
    except InxError as error:
        answer, fds = {"kind": type(error).__name__, "text": str(error)}, []
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        answer, fds = {"kind": "OSError", "text": f"{error.strerror}{where}"}, []
    except BaseException:
        answer, fds = {"bug": traceback.format_exc()[-_TRACE_MAX:]}, []
    try:
        message = json.dumps(answer).encode()
        if len(message) > _MESSAGE_MAX:
            fds = [*fds, os.memfd_create("answer")]
            with open(fds[-1], "wb", closefd=False) as file:
                file.write(message)
            message = _IN_A_FILE
        socket.send_fds(channel, [message], fds)
    finally:
        sys.stderr.flush()
        os._exit(0)


def _reap(pid: int) -> asyncio.Future[None]:
    """Reap the killed child as soon as it has exited, which is when the future is done. A child in
    uninterruptible sleep exits later."""
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(pid)
    ended: asyncio.Future[None] = loop.create_future()

    def reap() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)
        _set_done(ended)

    loop.add_reader(pidfd, reap)
    return ended


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _wait_readable(channel: socket.socket, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(channel, _set_done, readable)
    try:
        async with asyncio.timeout(seconds):
            await readable
    finally:
        loop.remove_reader(channel)
