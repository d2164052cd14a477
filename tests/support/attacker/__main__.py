"""Run one function of this package: `python3 -m support.attacker PID MODULE FUNCTION`.

PID is the init of the container to enter, or 0 for the host itself. The arguments are read from
stdin, the result is written to stdout, both as JSON.
"""

import importlib
import json
import os
import sys

from support.attacker.kernel import check, libc

NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")


def join_cgroup_of(pid: int) -> None:
    """As `incus exec` does: what the host tells apart by their cgroups counts as the container."""
    with open(f"/proc/{pid}/cgroup") as file:
        (path,) = (line[3:].strip() for line in file if line.startswith("0::"))
    with open(f"/sys/fs/cgroup{path}/cgroup.procs", "w") as procs:
        procs.write(str(os.getpid()))


def become_container_root(pid: int) -> None:
    """Enter the cgroup and all namespaces of process `pid` as root, with all capabilities.

    The system call filter that Incus adds is not taken over. A child of this process goes on,
    because only a child is in the new PID namespace.
    """
    join_cgroup_of(pid)
    differ = [
        name
        for name in NAMESPACES
        if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    ]
    for fd in [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in differ]:
        check(libc.setns(fd, 0))
        os.close(fd)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def main() -> None:
    pid, module, name = sys.argv[1:]
    function = getattr(importlib.import_module(module), name)
    arguments = json.load(sys.stdin)
    if int(pid):
        become_container_root(int(pid))
    print(json.dumps(function(*arguments)), flush=True)


if __name__ == "__main__":
    main()
