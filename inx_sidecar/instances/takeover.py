"""After its start, the sidecar takes over the instances that an earlier sidecar started."""

import contextlib
import os
from collections.abc import Awaitable, Callable

from inx_sidecar.base import lxc_log, paths
from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.storage import storage_error
from inx_sidecar.builds import build
from inx_sidecar.container import bootstrap
from inx_sidecar.incus.instance import LxcFacts
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances.status_text import BUG


async def take_over_all(take_over: Callable[[str, Running], Awaitable[None]]) -> None:
    """Call `take_over` with the uuid and the saved state of each instance that runs.

    A failure concerns its own instance alone.
    """
    await build.stop_all()
    for uuid in sorted(os.listdir(paths.RUN)):
        running = Running.load(uuid)
        if running is not None:
            try:
                await take_over(uuid, running)
            except Exception as error:
                _give_up(uuid, running.facts, error)


def _give_up(uuid: str, facts: LxcFacts, error: Exception) -> None:
    """Tell why an instance cannot be taken over; an init that waits ends instead of waiting on."""
    error = storage_error(error) or error
    text = str(error) if isinstance(error, InxError) else BUG
    instance_log(facts.lxc_name).error("%s", text, exc_info=not isinstance(error, InxError))
    lxc_log.append(facts.lxc_config, facts.lxc_name, text)
    with contextlib.suppress(OSError):
        if bootstrap.is_waiting(uuid):
            bootstrap.Console(uuid, redacted=True).failed(text)
