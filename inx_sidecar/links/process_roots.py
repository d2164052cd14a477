"""The root directories that processes of a container see: one for each mount namespace and chroot.

A link that `nix build` made in a service with a private /tmp, or in a container within the
container, exists in that service's view alone. Used in a forked child, which may hang in a file
system that the container made.
"""

import fcntl
import functools
import os
from dataclasses import dataclass
from typing import Final, Self

from inx_sidecar.incus.running import started
from inx_sidecar.kernel.syscalls import mount_id, opened

# The identity of the view of the container's init.
INIT: Final = "init"
_GET_MNTNS_ID: Final = 0x8008B705  # include/uapi/linux/nsfs.h
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_MAX_VIEWS: Final = 256
_MAX_PROCESSES: Final = 20_000
_MAX_CGROUPS: Final = 2_000
_PAYLOAD: Final = "lxc.payload"


@dataclass(frozen=True)
class View:
    """An O_PATH descriptor of a root directory; `identity` tells it from the others."""

    root: int
    identity: str
    mount: int

    @classmethod
    def at(cls, path: str, identity: str = "") -> Self:
        root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(root)
        return cls(root, f"{identity}:{status.st_dev}:{status.st_ino}", mount_id(root))


def of_container(pid: int, start: int) -> tuple[list[View], bool]:
    """The views of the container whose init is `pid`, its own first; whether they are all.

    ProcessLookupError if the process that began at `start` has ended.
    """
    own = _of_process(pid)
    views = [View(own.root, INIT, own.mount)]
    cgroup = _payload(pid)
    if started(pid) != start:
        raise ProcessLookupError(f"process {pid} is another's")
    seen = {own.identity}
    namespaces = {_namespace(pid)}
    processes, complete = _processes(cgroup) if cgroup else ([], False)
    for process in processes:
        if len(views) == _MAX_VIEWS:
            return views, False
        try:
            # Most share the mount namespace and the root of one that was seen.
            namespace = _namespace(process)
            if namespace in namespaces and _same_root(process, seen):
                continue
            view = _of_process(process)
            if _payload(process) != cgroup:
                os.close(view.root)  # it ended, and its number is another's
                continue
        except OSError:
            continue  # it ended
        namespaces.add(namespace)
        if view.identity in seen:
            os.close(view.root)
        else:
            seen.add(view.identity)
            views.append(view)
    return views, complete


def _of_process(pid: int) -> View:
    return View.at(f"/proc/{pid}/root", _namespace(pid))


def _namespace(pid: int) -> str:
    """Told by a number that none has until the next boot (Linux 6.11), else by one that is used
    again."""
    with opened(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as fd:
        try:
            number = fcntl.ioctl(fd, _GET_MNTNS_ID, bytes(8)).hex()
        except OSError:
            number = f"{os.fstat(fd).st_ino}"
    return f"{_boot()}:{number}"


@functools.cache
def _boot() -> str:
    with open(_BOOT_ID) as file:
        return file.read(8)


def _same_root(pid: int, seen: set[str]) -> bool:
    status = os.stat(f"/proc/{pid}/root")
    identity = f"{_namespace(pid)}:{status.st_dev}:{status.st_ino}"
    return identity in seen


def _payload(pid: int) -> str | None:
    """The cgroup, in the unified hierarchy, below which all of the container's processes are."""
    with open(f"/proc/{pid}/cgroup", errors="surrogateescape") as file:
        for line in file:
            if line.startswith("0::"):
                steps = line[3:].rstrip("\n").split("/")
                for count, step in enumerate(steps):
                    if step.startswith(_PAYLOAD):
                        return "/".join(steps[: count + 1])
    return None


def _processes(cgroup: str) -> tuple[list[int], bool]:
    """The processes below the cgroup, and whether they are all."""
    found: list[int] = []
    waiting = [f"{_unified()}{cgroup}"]
    for _ in range(_MAX_CGROUPS):
        if not waiting or len(found) > _MAX_PROCESSES:
            break
        directory = waiting.pop()
        try:
            with open(f"{directory}/cgroup.procs") as file:
                found += [number for line in file if (number := int(line))]
            with os.scandir(directory) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # it was removed
    return found[:_MAX_PROCESSES], not waiting and len(found) <= _MAX_PROCESSES


def _unified() -> str:
    """Where the unified cgroup hierarchy is mounted."""
    return "/sys/fs/cgroup" + ("/unified" if os.path.isdir("/sys/fs/cgroup/unified") else "")
