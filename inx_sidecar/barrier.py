"""Hold a garbage collection at its first step until the sidecar has rooted what was registered.

A collection, and whatever else looks for roots, opens `gcroots` and later `temproots`. Each opening
waits until the sidecar has answered: at the first it compares all instances, at the second it takes
what came since. A sidecar that is being restarted is waited for, one that hangs no longer than
`SECONDS`; then, and if this process ends, the opening goes on.

A process of its own, which does nothing that can hang, and which outlives a crash of the sidecar.
The sidecar itself never opens the two directories.
"""

import asyncio
import logging
import os
import signal
import time
from typing import Final

from inx_sidecar import client, paths
from inx_sidecar.errors import InxError, UnsupportedError
from inx_sidecar.fanotify import Gate, Opening
from inx_sidecar.service import live, notify

SECONDS: Final = 5.0
_MARK_SECONDS: Final = 600.0
_SLOW_SECONDS: Final = 1.0

_DIRECTORIES: Final = {paths.HOST_GCROOTS: client.SYNC, paths.HOST_TEMPROOTS: client.DRAIN}

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
    gate = Gate()
    words: dict[tuple[int, int], str] = {}
    tasks: set[asyncio.Task[None]] = set()

    def mark() -> None:
        for directory, word in _DIRECTORIES.items():
            os.makedirs(directory, mode=0o755, exist_ok=True)
            status = os.stat(directory)
            words[status.st_dev, status.st_ino] = word
            gate.mark(directory)

    def hear() -> None:
        for opening in gate.openings():
            status = os.fstat(opening.fd)
            word = words.get((status.st_dev, status.st_ino), client.DRAIN)
            task = asyncio.create_task(_hold(gate, opening, word))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_reader(gate.fd, hear)
    alive = asyncio.create_task(live())
    mark()
    notify("READY=1\nSTATUS=holding collections until all roots stand")
    while not stopping.is_set():
        mark()  # again now and then: a directory may have been replaced
        try:
            async with asyncio.timeout(_MARK_SECONDS):
                await stopping.wait()
        except TimeoutError:
            continue
    alive.cancel()
    loop.remove_reader(gate.fd)
    gate.close()


async def _hold(gate: Gate, opening: Opening, word: str) -> None:
    begin = time.monotonic()
    try:
        async with asyncio.timeout(SECONDS):
            status, sentence = await client.ask(word)
        if status:
            log.warning("process %d goes on, not all roots stand: %s", opening.pid, sentence)
    except TimeoutError:
        log.error(
            "process %d waited %.0f s and goes on: the sidecar does not answer, roots may be "
            "missing", opening.pid, SECONDS,
        )  # fmt: skip
    except InxError as error:
        log.error("process %d goes on: %s", opening.pid, error)
    except OSError as error:
        log.error("process %d goes on: the sidecar cannot be asked: %s", opening.pid, error)
    finally:
        gate.let_through(opening)
    took = time.monotonic() - begin
    if took > _SLOW_SECONDS:
        log.info("process %d waited %.1f s for roots to be made", opening.pid, took)
