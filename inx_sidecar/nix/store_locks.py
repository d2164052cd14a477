"""Keep processes of containers from opening the lock files of the store.

Before Nix makes a store path, it locks PATH.lock beside it with flock(2) (lockPaths in
libstore/unix/pathlocks.cc), and waits while another process holds that lock. Root of a container
with a shared store owns these files, so it could lock them, and every build of the host would wait.
A holder cannot be undone afterwards: the lock belongs to the open file, which may be in flight in a
socket, registered with an io_uring or mapped, where no other process sees it; and a lock file that
is removed while some process of the host holds or gets its lock lets two builds of one path run.

So no process of a container gets such a file open: the kernel asks for each open of a file that is
directly in the store, on every mount. Clients inside do not need these files; their daemon, which
does, is no process of the container. After the first open of another file, the kernel asks no
more for that file. The lock files themselves are never changed, and no lock is taken.

While an open waits for an answer, its process waits, which may be PID 1 of a NixOS host. So this
process arms a timer before each answer, and the kernel ends it if the answer takes longer; the
kernel then allows the opens that wait. For the same reason it does nothing that can block.
"""

import contextlib
import logging
import os
import select
import signal
from collections.abc import Callable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError, UnsupportedError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.systemd_notify import notify
from inx_sidecar.kernel.cgroups import (
    cgroup_text,
    container_in,
    container_of,
    end_container_of,
    process_of,
)
from inx_sidecar.kernel.fanotify import OpenRequest, PermissionGroup, is_unsupported
from inx_sidecar.kernel.syscalls import opened
from inx_sidecar.nix.daemon_processes import instance_in
from inx_sidecar.nix.lock_files import end_openers, is_lock
from inx_sidecar.nix.lock_watcher import Watcher

ANSWER_SECONDS: Final = 5.0
_MARK_SECONDS: Final = 600.0
_NAMES_MAX: Final = 1000
# Opens of one container that may wait at once, and opens that wait before a container is ended.
_AT_ONCE: Final = 32
_CROWD: Final = 300
_PASSES: Final = 20

log = logging.getLogger(__name__)


def probe() -> None:
    """UnsupportedError if the kernel cannot refuse an open, or cannot ignore other files; RootError
    if it cannot now."""
    try:
        group = PermissionGroup(threads=True)
        try:
            with opened(os.open(paths.STORE, os.O_RDONLY | os.O_DIRECTORY)) as store:
                group.ignore(store)
        finally:
            group.close()
    except OSError as error:
        if not is_unsupported(error):
            raise RootError(
                f"cannot keep containers from the store's lock files now ({error.filename}: "
                f"{error.strerror}); trying again"
            ) from None
        raise UnsupportedError(
            f"this kernel cannot keep containers from the store's lock files ({error.filename}: "
            f"{error.strerror}); it needs Linux 5.19 and CONFIG_FANOTIFY_ACCESS_PERMISSIONS"
        ) from None


def guard(patience: Callable[[], float], name_of: Callable[[str], str]) -> None:
    """Refuse lock files of the store to containers, until SIGTERM ends this process.

    `patience` gives for how many seconds the host waits for the daemon of an instance, `name_of`
    the name of an instance by its uuid.
    """
    probe()
    group = PermissionGroup(threads=True)
    watcher = Watcher(patience, name_of, group.close)
    guarded = Guard(group, watcher)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps children
    watcher.start()
    signal.setitimer(signal.ITIMER_REAL, ANSWER_SECONDS)  # from the mark on, processes wait
    guarded.mark()
    guarded.begin_to_end_earlier_openers()
    notify("READY=1\nSTATUS=keeping containers from the lock files of the store")
    signal.setitimer(signal.ITIMER_REAL, 0)
    while True:
        poll = select.poll()
        poll.register(group.fd, select.POLLIN)
        if watcher.fd >= 0:
            poll.register(watcher.fd, select.POLLIN)
        events = dict(poll.poll(_MARK_SECONDS * 1000))
        if watcher.fd in events:
            watcher.read()  # first: what is refused from now on may wait for an answer
        if group.fd in events:
            guarded.answer()
        if watcher.fd not in events and not watcher.start_again_if_ended() and not events:
            guarded.mark()  # another directory may be there now


