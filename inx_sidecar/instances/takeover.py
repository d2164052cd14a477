"""After its start, the sidecar takes over the instances that an earlier sidecar started.

What runs is known from /run/inx alone, so neither a full storage nor an Incus that does not answer
leaves an instance without its roots. An instance that cannot be taken over is tried again and
again, with growing pauses.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Final

from inx_sidecar.base import lxc_log, paths
from inx_sidecar.base.errors import InxError, sentence_of
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.storage import storage_error
from inx_sidecar.builds import build
from inx_sidecar.container import bootstrap
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances.status_text import BUG

_FIRST_SECONDS: Final = 1.0
_LONGEST_SECONDS: Final = 300.0


class TakeOvers:
    """`take_over` is called with the uuid and the saved state of an instance that runs, `show` with
    these and the reason why that failed, which is empty when it succeeds later."""

    def __init__(
        self,
        take_over: Callable[[str, Running], Awaitable[None]],
        show: Callable[[str, Running, str], None],
    ) -> None:
        self._take_over = take_over
        self._show = show
        # By uuid: when the container began that could not be taken over, and the reason.
        self._failed: dict[str, tuple[int, str]] = {}
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Take over all instances that run. A failure concerns its own instance alone, and is
        repeated in the background."""
        await build.stop_all()
        for uuid in sorted(os.listdir(paths.RUN)):
            running = Running.load(uuid)
            if running is not None:
                await self._try(uuid, running)
        if self._failed:
            self._task = asyncio.create_task(self._keep_trying())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_trying(self) -> None:
        seconds = _FIRST_SECONDS
        while self._failed:
            await asyncio.sleep(seconds)
            seconds = min(seconds * 2, _LONGEST_SECONDS)
            for uuid, (started, _) in list(self._failed.items()):
                running = Running.load(uuid)
                if running is None or running.started != started:
                    del self._failed[uuid]  # it has ended; a later start needs no takeover
                else:
                    await self._try(uuid, running)

    async def _try(self, uuid: str, running: Running) -> None:
        try:
            await self._take_over(uuid, running)
        except Exception as error:
            self._give_up(uuid, running, error)
            return
        if self._failed.pop(uuid, None) is not None:
            with contextlib.suppress(OSError):
                os.unlink(_mark(uuid))
            self._show(uuid, running, "")

    def _give_up(self, uuid: str, running: Running, error: Exception) -> None:
        """Tell why an instance cannot be taken over; an init that waits ends instead of waiting on,
        and is not tried again."""
        error = storage_error(error) or error
        text = sentence_of(error) if isinstance(error, InxError | OSError) else BUG
        facts = running.facts
        waits = False
        with contextlib.suppress(OSError):
            waits = bootstrap.is_waiting(uuid)
        if self._failed.get(uuid) != (running.started, text):
            traceback = not isinstance(error, InxError | OSError)
            instance_log(facts.lxc_name).error("%s", text, exc_info=traceback)
            lxc_log.append(facts.lxc_config, facts.lxc_name, text)
            with contextlib.suppress(OSError), open(_mark(uuid), "w") as file:
                file.write(text)
            if not waits:
                self._show(uuid, running, text)
        if waits:
            with contextlib.suppress(OSError):
                bootstrap.Console(uuid, redacted=True).failed(text)
        else:
            self._failed[uuid] = running.started, text


def problem_of(uuid: str) -> str:
    """Why the running instance `uuid` could not be taken over; empty if it could."""
    try:
        with open(_mark(uuid)) as file:
            return file.read()
    except OSError:
        return ""


def _mark(uuid: str) -> str:
    return f"{paths.run_dir(uuid)}/not-taken-over"
