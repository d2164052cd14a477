"""Hold a garbage collection at its first step until the sidecar has rooted what was registered.

A collection, and whatever else looks for roots, opens `gcroots` and later `temproots`. Each opening
waits until the sidecar has taken all that was registered; the first also until all was compared. A
sidecar that does not answer is waited for `SECONDS`, one that ends meanwhile is asked again, for no
longer than `SECONDS_IN_ALL`; then, and if this process ends, the opening goes on.

A process of its own, which does nothing that can hang, and which outlives a crash of the sidecar.
The sidecar itself never opens the two directories.
"""

import asyncio
import logging
import os
import signal
from typing import Final

from inx_sidecar.base import paths, sidecar_client
from inx_sidecar.base.errors import InxError, UnsupportedError
from inx_sidecar.base.systemd_notify import live, notify
from inx_sidecar.kernel.fanotify import Gate, Opening

SECONDS: Final = 5.0
SECONDS_IN_ALL: Final = 15.0
_MARK_SECONDS: Final = 600.0
_SLOW_SECONDS: Final = 1.0
# Anybody may list the directories: so many questions at once, the others are asked together.
_AT_ONCE: Final = 8

# Taken is what must be: a comparison drops what is gone, too.
_QUESTIONS: Final = {
    paths.HOST_GCROOTS: (sidecar_client.DRAIN, sidecar_client.SYNC),
    paths.HOST_TEMPROOTS: (sidecar_client.DRAIN,),
}
_UNANSWERED: Final = {
    sidecar_client.DRAIN: "roots may be missing",
    sidecar_client.SYNC: "what is unlinked inside may not be collected yet",
}

log = logging.getLogger(__name__)


def probe() -> None:
    """UnsupportedError if the kernel cannot do it."""
    try:
        gate = Gate()
        try:
            gate.mark(paths.GCROOTS)
        finally:
            gate.close()
    except OSError as error:
        raise UnsupportedError(
            f"this kernel cannot hold a collection ({error.filename}: {error.strerror}); it needs "
            "CONFIG_FANOTIFY_ACCESS_PERMISSIONS"
        ) from None


async def guard() -> None:
    """Until SIGTERM."""
    probe()
    barrier = _Barrier()
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_reader(barrier.gate.fd, barrier.hear)
    alive = asyncio.create_task(live())
    barrier.mark()
    notify("READY=1\nSTATUS=holding collections until all roots stand")
    while not stopping.is_set():
        try:
            async with asyncio.timeout(_MARK_SECONDS):
                await stopping.wait()
        except TimeoutError:
            barrier.mark()  # a directory may have been replaced
    alive.cancel()
    loop.remove_reader(barrier.gate.fd)
    await barrier.close()


class _Barrier:
    def __init__(self) -> None:
        self.gate = Gate()
        self._questions: dict[tuple[int, int], tuple[str, ...]] = {}
        self._waiting: dict[tuple[str, ...], list[Opening]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def mark(self) -> None:
        for directory, words in _QUESTIONS.items():
            os.makedirs(directory, mode=0o755, exist_ok=True)
            status = os.stat(directory)
            self._questions[status.st_dev, status.st_ino] = words
            self.gate.mark(directory)

    def hear(self) -> None:
        for opening in self.gate.openings():
            status = os.fstat(opening.fd)
            words = self._questions.get((status.st_dev, status.st_ino), (sidecar_client.DRAIN,))
            self._waiting.setdefault(words, []).append(opening)
            self._ask()

    async def close(self) -> None:
        """All go on."""
        waiting, self._waiting = self._waiting, {}
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for opening in (opening for openings in waiting.values() for opening in openings):
            self.gate.let_through(opening)
        self.gate.close()

    def _ask(self) -> None:
        while self._waiting and len(self._tasks) < _AT_ONCE:
            words = next(iter(self._waiting))  # who came first
            openings = self._waiting.pop(words)
            task = asyncio.create_task(hold(self.gate, openings, words))
            self._tasks.add(task)
            task.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._ask()


async def hold(gate: Gate, openings: list[Opening], words: tuple[str, ...]) -> None:
    """Let `openings` through once the sidecar has answered all `words`."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    who = f"process {openings[0].pid}"
    word = ""
    try:
        async with asyncio.timeout(SECONDS_IN_ALL):
            for word in words:
                await _answered(word, who)
    except TimeoutError:
        log.error(
            "%s waited %.0f s and goes on: the sidecar does not answer, %s",
            who, loop.time() - begin, _UNANSWERED[word],
        )  # fmt: skip
    except InxError as error:
        log.error("%s goes on: %s", who, error)
    finally:
        for opening in openings:
            try:
                gate.let_through(opening)
            except OSError as error:
                log.debug("process %d: %s", opening.pid, error)  # it was killed meanwhile
    took = loop.time() - begin
    if took > _SLOW_SECONDS:
        log.info("%s waited %.1f s for roots to be made", who, took)


async def _answered(word: str, who: str) -> None:
    while True:
        async with asyncio.timeout(SECONDS):
            answer = await sidecar_client.ask_once(word)
        if answer is not None:
            break
        await asyncio.sleep(sidecar_client.PAUSE)
    status, sentence = answer
    if status:
        log.warning("%s goes on, not all roots stand: %s", who, sentence)
