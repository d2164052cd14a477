"""End processes of the Nix daemons of instances that keep others from their work.

A client inside can let its daemon hold a lock that the host needs, for as long as it likes: half of
an upload has the lock of its path, and so has a build that sleeps. It can also add temporary roots
without end, which each collection reads.

The guard tells of each open of a lock file, and never waits. `watch` runs in a child of the guard:
it looks while somebody may wait, and pauses for longer than a look takes. When a holder is ended, a
build that tries every five seconds would lose the lock again, to the next client. So the guard then
refuses the file to daemons until that build has tried, and likewise one that several share, as
gc.lock, until the host has its lock (lock_refusals).
"""

import contextlib
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.journal import instance_log
from inx_sidecar.kernel.cgroups import cgroup_text, container_in, container_of
from inx_sidecar.kernel.flocks import File, awaited_file, held_files
from inx_sidecar.nix.daemon_processes import end_daemon, end_worker, instance_in, workers
from inx_sidecar.nix.lock_refusals import Refusals, until_tried
from inx_sidecar.nix.lock_waits import Ending, LockWaits, Times, too_large

# An open: device, inode, thread, and the instance whose daemon opens, or "" for the host.
OPEN: Final = struct.Struct("=QQI36s")

_ROOTS_SECONDS: Final = 5.0
_ROOTS_MAX: Final = 16 << 20
_ROOTS_MAX_TOGETHER: Final = 64 << 20
# A look that takes long is followed by a pause that is longer by this factor.
_REST: Final = 4.0
_OPENS_AT_ONCE: Final = 1000
_MESSAGE_SECONDS: Final = 60.0
_MESSAGES_MAX: Final = 1000


