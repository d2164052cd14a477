"""Control groups of processes, in the unified hierarchy (cgroups(7))."""

import contextlib
import os
import signal

from inx_sidecar.kernel.syscalls import opened


def hierarchy() -> str:
    """Where the unified hierarchy is mounted."""
    return "/sys/fs/cgroup" + ("/unified" if os.path.isdir("/sys/fs/cgroup/unified") else "")


def cgroup_of(pid: int) -> str | None:
    """The cgroup of process `pid`, as a path below the hierarchy; OSError if the process ended."""
    with open(f"/proc/{pid}/cgroup", errors="surrogateescape") as file:
        for line in file:
            if line.startswith("0::"):
                return line[3:].rstrip("\n")
    return None


def kill_others_of_service(unit: str) -> list[int]:
    """Send SIGKILL to the other processes in the cgroup of this process, the main process of the
    systemd service `unit`; returns their PIDs. Nothing is done outside that service.

    The call does not wait: a process that waits for a file system whose server does not answer ends
    only when that wait does.
    """
    own = cgroup_of(os.getpid())
    if own is None or os.path.basename(own) != unit:
        return []
    killed = []
    with open(f"{hierarchy()}{own}/cgroup.procs") as file:
        others = {int(line) for line in file} - {os.getpid()}
    for pid in sorted(others):
        # Held by a descriptor, the process cannot be mistaken for a later one with its PID.
        with contextlib.suppress(OSError), opened(os.pidfd_open(pid)) as process:
            if cgroup_of(pid) == own:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                killed.append(pid)
    return killed