class Guard:
    """Answers the opens of files in the store, and tells of each container once."""

    def __init__(self, group: PermissionGroup, watcher: Watcher) -> None:
        self.group = group
        self._watcher = watcher
        self._own = container_of(os.getpid())  # not None if the host itself is a container
        self._told: set[tuple[str, str]] = set()
        # Of the opens that are answered together: those that each container was refused, and
        # whether many more wait.
        self._refused: dict[str, int] = {}
        self._crowded = False

    def mark(self) -> None:
        """Let opens in the store wait from now on, and those of gc.lock, which the watch needs."""
        self.group.mark_files_in(paths.STORE)
        with contextlib.suppress(FileNotFoundError):  # Nix was not used yet
            self.group.mark_files_in(paths.NIX_STATE)

    def answer(self) -> None:
        """Answer the opens that wait; the kernel ends this process if one takes too long."""
        signal.setitimer(signal.ITIMER_REAL, ANSWER_SECONDS)
        self._refused.clear()
        self._crowded = self.group.waiting() > _CROWD
        for request in self.group.open_requests():
            signal.setitimer(signal.ITIMER_REAL, ANSWER_SECONDS)
            try:
                self._answer(request)
            except OSError:
                pass  # the process was killed meanwhile, and its open with it
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _answer(self, request: OpenRequest) -> None:
        allowed = False
        try:
            allowed = self._is_allowed(request)
        finally:
            (self.group.allow if allowed else self.group.deny)(request)

    def _is_allowed(self, request: OpenRequest) -> bool:
        status = os.fstat(request.fd)
        if not is_lock(status.st_mode):
            with contextlib.suppress(OSError):
                self.group.ignore(request.fd)
            return True
        # Number 0: a process of the machine that the host itself is a container of.
        cgroups = cgroup_text(request.pid) if request.pid else b""
        container = container_in(cgroups) if request.pid else self._own
        if container not in (None, self._own):
            self._refuse(str(container), request.pid)
            return False
        file, instance = (status.st_dev, status.st_ino), instance_in(cgroups)
        if instance and self._watcher.refuses(file, instance):
            return False
        if request.pid:
            self._watcher.tell(file, request.pid, instance)
        return True

    def _refuse(self, container: str, thread: int) -> None:
        """Stop a flood: each open waits for those before it, also an open by Nix on the host.

        A process that searches the store waits for one open at a time, and is not ended.
        """
        count = self._refused[container] = self._refused.get(container, 0) + 1
        if count == 1:
            self._tell(container, logging.INFO, "the open of a lock file of the store was refused")
        elif count > _AT_ONCE and self._crowded:
            self._tell(
                container, logging.WARNING,
                "all its processes are ended: too many open lock files of the store at once",
            )  # fmt: skip
            end_container_of(thread)
        elif count > _AT_ONCE:
            self._tell(
                container, logging.WARNING,
                "processes that open lock files of the store at once with many others are ended",
            )  # fmt: skip
            with opened(os.pidfd_open(process_of(thread))) as process:
                signal.pidfd_send_signal(process, signal.SIGKILL)

    def _tell(self, container: str, level: int, sentence: str) -> None:
        """Say it, once for each container."""
        if (container, sentence) not in self._told and len(self._told) < _NAMES_MAX:
            self._told.add((container, sentence))
            instance_log(container).log(level, "%s; this is not said again", sentence)

    def begin_to_end_earlier_openers(self) -> None:
        """In a child, end the processes of containers that opened a lock file before the mark.

        That is possible only while no guard ran.
        """
        if os.fork() == 0:
            try:
                self.group.close()  # the last descriptor ends the group
                for _ in range(_PASSES):  # a process may have made others meanwhile
                    if not end_openers(self._own):
                        break
                else:
                    log.warning("some processes of containers still have lock files open")
            except BaseException:
                log.exception("cannot look for processes that opened lock files")
            finally:
                os._exit(0)
