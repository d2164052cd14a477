"""Processes that open a directory whose opens wait, because fanotify(7) has marked it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from inx_sidecar.kernel.fanotify import OpenRequest, PermissionGroup
from support.waiting import eventually


class Opener:
    """A child process that calls a function."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._status: int | None = None  # the exit status, once the process has ended
        self.pid = os.fork()
        if self.pid == 0:
            try:
                # Only the parent may have the descriptor of the group: the last one that is closed
                # ends the group.
                os.closerange(3, 1024)
                function()
                os._exit(0)
            finally:
                os._exit(1)

    def ended(self) -> bool:
        if self._status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    def succeeded(self) -> bool:
        """The process has ended with status 0."""
        return self.ended() and self._status == 0

    def kill(self) -> None:
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            eventually(self.ended)


Start = Callable[[Callable[[], object]], Opener]


def open_requests(group: PermissionGroup, count: int = 1) -> list[OpenRequest]:
    """Wait for `count` opens that wait, and return them."""
    found: list[OpenRequest] = []

    def enough() -> bool:
        found.extend(group.open_requests())
        return len(found) >= count

    eventually(enough)
    assert len(found) == count
    return found


def marks(pid: int | None = None) -> int:
    """The number of directories that a process has marked, by default this process."""
    found = 0
    for file in Path(f"/proc/{pid or os.getpid()}/fdinfo").iterdir():
        try:
            found += file.read_text().count("fanotify ino:")
        except FileNotFoundError:
            continue  # the process has closed the descriptor meanwhile
    return found


def opens(directory: str) -> Callable[[], object]:
    """A function that opens `directory` and closes it."""
    return lambda: os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
