"""The root directories that processes of a container see: one for each mount namespace and chroot.

A link that `nix build` made in a service with a private /tmp, or in a container within the
container, exists below the root of that process alone. Used in a forked child, which may wait for
ever on a file system that the container made.
"""

import fcntl
import functools
import os
from dataclasses import dataclass
from typing import Final, Self

from inx_sidecar.incus.running_record import process_start_time
from inx_sidecar.kernel.cgroups import cgroup_of, hierarchy
from inx_sidecar.kernel.syscalls import mount_id, opened

# The identity of the root of the container's init.
INIT: Final = "init"
_GET_MNTNS_ID: Final = 0x8008B705  # include/uapi/linux/nsfs.h
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_MAX_ROOTS: Final = 256
_MAX_PROCESSES: Final = 20_000
_MAX_CGROUPS: Final = 2_000
_PAYLOAD: Final = "lxc.payload"


@dataclass(frozen=True)
class RootDirectory:
    """An O_PATH descriptor of a root directory, its mount, and what distinguishes it."""

    fd: int
    identity: str
    mount: int

    @classmethod
    def at(cls, path: str, namespace: str = "") -> Self:
        root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(root)
        return cls(root, f"{namespace}:{status.st_dev}:{status.st_ino}", mount_id(root))


def root_directories_of(pid: int, started: int) -> tuple[list[RootDirectory], bool]:
    """The root directories in the container whose init is `pid`, that of init first; True if these
    are all.

    ProcessLookupError if the process that began at `started` has ended.
    """
    own = _root_of(pid)
    roots = [RootDirectory(own.fd, INIT, own.mount)]
    cgroup = _payload_cgroup(pid)
    if process_start_time(pid) != started:
        raise ProcessLookupError(f"process {pid} is another's")
    seen = {own.identity}
    namespaces = {_mount_namespace(pid)}
    processes, complete = _processes_below(cgroup) if cgroup else ([], False)
    for process in processes:
        if len(roots) == _MAX_ROOTS:
            return roots, False
        try:
            # Most processes share the mount namespace and the root of another one.
            namespace = _mount_namespace(process)
            if namespace in namespaces and _is_seen(process, seen):
                continue
            root = _root_of(process)
            if _payload_cgroup(process) != cgroup:
                os.close(root.fd)  # the process ended, and its PID is another process's
                continue
        except OSError:
            continue  # the process ended
        namespaces.add(namespace)
        if root.identity in seen:
            os.close(root.fd)
        else:
            seen.add(root.identity)
            roots.append(root)
    return roots, complete


def _root_of(pid: int) -> RootDirectory:
    return RootDirectory.at(f"/proc/{pid}/root", _mount_namespace(pid))


def _mount_namespace(pid: int) -> str:
    """A number that no other namespace gets until the next boot (Linux 6.11); before, an inode
    number, which the kernel uses again."""
    with opened(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as fd:
        try:
            number = fcntl.ioctl(fd, _GET_MNTNS_ID, bytes(8)).hex()
        except OSError:
            number = f"{os.fstat(fd).st_ino}"
    return f"{_boot_id()}:{number}"


@functools.cache
def _boot_id() -> str:
    with open(_BOOT_ID) as file:
        return file.read(8)


def _is_seen(pid: int, seen: set[str]) -> bool:
    status = os.stat(f"/proc/{pid}/root")
    identity = f"{_mount_namespace(pid)}:{status.st_dev}:{status.st_ino}"
    return identity in seen


def _payload_cgroup(pid: int) -> str | None:
    """The cgroup, in the unified hierarchy, below which all processes of the container are."""
    parts = (cgroup_of(pid) or "").split("/")
    for count, part in enumerate(parts):
        if part.startswith(_PAYLOAD):
            return "/".join(parts[: count + 1])
    return None


def _processes_below(cgroup: str) -> tuple[list[int], bool]:
    """The processes below the cgroup, and whether these are all."""
    found: list[int] = []
    waiting = [f"{hierarchy()}{cgroup}"]
    for _ in range(_MAX_CGROUPS):
        if not waiting or len(found) > _MAX_PROCESSES:
            break
        directory = waiting.pop()
        try:
            with open(f"{directory}/cgroup.procs") as file:
                # A process of another PID namespace is shown as 0 (cgroups(7)).
                found += [number for line in file if (number := int(line))]
            with os.scandir(directory) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # the cgroup was removed
    return found[:_MAX_PROCESSES], not waiting and len(found) <= _MAX_PROCESSES