class Watch:
    """What the watching process knows. `patience` gives how many seconds the host waits, `name_of`
    the name of an instance by its uuid."""

    def __init__(
        self,
        tell_guard: int,
        patience: Callable[[], float],
        name_of: Callable[[str], str],
        times: Times,
    ) -> None:
        self._tell_guard = tell_guard
        self._patience = patience
        self._name_of = name_of
        self._waits = LockWaits(times)
        self._refusals = Refusals(times)
        self._times = times
        # Nix opens it now and then without having waited for it.
        self._gc_lock: File | None = None
        self._told: dict[tuple[str, str], float] = {}

    def run(self, opens: list[int]) -> None:
        """Watch until a pipe of `opens` ends: then the guard has ended."""
        poll = select.poll()
        for fd in opens:
            poll.register(fd, select.POLLIN)
        self.find_earlier_waits()
        next_look = next_roots = 0.0
        while True:
            waking = min(next_look, next_roots) if self._waits.threads() else next_roots
            poll.poll(max(0.0, waking - time.monotonic()) * 1000)
            if not all(list(map(self._read, opens))):
                return
            begin = time.monotonic()
            if begin >= next_look and self._waits.threads():
                self.look()
                next_look = _after(begin, self._times.look)
            if begin >= next_roots:
                self.look_at_temporary_roots()
                next_roots = _after(begin, _ROOTS_SECONDS)

    def find_earlier_waits(self) -> None:
        """Find the threads that wait in flock(2) already: no guard has told of their opens."""
        own = container_of(os.getpid())
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                for thread in map(int, os.listdir(f"/proc/{pid}/task")):
                    if file := awaited_file(thread):
                        cgroups, now = cgroup_text(thread), time.monotonic()
                        if container_in(cgroups) in (None, own):
                            instance = instance_in(cgroups)
                            self._waits.opened(instance, thread, file, now, tried=False)

    def look(self) -> None:
        """End holders for which somebody has waited too long."""
        threads = self._waits.threads()
        self._waits.forget(
            {thread for thread, _ in threads if not os.path.exists(f"/proc/{thread}")}
        )
        blocked = {(thread, file) for thread, file in threads if awaited_file(thread) == file}
        files = self._waits.awaited(blocked, time.monotonic())
        holders: dict[File, dict[str, set[int]]] = {}
        shared = set()
        for instance, pid in workers() if files else ():
            for file, held in held_files(pid, files).items():
                holders.setdefault(file, {}).setdefault(instance, set()).add(pid)
                if held.shared:
                    shared.add(file)
        now = time.monotonic()
        self._refuse(*self._refusals.look(blocked, holders.keys(), now))
        if holders:
            endings = self._waits.endings(holders, self._patience(), now, shared)
            for ending in endings:  # nobody opens the file again between two of the ends
                if ending.tries:
                    self._refuse(until_tried(ending.file, ending.neighbour and ending.instance))
                if ending.shared:
                    self._refuse(self._refusals.begin(ending.file, ending.shared, now))
            for ending in endings:
                self._end(ending)

    def look_at_temporary_roots(self) -> None:
        """End workers whose files of temporary roots are too large.

        The directory is not listed: the barrier holds whoever opens it.
        """
        with contextlib.suppress(OSError):
            status = os.stat(paths.GC_LOCK)
            self._gc_lock = status.st_dev, status.st_ino
        sizes: dict[str, dict[int, int]] = {}
        files: dict[int, File] = {}
        for instance, pid in workers():
            with contextlib.suppress(OSError):
                status = os.lstat(f"{paths.HOST_TEMPROOTS}/{pid}")
                sizes.setdefault(instance, {})[pid] = status.st_size
                files[pid] = status.st_dev, status.st_ino
        for instance, of_instance in sizes.items():
            for pid in too_large(of_instance, _ROOTS_MAX, _ROOTS_MAX_TOGETHER):
                # An earlier process with this PID may have left the file.
                if held_files(pid, {files[pid]}) and end_worker(instance, pid):
                    self._tell(
                        instance,
                        "ended a process of its Nix daemon: its file of temporary roots had %d MiB",
                        of_instance[pid] >> 20,
                    )

    def _end(self, ending: Ending) -> None:
        path = ""
        for pid in ending.processes:
            held = held_files(pid, {ending.file})
            if held and end_worker(ending.instance, pid):
                path = held[ending.file].path
        waiter = "the host"
        if ending.neighbour:
            waiter = f"the Nix daemon of {self._name_of(ending.neighbour)}"
        if ending.whole:
            end_daemon(ending.instance)
            self._tell(
                ending.instance, "ended its whole Nix daemon: %s still waited for a lock", waiter
            )
        elif path:
            self._tell(
                ending.instance, "ended a process of its Nix daemon: %s waited %.0f s for %s",
                waiter, ending.waited, path,
            )  # fmt: skip

    def _refuse(self, *records: bytes) -> None:
        for record in filter(None, records):
            with contextlib.suppress(OSError):  # the pipe is full, or the guard has ended
                os.write(self._tell_guard, record)

    def _tell(self, instance: str, sentence: str, *values: object) -> None:
        """Say it, and of each instance the same about once a minute."""
        key, now = (instance, sentence), time.monotonic()
        if now - self._told.get(key, -_MESSAGE_SECONDS) < _MESSAGE_SECONDS:
            return
        if len(self._told) >= _MESSAGES_MAX:
            self._told.clear()
        self._told[key] = now
        instance_log(self._name_of(instance)).warning(sentence, *values)

    def _read(self, fd: int) -> bool:
        """Take what the guard has told; False at the end of the pipe."""
        try:
            data = os.read(fd, OPEN.size * _OPENS_AT_ONCE)
        except BlockingIOError:
            return True
        now = time.monotonic()
        for device, inode, thread, uuid in OPEN.iter_unpack(data):
            file, instance = (device, inode), uuid.rstrip(b"\0").decode()
            self._waits.opened(instance, thread, file, now, tried=file != self._gc_lock)
        return bool(data)


def _after(begin: float, pause: float) -> float:
    """When to look again after a look that began at `begin`."""
    now = time.monotonic()
    return now + max(pause, _REST * (now - begin))
