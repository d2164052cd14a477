"""The processes of the Nix daemons of all instances: each has a worker for each of its clients."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.kernel.cgroups import cgroup_text, hierarchy
from inx_sidecar.kernel.syscalls import opened

_UNIT: Final = re.compile(rb"/inx\.slice/inx-nix\.slice/inx-nix-daemon@([0-9a-f-]{36})\.service")
_NAME: Final = re.compile(r"inx-nix-daemon@([0-9a-f-]{36})\.service")


def instance_in(text: bytes) -> str:
    """The uuid of the instance whose Nix daemon has a process with this `cgroup_text`, or ""."""
    found = _UNIT.search(text)
    return found[1].decode() if found else ""


def workers() -> Iterator[tuple[str, int]]:
    """Uuid and PID of each process of a daemon, except those of builds, which are not root's."""
    for entry in _entries(_slice()):
        if name := _NAME.fullmatch(entry.name):
            for pid in _pids_below(entry.path):
                with contextlib.suppress(OSError, ValueError):
                    if _is_root(pid):
                        yield name[1], pid


def end_worker(instance: str, pid: int) -> bool:
    """Kill process `pid` and its builds, if it belongs to the daemon of the instance.

    False if it does not. Without its worker a build would go on, but nobody would take its result.
    It is the first process of a PID namespace, so all of it ends.
    """
    with ExitStack() as opened_processes:
        processes = []
        for process in (pid, *_children(pid)):
            with contextlib.suppress(OSError):
                fd = opened_processes.enter_context(opened(os.pidfd_open(process)))
                if instance_in(cgroup_text(process)) == instance:
                    processes.append((process, fd))
        if not processes or processes[0][0] != pid:
            return False
        for _, fd in processes:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
    return True


def end_daemon(instance: str) -> None:
    """Kill all processes of the daemon of the instance at once; systemd starts it for the next
    client (cgroups(7), cgroup.kill; Linux 5.14)."""
    unit = paths.daemon_service_unit(instance)
    with contextlib.suppress(OSError), open(f"{_slice()}/{unit}/cgroup.kill", "w") as file:
        file.write("1")


def _slice() -> str:
    return f"{hierarchy()}/inx.slice/inx-nix.slice"


def _entries(directory: str) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def _pids_below(group: str) -> Iterator[int]:
    """The processes of a cgroup and of those below it: Nix may make some (use-cgroups)."""
    with contextlib.suppress(OSError), open(f"{group}/cgroup.procs") as file:
        yield from map(int, file)
    for entry in _entries(group):
        yield from _pids_below(entry.path)


def _children(pid: int) -> list[int]:
    """The children of a process (proc(5), /proc/PID/task/TID/children)."""
    found = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += [int(word) for word in file.read().split()]
    return found


def _is_root(pid: int) -> bool:
    """Whether root runs the process; the owner of /proc/PID may be root for other ones, too."""
    with open(f"/proc/{pid}/status", errors="surrogateescape") as file:
        return next((line.split()[1] == "0" for line in file if line.startswith("Uid:")), False)
