"""What Incus says as it happens: its lifecycle events, by the websocket of its API.

They are hints that something changed. Events may come in another order than what they tell of
(Incus 6.0 sends each from a goroutine of its own), and those of the time without a connection are
lost: whoever listens looks at everything when a connection begins, and at what an event names then.
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
_LARGEST: Final = 1 << 20


@dataclass(frozen=True)
class Event:
    """`action`, as "instance-updated", happened to `name`, which may be no instance."""

    action: str
    project: str
    name: str


async def listen(quiet: float) -> AsyncIterator[Event | None]:
    """Events, as they come; None when anything may have changed: at first, and after `quiet`
    seconds without one. IncusError when the connection cannot be had, or ends."""
    try:
        async with unix_connect(
            paths.INCUS_SOCKET, _URL, max_size=_LARGEST, ping_interval=None, compression=None
        ) as connection:
            yield None
            while True:
                try:
                    async with asyncio.timeout(quiet):
                        message = await connection.recv()
                except TimeoutError:
                    yield None
                else:
                    yield _event(message)
    except (OSError, TimeoutError, WebSocketException) as error:
        raise IncusError(f"Incus tells no events on {paths.INCUS_SOCKET}: {error}") from None


def _event(message: str | bytes) -> Event | None:
    try:
        told = json.loads(message)
        happened = told["metadata"]
        return Event(happened["action"], told.get("project", ""), happened.get("name", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
