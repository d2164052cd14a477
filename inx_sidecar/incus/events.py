"""Incus' lifecycle events, from the websocket of its API.

An event is only a hint that something changed. Events may arrive in another order than the changes
happened (Incus 6.0 sends each from a goroutine of its own), and events are lost while there is no
connection. So a listener looks at everything when a connection begins, and later at what an event
names.
"""

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.incus.request import IncusError
from inx_sidecar.incus.websocket import Message, connect

_TARGET: Final = "/1.0/events?type=lifecycle&all-projects=true"
# How the text of an event begins (incus shared/api/event.go and event_lifecycle.go).
_BEGINS: Final = re.compile(
    rb'\{"type":"lifecycle","timestamp":"[^"]*","metadata":\{"action":"([a-z-]+)"'
)


@dataclass(frozen=True)
class Event:
    """`action`, as "instance-updated", happened to the object `name`: an instance, a profile...

    `location`: the member of the cluster that tells it, "none" without a cluster, "" if not known.
    `by_itself`: an instance stopped, and nobody had asked Incus for that.
    """

    action: str
    project: str
    name: str
    location: str = ""
    by_itself: bool = False

    @property
    def place(self) -> tuple[str, str]:
        return self.project, self.name


async def listen(quiet: float) -> AsyncIterator[Event | None]:
    """Events as they arrive; None when anything may have changed.

    None comes first, when the connection begins, then after `quiet` seconds without an event, and
    for an event that is not understood. An event that is too long for this process has its action
    alone. IncusError when there is no connection, or it ends.
    """
    try:
        async with connect(_TARGET) as websocket:
            yield None
            while True:
                message = await websocket.receive(quiet)
                yield None if message is None else _parse_event(message)
    except (OSError, EOFError, ValueError) as error:
        raise IncusError(f"Incus tells no events on {paths.INCUS_SOCKET}: {error}") from None


def _parse_event(message: Message) -> Event | None:
    if not message.complete:
        begins = _BEGINS.match(message.content)
        return Event(begins[1].decode(), "", "") if begins else None
    try:
        event = json.loads(message.content)
        metadata = event["metadata"]
        action = metadata["action"]
        # Incus names who asked for a stop (incus internal/server/instance/drivers, onStop).
        by_itself = action == "instance-shutdown" and not metadata.get("requestor")
        place = event.get("project", ""), metadata.get("name", ""), event.get("location", "")
        return Event(action, *place, by_itself)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
