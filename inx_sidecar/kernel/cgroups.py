"""Control groups of processes, in the unified hierarchy (cgroups(7))."""

import contextlib
import os
import signal
from typing import Final

from inx_sidecar.kernel.syscalls import opened

_PAYLOAD: Final = b"/lxc.payload."
_TEXT_MAX: Final = 1 << 16


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


def cgroup_text(pid: int) -> bytes:
    """What proc says of the cgroups of process or thread `pid`; OSError if it ended."""
    with opened(os.open(f"/proc/{pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)) as file:
        return os.read(file, _TEXT_MAX)


def container_of(pid: int) -> str | None:
    """The name that LXC gives to the container of process or thread `pid`; None if it is in none.

    OSError if the process ended.
    """
    return container_in(cgroup_text(pid))


def container_in(text: bytes) -> str | None:
    """As `container_of`, for the `cgroup_text` of a process.

    LXC puts each process of a container below lxc.payload.NAME (lxc.container.conf(5)), in every
    hierarchy, and processes inside cannot leave it. The first such directory counts: root inside
    may make others below it.
    """
    _, found, rest = text.partition(_PAYLOAD)
    return os.fsdecode(rest.partition(b"\n")[0].partition(b"/")[0]) if found else None


def end_container_of(pid: int) -> None:
    """Kill all processes of the container of `pid` at once (cgroups(7), cgroup.kill; Linux 5.14).

    Also what they make meanwhile is killed. Nothing is done without the unified hierarchy.
    """
    parts = (cgroup_of(pid) or "").split("/")
    for count, part in enumerate(parts):
        if f"/{part}".startswith(os.fsdecode(_PAYLOAD)):
            with open(f"{hierarchy()}{'/'.join(parts[: count + 1])}/cgroup.kill", "w") as file:
                file.write("1")
            return


def process_of(thread: int) -> int:
    """The process that `thread` belongs to; OSError if it ended (proc_pid_status(5))."""
    with open(f"/proc/{thread}/status", errors="surrogateescape") as file:
        return next((int(line[5:]) for line in file if line.startswith("Tgid:")), thread)


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
