"""What a service of systemd says to systemd about its state."""

import asyncio
import os
import socket


def notify(state: str) -> None:
    """sd_notify(3)"""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state.encode(), address.replace("@", "\0", 1))


async def live() -> None:
    """Tell systemd that the loop turns; it ends a service that hangs (sd_watchdog_enabled(3))."""
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    while microseconds:
        notify("WATCHDOG=1")
        await asyncio.sleep(microseconds / 3_000_000)
