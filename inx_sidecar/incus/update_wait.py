"""Wait until inx has dealt with what an instance is asked for: by events, as every client can."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from inx_sidecar.base.errors import one_line
from inx_sidecar.incus import api as incus
from inx_sidecar.incus import saved_status
from inx_sidecar.incus.events import listen
from inx_sidecar.incus.update_key import DEALT_WITH, PENDING, asked_now, shown

_TEXT: Final = "user.inx.status"
# An update that waits for the operator, and one that waits for nobody (instances/unconfirmed).
_UNCONFIRMED: Final = "unconfirmed"
_CHECKED: Final = f"{_UNCONFIRMED}: the check"
# Incus registers who listens a moment after it has answered.
_REGISTERED_SECONDS: Final = 0.2
_QUIET_SECONDS: Final = 60.0


@dataclass(frozen=True)
class End:
    """How the wait ended, in one sentence."""

    is_ready: bool
    sentence: str


def end_of(
    state: str, config: Mapping[str, str], saved: Mapping[str, str] | None, wanted: str
) -> End | None:
    """How the wait for the update `wanted` has ended; None as long as it has not.

    `state` is that of the instance in Incus, "Running" or another; `config` is its configuration.
    `saved` is the status that the sidecar of this host gave last, if it did: right after a start,
    Incus may still have the one from before.
    """
    # Whoever may edit the instance can write into its status.
    asked, text = asked_now(config), one_line(config.get(_TEXT, ""))
    if asked != shown(wanted):
        return End(False, f"user.inx.update is {asked!r} by now, and not {shown(wanted)!r}")
    if state == "Stopped":
        stays = text if text.startswith(("failed", "stopped")) else "it does not run"
        return End(False, f"{stays}; its next start deals with user.inx.update")
    if all(_is_dealt_with(status, asked) for status in (config, saved or config)):
        return End(text.startswith(("ready", _UNCONFIRMED)), text)
    return None


def _is_dealt_with(status: Mapping[str, str], asked: str) -> bool:
    text = status.get(_TEXT, "")
    pending = not text or text.startswith((*PENDING, "stopped", _CHECKED))
    return not pending and status.get(DEALT_WITH, "") == asked


async def wait(project: str, name: str, wanted: str | None, seconds: float | None) -> End:
    """Wait for the update `wanted`, or for the one that is asked for now, for at most `seconds`.

    IncusError if Incus does not know the instance, or tells no events.
    """
    if wanted is None:
        found = await incus.get_instance(project, name)
        wanted = found["expanded_config"].get("user.inx.update", "")
    try:
        async with asyncio.timeout(seconds):
            return await _wait(project, name, wanted)
    except TimeoutError:
        return End(False, f"it was not ready after {seconds:g} s")


async def _wait(project: str, name: str, wanted: str) -> End:
    begins = True
    async for event in listen(_QUIET_SECONDS):
        if event is not None and event.name and (event.project, event.name) != (project, name):
            continue
        end = await _look(project, name, wanted)
        if end is None and begins:
            await asyncio.sleep(_REGISTERED_SECONDS)
            end = await _look(project, name, wanted)
        begins = False
        if end is not None:
            return end
    raise AssertionError("events have no end")


async def _look(project: str, name: str, wanted: str) -> End | None:
    found: Mapping[str, Any] = await incus.get_instance(project, name)
    config = found["expanded_config"]
    saved = saved_status.load(config.get("volatile.uuid", ""))
    return end_of(found["status"], config, saved, wanted)
