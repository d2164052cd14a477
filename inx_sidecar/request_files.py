"""Requests of hooks in files: a hook that is only a shell script (hooks/ask) has no socket.

/run/inx/hooks has some places, each a file name in two directories. A hook makes the file
`in/PLACE`, which no other process can have made (O_EXCL), opens the fifo `out/PLACE`, writes its
request to the file and closes it. The sidecar takes the file and the fifo away, makes another fifo
for the next hook, and answers by the fifo that the hook has open. A fifo has one request and one
answer, so that nobody reads what was meant for another hook.

A hook whose answer takes long asks by the socket as well. It is the same process then, so that
request is not carried out a second time.

The sidecar alone has the other end of a fifo: if it ends, or has ended, the hook reads the end of
the file at once, and asks by the socket. A new sidecar makes another directory; a hook that has
entered the former one finds no sidecar there.
"""

import asyncio
import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Coroutine
from typing import Any, Final

from inotify_simple import INotify, flags

from inx_sidecar.base import paths
from inx_sidecar.kernel.user_counts import counted_apart

# As in hooks/ask. A hook that finds no place asks by the socket.
PLACES: Final = tuple(map(str, range(8)))
# A complete request: a hook that is killed may leave a part of one.
_COMPLETE: Final = re.compile(rb"(.*)\0HOOK_PID=([0-9]{1,10})\0END", re.DOTALL)
_REQUEST_MAX: Final = 1 << 16
# A pipe takes this without a reader (pipe(7)).
_ANSWER_MAX: Final = 1 << 15

log = logging.getLogger(__name__)


class RequestFiles:
    """`answer` gives the exit status and the message for a request, as for one on the socket."""

    def __init__(self, answer: Callable[[bytes], Coroutine[Any, Any, bytes]]) -> None:
        self._answer = answer
        self._inotify: INotify | None = None
        # By place: the fifo that the next hook opens.
        self._fifos: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # By the process of the hook and the facts of LXC: the answer that it waits for.
        self._answers: dict[tuple[int, bytes], asyncio.Task[bytes]] = {}

    def open(self) -> None:
        """Take requests from now on. If that is not possible, all hooks ask by the socket."""
        _remove_directory()
        new = f"{paths.HOOK_REQUESTS}.new"
        shutil.rmtree(new, ignore_errors=True)
        try:
            for directory in (new, f"{new}/in", f"{new}/out"):
                os.mkdir(directory, 0o700)
            with counted_apart():
                self._inotify = INotify(nonblocking=True)
            self._inotify.add_watch(f"{new}/in", flags.CLOSE_WRITE | flags.ONLYDIR)
            for place in PLACES:
                self._make_fifo(new, place)
            os.rename(new, paths.HOOK_REQUESTS)
        except OSError as error:
            log.warning("hooks ask by the socket alone: %s", error.strerror)
            self.close()
        else:
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._read_events)

    def close(self) -> None:
        """Take no more requests. Those that wait for an answer get it until the sidecar ends."""
        _remove_directory()
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None
        for fifo in self._fifos.values():
            os.close(fifo)
        self._fifos.clear()

    async def answer_to(self, pid: int, request: bytes) -> bytes:
        """The answer to `request` of process `pid` on the socket: that to its request in a file, if
        it waits for one."""
        asked = self._answers.get((pid, request.partition(b"\0")[2]))
        return await (self._answer(request) if asked is None else asyncio.shield(asked))

    def _make_fifo(self, directory: str, place: str) -> None:
        path = f"{directory}/out/{place}"
        os.mkfifo(path, 0o600)
        # Opened for reading, too: so the open waits for nobody (fifo(7)).
        self._fifos[place] = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def _read_events(self) -> None:
        assert self._inotify is not None
        for event in self._inotify.read(timeout=0):
            if event.name in self._fifos:
                self._take(event.name)

    def _take(self, place: str) -> None:
        """Begin to answer the request at `place`, and let another hook use the place."""
        fifo = self._fifos.pop(place)
        path = f"{paths.HOOK_REQUESTS}/in/{place}"
        request = b""
        try:
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                request = file.read(_REQUEST_MAX)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{paths.HOOK_REQUESTS}/out/{place}")
            self._make_fifo(paths.HOOK_REQUESTS, place)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            log.warning("hooks use the place %s no more: %s", place, error.strerror)
        if found := _COMPLETE.fullmatch(request):
            task = asyncio.create_task(self._carry_out(found[1], int(found[2]), fifo))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            os.close(fifo)

    async def _carry_out(self, request: bytes, pid: int, fifo: int) -> None:
        asked = pid, request.partition(b"\0")[2]
        answer = self._answers[asked] = asyncio.create_task(self._answer(request))
        try:
            status, _, message = (await answer).partition(b"\n")
            line = b" ".join((status, *message.split()))[:_ANSWER_MAX]
            os.write(fifo, line + b"\n")
        finally:
            del self._answers[asked]
            os.close(fifo)


def _remove_directory() -> None:
    """Under another name first: a hook that comes meanwhile finds all of it, or nothing."""
    former = f"{paths.HOOK_REQUESTS}.former"
    with contextlib.suppress(OSError):
        shutil.rmtree(former, ignore_errors=True)
        os.rename(paths.HOOK_REQUESTS, former)
        shutil.rmtree(former, ignore_errors=True)
