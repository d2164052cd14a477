"""When a process began, and in which boot of the host: tells it from a later process with the same
number, and a boot from the next one."""

import functools
from typing import Final

_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


def process_start_time(pid: int) -> int:
    """When process `pid` began, in clock ticks since boot (proc_pid_stat(5), field 22)."""
    with open(f"/proc/{pid}/stat", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[19])


@functools.cache
def boot_id() -> str:
    """A text that each boot of the host has another one of (random(4))."""
    with open(_BOOT_ID) as file:
        return file.read().strip()
