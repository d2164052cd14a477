"""The guard's end of the watch for locks: it tells of opens, and knows what daemons must not open.

Nothing here waits for the watching process: what it has no time for is left out. If that process
ends, another one begins.
"""

import contextlib
import logging
import os
import resource
import time
from collections.abc import Callable
from typing import Final

from inx_sidecar.kernel.flocks import File
from inx_sidecar.nix.lock_refusals import REFUSAL
from inx_sidecar.nix.lock_waits import Times
from inx_sidecar.nix.lock_watch import OPEN, Watch

_RESTART_SECONDS: Final = 10.0
# A build of the host that tries to lock has the lock in less than a second.
_AFTER_TRY_SECONDS: Final = 1.0
_REFUSALS_MAX: Final = 1000
_REFUSALS_AT_ONCE: Final = 64
_NORMAL_PRIORITY: Final = 0

log = logging.getLogger(__name__)


class Watcher:
    """Starts the watching process. In it, `in_child` first lets go what only the guard may have."""

    def __init__(
        self,
        patience: Callable[[], float],
        name_of: Callable[[str], str],
        in_child: Callable[[], None],
        times: Times | None = None,
    ) -> None:
        self._watch_with = patience, name_of, times or Times()
        self._in_child = in_child
        # Until when, and whether an open by the host shortens that.
        self._refused: dict[tuple[File, str], tuple[float, bool]] = {}
        # The host has a pipe of its own: daemons of instances may open any number of files.
        self._opens: list[int] = []
        self.fd = -1
        self._next_start = 0.0

    def start(self) -> None:
        """Start the watching process; `fd` can be read then."""
        pipes = [os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) for _ in range(3)]
        (_, hosts), (_, daemons), (refusals, _) = pipes
        self._next_start = time.monotonic() + _RESTART_SECONDS
        if os.fork() == 0:
            try:
                self._in_child()
                for fd in hosts, daemons, refusals:
                    os.close(fd)
                os.setpriority(os.PRIO_PROCESS, 0, _NORMAL_PRIORITY)
                resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
                Watch(pipes[2][1], *self._watch_with).run([pipes[0][0], pipes[1][0]])
            except BaseException:
                log.exception("cannot watch the locks of the store")
            finally:
                os._exit(0)
        for fd in pipes[0][0], pipes[1][0], pipes[2][1]:
            os.close(fd)
        self._opens, self.fd = [hosts, daemons], refusals

    def stop(self) -> None:
        """Let the watching process end."""
        for fd in [*self._opens, self.fd]:
            os.close(fd)
        self._opens, self.fd = [], -1
        # Nobody would end the other ones when the host has the lock.
        self._refused = {key: value for key, value in self._refused.items() if value[1]}

    def start_again_if_ended(self) -> bool:
        """Whether another process was started; none is within some seconds of the last one."""
        if self._opens or time.monotonic() < self._next_start:
            return False
        self.start()
        return True

    def tell(self, file: File, thread: int, instance: str) -> None:
        """A thread opens a lock file: one of the daemon of `instance`, or "" of the host."""
        if not instance and self._refused:
            until = time.monotonic() + _AFTER_TRY_SECONDS
            for key, (longest, shortened) in self._refused.items():
                if key[0] == file and shortened:
                    self._refused[key] = min(longest, until), True
        if self._opens:
            with contextlib.suppress(OSError):  # the pipe is full, or the process has ended
                record = OPEN.pack(*file, thread, instance.encode())
                os.write(self._opens[bool(instance)], record)

    def refuses(self, file: File, instance: str) -> bool:
        """Whether the daemon of `instance` must not open the file now."""
        if not self._refused:
            return False
        now = time.monotonic()
        keys = {(file, ""), (file, instance)} & self._refused.keys()
        return any(self._refused[key][0] > now for key in keys)

    def read(self) -> None:
        """Take what the watching process says; `fd` is -1 then if it has ended."""
        try:
            data = os.read(self.fd, REFUSAL.size * _REFUSALS_AT_ONCE)
        except BlockingIOError:
            return
        if not data:
            self.stop()
            return
        now = time.monotonic()
        self._refused = {key: value for key, value in self._refused.items() if value[0] > now}
        for device, inode, uuid, seconds, shortened in REFUSAL.iter_unpack(data):
            key = (device, inode), uuid.rstrip(b"\0").decode()
            if key in self._refused or len(self._refused) < _REFUSALS_MAX:
                self._refused[key] = now + seconds, shortened
