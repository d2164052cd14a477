"""When a process began: tells it from a later process with the same number."""


def process_start_time(pid: int) -> int:
    """When process `pid` began, in clock ticks since boot (proc_pid_stat(5), field 22)."""
    with open(f"/proc/{pid}/stat", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[19])
