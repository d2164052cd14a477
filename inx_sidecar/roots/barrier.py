"""Hold a garbage collection at its first step until the sidecar has rooted what was registered.

A collection opens `gcroots`, then `temproots`. Each opening waits until the sidecar has rooted all
that is registered by then; the first one also until everything was compared. A sidecar that does
not answer is waited for `SECONDS`: longer than systemd takes to end one that hangs (WatchdogSec= of
its unit) or to stop one (TimeoutStopSec=), so that the next one answers. A sidecar that ends
meanwhile is asked again, for no longer than `SECONDS_IN_ALL`. After that the opening continues, as
it does when this process ends.

The barrier is a process of its own: it does nothing that can block, and it outlives a crash of the
sidecar. The sidecar itself never opens the two directories.
"""

import asyncio
import logging
import os
import resource
import signal
from typing import Final

from inx_sidecar.base import paths, sidecar_client
from inx_sidecar.base.errors import InxError, RootError, UnsupportedError
from inx_sidecar.base.systemd_notify import notify, send_keep_alives
from inx_sidecar.kernel.fanotify import OpenRequest, PermissionGroup, is_unsupported

SECONDS: Final = 45.0
SECONDS_IN_ALL: Final = 120.0
_MARK_SECONDS: Final = 600.0
_SLOW_SECONDS: Final = 1.0
# Every user may list the directories. So at most this many requests to the sidecar run at once;
# openings that arrive meanwhile share the next request.
_AT_ONCE: Final = 8

# What is registered must be rooted. A comparison also drops roots of links that are gone.
_REQUESTS: Final = {
    paths.HOST_GCROOTS: (sidecar_client.DRAIN, sidecar_client.SYNC),
    paths.HOST_TEMPROOTS: (sidecar_client.DRAIN,),
}
_UNANSWERED: Final = {
    sidecar_client.DRAIN: "roots may be missing",
    sidecar_client.SYNC: "what is unlinked inside may not be collected yet",
}

log = logging.getLogger(__name__)


def probe() -> None:
    """UnsupportedError if the kernel cannot hold an opening; RootError if it cannot now."""
    try:
        group = PermissionGroup()
        try:
            group.mark(paths.GCROOTS)
        finally:
            group.close()
    except OSError as error:
        if not is_unsupported(error):
            raise RootError(
                f"cannot hold collections now ({error.filename}: {error.strerror}); trying again"
            ) from None
        raise UnsupportedError(
            f"this kernel cannot hold a collection ({error.filename}: {error.strerror}); it needs "
            "CONFIG_FANOTIFY_ACCESS_PERMISSIONS"
        ) from None


async def guard() -> None:
    """Hold collections until SIGTERM."""
    probe()
    barrier = _Barrier()
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_reader(barrier.group.fd, barrier.read_openings)
    keep_alives = asyncio.create_task(send_keep_alives())
    barrier.mark()
    notify("READY=1\nSTATUS=holding collections until all roots stand")
    while not stopping.is_set():
        try:
            async with asyncio.timeout(_MARK_SECONDS):
                await stopping.wait()
        except TimeoutError:
            barrier.mark()  # a directory may have been replaced
    keep_alives.cancel()
    loop.remove_reader(barrier.group.fd)
    await barrier.close()


class _Barrier:
    def __init__(self) -> None:
        self.group = PermissionGroup()
        # Requests to the sidecar, by device and inode number of the directory.
        self._requests: dict[tuple[int, int], tuple[str, ...]] = {}
        self._waiting: dict[tuple[str, ...], list[OpenRequest]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def mark(self) -> None:
        for directory, requests in _REQUESTS.items():
            os.makedirs(directory, mode=0o755, exist_ok=True)
            status = os.stat(directory)
            self._requests[status.st_dev, status.st_ino] = requests
            self.group.mark(directory)

    def read_openings(self) -> None:
        for opening in self.group.open_requests():
            status = os.fstat(opening.fd)
            # A directory that was replaced since the last mark: at least nothing is lost.
            drain = (sidecar_client.DRAIN,)
            requests = self._requests.get((status.st_dev, status.st_ino), drain)
            self._waiting.setdefault(requests, []).append(opening)
            self._ask()

    async def close(self) -> None:
        """Allow every opening that waits."""
        waiting, self._waiting = self._waiting, {}
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for opening in (opening for openings in waiting.values() for opening in openings):
            self.group.allow(opening)
        self.group.close()

    def _ask(self) -> None:
        while self._waiting and len(self._tasks) < _AT_ONCE:
            requests = next(iter(self._waiting))  # those of the opening that waits longest
            openings = self._waiting.pop(requests)
            task = asyncio.create_task(allow_when_rooted(self.group, openings, requests))
            self._tasks.add(task)
            task.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._ask()


async def allow_when_rooted(
    group: PermissionGroup, openings: list[OpenRequest], requests: tuple[str, ...]
) -> None:
    """Allow `openings` once the sidecar has answered all `requests`, or is not waited for."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for opening in openings:
        raise_file_limit(opening.pid)
    process = f"process {openings[0].pid}"
    request = ""
    try:
        async with asyncio.timeout(SECONDS_IN_ALL):
            for request in requests:
                await _await_answer(request, process)
    except TimeoutError:
        log.error(
            "%s waited %.0f s and goes on: the sidecar does not answer, %s",
            process, loop.time() - begin, _UNANSWERED[request],
        )  # fmt: skip
    except InxError as error:
        log.error("%s goes on: %s", process, error)
    finally:
        for opening in openings:
            try:
                group.allow(opening)
            except OSError as error:
                log.debug("process %d: %s", opening.pid, error)  # it was killed meanwhile
    took = loop.time() - begin
    if took > _SLOW_SECONDS:
        log.info("%s waited %.1f s for roots to be made", process, took)


def raise_file_limit(pid: int) -> None:
    """Let process `pid`, perhaps a collector, open as many files as it may.

    A collector opens each directory above the one that it deletes (libutil, deletePath). A
    container can add a store path with more levels than the soft limit of files allows, and each
    collection would fail.
    """
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    except OSError as error:
        log.debug("process %d: %s", pid, error)  # it has ended, or is another user's


async def _await_answer(request: str, process: str) -> None:
    """TimeoutError if a sidecar does not answer within `SECONDS`."""
    while True:
        async with asyncio.timeout(SECONDS):
            answer = await sidecar_client.ask_once(request)
        if answer is not None:
            break
        await asyncio.sleep(sidecar_client.RETRY_SECONDS)
    status, sentence = answer
    if status:
        log.warning("%s goes on, not all roots stand: %s", process, sentence)
