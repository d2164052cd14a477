"""What a service of systemd says: its state to systemd, its log to the journal."""

import asyncio
import logging
import os
import socket
import sys
from typing import Final


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


class _Journal(logging.Formatter):
    """Lines with systemd's level prefix (sd-daemon(3)); the journal adds the time."""

    LEVELS: Final = {logging.ERROR: "<3>", logging.WARNING: "<4>", logging.INFO: "<6>"}

    def format(self, record: logging.LogRecord) -> str:
        level = self.LEVELS.get(record.levelno, "<7>")
        return "\n".join(level + line for line in super().format(record).splitlines())


def log_to_journal() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Journal("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
