"""Locks of flock(2): which thread waits for one, and which process holds one.

/proc/locks is not read. Containers may hold any number of locks, and for each part of that file the
kernel walks over all locks that come before, while nobody on the host can lock (locks_start in
fs/locks.c).
"""

import contextlib
import os
import stat
from collections.abc import Set
from itertools import islice
from typing import Final, NamedTuple

from inx_sidecar.kernel.syscalls import cached_status

# A file: its device and its inode number, as stat(2) gives them.
File = tuple[int, int]

# flock in the tables of system calls: arch/x86/entry/syscalls/syscall_64.tbl, and
# include/uapi/asm-generic/unistd.h; older architectures have the number of i386.
_NUMBERS: Final = {"x86_64": 73, "aarch64": 32, "riscv64": 32, "loongarch64": 32}
_FLOCK: Final = _NUMBERS.get(os.uname().machine, 143)
# LimitNOFILE of a Nix daemon (systemd/inx-nix-daemon@.service): a look sees all that it has open.
FILES_MAX: Final = 4096


class Held(NamedTuple):
    """A locked file: the path by which the process has it open, and whether others may share it."""

    path: str
    shared: bool


def awaited_file(thread: int) -> File | None:
    """The file whose lock the thread waits for in flock(2); None if it waits for none, or ended.

    /proc/THREAD/syscall has the number and the arguments of the call that a thread is in (proc(5)).
    """
    try:
        with open(f"/proc/{thread}/syscall") as file:
            number, *arguments = file.read().split()
        if number != str(_FLOCK):
            return None
        status = cached_status(f"/proc/{thread}/fd/{int(arguments[0], 16)}")
    except (OSError, ValueError):
        return None
    return status.device, status.inode


def held_files(process: int, files: Set[File]) -> dict[File, Held]:
    """Those of `files` that the process has locked."""
    held = {}
    with contextlib.suppress(OSError):
        for entry in islice(os.scandir(f"/proc/{process}/fd"), FILES_MAX):
            with contextlib.suppress(OSError):
                status = cached_status(entry.path)
                file = status.device, status.inode
                if file in files and stat.S_ISREG(status.mode):
                    if locks := _locks(process, entry.name):
                        shared = any("FLOCK" in lock and "READ" in lock for lock in locks)
                        held[file] = Held(os.readlink(entry.path), shared)
    return held


def _locks(process: int, descriptor: str) -> list[list[str]]:
    """The locks that this open file of the process has, in words (proc_pid_fdinfo(5))."""
    with open(f"/proc/{process}/fdinfo/{descriptor}") as file:
        return [line.split() for line in file if line.startswith("lock:")]
