"""Which files the daemons of instances must not open, so that the host gets the lock of each.

A build that tries again and again is seen by its next open. A thread in flock(2), as that of a
collection, opens no more. It gets a lock that nobody else has at once; but others share the lock of
gc.lock, and a client that comes just before the last holder ends would keep it from being free. So
daemons may not open the file until the thread has the lock or has ended.

Another process of the host may hold the lock, and for any time. That is seen by its effect: no
daemon holds the lock, and the thread still waits. Then daemons are refused nothing for some time.
"""

import struct
from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from inx_sidecar.kernel.flocks import File
from inx_sidecar.nix.lock_waits import Times

# Daemons must not open a file now: device, inode, the instance or "" for all, for how many seconds,
# and whether an open by the host shortens this.
REFUSAL: Final = struct.Struct("=QQ36sd?")

# A build of the host tries to lock within this time.
_TRY_SECONDS: Final = 12.0
# The watch ends a refusal for a thread. Its look may come late, and no client must come first.
_LONGEST_SECONDS: Final = 600.0


def until_tried(file: File, instance: str) -> bytes:
    """Refuse the file until a build of the host has tried to lock it."""
    return REFUSAL.pack(*file, instance.encode(), _TRY_SECONDS, True)


@dataclass
class _Refusal:
    thread: int
    held: float  # when a daemon was last seen to hold the lock


class Refusals:
    """Files that are refused until a thread of the host has the lock."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._refused: dict[File, _Refusal] = {}
        self._pauses: dict[File, float] = {}

    def begin(self, file: File, thread: int, now: float) -> bytes:
        """Holders are about to be ended for this thread."""
        self._pauses = {each: until for each, until in self._pauses.items() if until > now}
        if file in self._pauses:
            return b""
        refusal = self._refused.setdefault(file, _Refusal(thread, now))
        refusal.held = now
        return _record(file, _LONGEST_SECONDS)

    def look(self, blocked: Set[tuple[int, File]], held: Set[File], now: float) -> list[bytes]:
        """Go on or end, by the threads that are in flock(2), and the files that daemons hold."""
        records = []
        for file, refusal in list(self._refused.items()):
            if file in held:
                refusal.held = now
            useless = now - refusal.held >= self._times.refusal
            if useless:
                self._pauses[file] = now + self._times.refusal_pause
            if useless or (refusal.thread, file) not in blocked:
                del self._refused[file]
                records.append(_record(file, 0.0))
            else:
                records.append(_record(file, _LONGEST_SECONDS))
        return records


def _record(file: File, seconds: float) -> bytes:
    return REFUSAL.pack(*file, b"", seconds, False)
