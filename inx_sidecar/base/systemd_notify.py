"""What a service tells systemd about its own state."""

import asyncio
import os
import socket


def notify(state: str) -> None:
    """Send `state` to systemd (sd_notify(3)); does nothing outside a service."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state.encode(), address.replace("@", "\0", 1))


async def send_keep_alives() -> None:
    """Tell systemd regularly that the event loop runs (sd_watchdog_enabled(3)).

    systemd ends a service whose keep-alive messages stop. Returns at once if the unit has no
    WatchdogSec=.
    """
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    while microseconds:
        notify("WATCHDOG=1")
        await asyncio.sleep(microseconds / 3_000_000)
