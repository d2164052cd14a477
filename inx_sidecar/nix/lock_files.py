"""The lock files of the store: which files they are, and which processes have them open."""

import contextlib
import os
import re
import select
import signal
import stat
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.journal import instance_log
from inx_sidecar.kernel.cgroups import container_of
from inx_sidecar.kernel.syscalls import cached_status, opened

_END_SECONDS: Final = 1.0
_REMOVED: Final = re.compile(r".*/[0-9a-z]{32}-[^/]+\.lock \(deleted\)")


def is_lock(mode: int) -> bool:
    """Whether a file directly in the store, with this mode, may be a lock file of Nix.

    Nix makes lock files with the mode 0600 (openLockFile). Everybody may read a valid store path
    (canonicalisePathMetaData in libstore/posix-fs-canonicalise.cc). The name tells nothing: a
    Cargo.lock may be a store path, and root inside may mount a lock file anywhere.
    """
    return not mode & 0o077


def end_openers(own: str | None = None) -> int:
    """End the processes of containers, other than the container `own`, that have a lock file of the
    store open; returns their number."""
    device, locks = os.stat(paths.STORE).st_dev, _lock_files()
    ended = 0
    for pid in [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]:
        # Held by a descriptor, the process cannot be mistaken for a later one with its PID.
        with contextlib.suppress(OSError), opened(os.pidfd_open(pid)) as process:
            container = container_of(pid)
            if container in (None, own) or not _has_open(pid, device, locks):
                continue
            signal.pidfd_send_signal(process, signal.SIGKILL)
            ended += 1
            instance_log(container or "").warning(
                "ended process %d, which opened a lock file of the store while no guard ran", pid
            )
            poll = select.poll()
            poll.register(process, select.POLLIN)
            poll.poll(_END_SECONDS * 1000)
    return ended


def _lock_files() -> set[int]:
    """The inode numbers of the lock files in the store."""
    found = set()
    for name in os.listdir(paths.STORE):
        if name.endswith(".lock"):
            with contextlib.suppress(OSError):
                status = os.lstat(f"{paths.STORE}/{name}")
                if is_lock(status.st_mode):
                    found.add(status.st_ino)
    return found


def _has_open(pid: int, device: int, locks: set[int]) -> bool:
    """Whether the process has one of the lock files open, or one that Nix has removed.

    A descriptor may be of a file system that does not answer: its server is not asked.
    """
    for number in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        with contextlib.suppress(OSError):
            status = cached_status(path)
            if status.device == device and stat.S_ISREG(status.mode) and is_lock(status.mode):
                if status.inode in locks or _REMOVED.fullmatch(os.readlink(path)):
                    return True
    return False
