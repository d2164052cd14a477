"""Run a function in a forked child: what it does to its namespaces and its user stays there."""

import asyncio
import gc
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from inx_sidecar.base.errors import InxError, MountError

_SECONDS: Final = 20.0
_REAP_SECONDS: Final = 2.0
_MESSAGE_MAX: Final = 1 << 16
_IN_A_FILE: Final = b"memfd"
_FDS_MAX: Final = 16
_TRACE_MAX: Final = 4000

# A value that JSON can carry, and file descriptors to hand to the parent.
Result = tuple[Any, list[int]]


class TookTooLongError(MountError):
    """The child did not end in time; `ended` is done when it has, which may be never."""

    def __init__(self, message: str, ended: asyncio.Future[None]) -> None:
        super().__init__(message)
        self.ended = ended


async def call(function: Callable[[], Result], what: str, seconds: float = _SECONDS) -> Result:
    """The result of `function`; MountError saying that `what` failed if it raises, and
    TookTooLongError if it does not end within `seconds`.

    An InxError comes through as it is. The child must not use the event loop.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _child(function, theirs)
    theirs.close()
    ours.setblocking(False)
    late = False
    try:
        await _readable(ours, seconds)
        message, fds, _, _ = socket.recv_fds(ours, _MESSAGE_MAX, _FDS_MAX)
    except TimeoutError:
        late = True
    finally:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        ended = await _reap(pid)
    if late:
        raise TookTooLongError(f"{what} took over {seconds:.0f} s", ended)
    if message == _IN_A_FILE:
        with open(fds.pop(), "rb") as file:
            file.seek(0)
            message = file.read()
    answer = json.loads(message or '{"bug": "the child ended without a word"}')
    if "ok" in answer:
        return answer["ok"], list(fds)
    if "bug" in answer:
        raise RuntimeError(answer["bug"])
    for kind in InxError.__subclasses__():
        if kind.__name__ == answer["kind"]:
            raise kind(answer["text"])
    raise MountError(f"{what}: {answer['text']}")


def _child(function: Callable[[], Result], channel: socket.socket) -> None:
    gc.disable()  # it would touch, and so copy, all that the parent has
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


async def _reap(pid: int) -> asyncio.Future[None]:
    """Wait a moment for the child; one that the kernel holds fast ends some time after that."""
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(pid)
    ended: asyncio.Future[None] = loop.create_future()

    def reap() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)
        _settle(ended)

    loop.add_reader(pidfd, reap)
    await asyncio.wait([ended], timeout=_REAP_SECONDS)
    return ended


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _readable(channel: socket.socket, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(channel, _settle, ready)
    try:
        async with asyncio.timeout(seconds):
            await ready
    finally:
        loop.remove_reader(channel)
