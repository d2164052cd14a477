"""Incus' lifecycle events, from the websocket of its API.

An event is only a hint that something changed. Events may arrive in another order than the changes
happened (Incus 6.0 sends each from a goroutine of its own), and events are lost while there is no
connection. So a listener looks at everything when a connection begins, and later at what an event
names.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from websockets.asyncio.client import unix_connect
from websockets.exceptions import WebSocketException

from inx_sidecar.base import paths
from inx_sidecar.incus.api import IncusError

_URL: Final = "ws://incus/1.0/events?type=lifecycle&all-projects=true"
_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Event:
    """`action`, as "instance-updated", happened to the object `name`: an instance, a profile..."""

    action: str
    project: str
    name: str


async def listen(quiet: float) -> AsyncIterator[Event | None]:
    """Events as they arrive; None when anything may have changed.

    None comes first, when the connection begins, then after `quiet` seconds without an event, and
    for an event that is not understood. IncusError when there is no connection, or it ends.
    """
    try:
        async with unix_connect(
            paths.INCUS_SOCKET, _URL, max_size=_MAX_BYTES, ping_interval=None, compression=None
        ) as connection:
            yield None
            while True:
                try:
                    async with asyncio.timeout(quiet):
                        message = await connection.recv()
                except TimeoutError:
                    yield None
                else:
                    yield _parse_event(message)
    except (OSError, TimeoutError, WebSocketException) as error:
        raise IncusError(f"Incus tells no events on {paths.INCUS_SOCKET}: {error}") from None


def _parse_event(message: str | bytes) -> Event | None:
    try:
        event = json.loads(message)
        metadata = event["metadata"]
        return Event(metadata["action"], event.get("project", ""), metadata.get("name", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
