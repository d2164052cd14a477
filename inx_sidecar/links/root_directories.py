"""The root directories that processes of a container see: one for each mount namespace and chroot.

A link that `nix build` made in a service with a private /tmp, or in a container within the
container, exists below the root of that process alone. A forked child looks, which may wait for
ever on a file system that the container made; the event loop only at what a child knows.
"""

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, Self

from inx_sidecar.incus.running_record import process_start_time
from inx_sidecar.kernel.cgroups import cgroup_of, hierarchy
from inx_sidecar.kernel.process_times import boot_id
from inx_sidecar.kernel.syscalls import cached_status, cached_status_of, opened

# The identity of the root of the container's init.
INIT: Final = "init"
_GET_MNTNS_ID: Final = 0x8008B705  # include/uapi/linux/nsfs.h
_MAX_ROOTS: Final = 256
_MAX_PROCESSES: Final = 20_000
_MAX_CGROUPS: Final = 2_000
# The event loop looks at so many processes and cgroups in about two milliseconds.
_FEW: Final = 100
_MOUNTS_MAX: Final = 1 << 16
_PAYLOAD: Final = "lxc.payload"


@dataclass(frozen=True)
class RootDirectory:
    """An O_PATH descriptor of a root directory, its mount, and what distinguishes it.

    `mounts` is what proc says of the mounts that a process with this root directory sees, None if
    it is too long; empty if they are not known.
    """

    fd: int
    identity: str
    mount: int
    mounts: bytes | None = b""

    @classmethod
    def at(cls, path: str, namespace: str = "", mounts: bytes | None = b"") -> Self:
        root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = cached_status_of(root)
        except OSError:  # a FUSE file system is its mounter's alone
            os.close(root)
            raise
        identity = f"{namespace}:{status.device}:{status.inode}"
        return cls(root, identity, status.mount, mounts)


def root_directories_of(pid: int, started: int) -> tuple[list[RootDirectory], bool]:
    """The root directories in the container whose init is `pid`, that of init first; True if these
    are all.

    ProcessLookupError if the process that began at `started` has ended.
    """
    own = _root_of(pid)
    roots = [replace(own, identity=INIT)]
    cgroup = _payload_cgroup(pid)
    if process_start_time(pid) != started:
        raise ProcessLookupError(f"process {pid} is another's")
    seen = {own.identity}
    namespaces = {_mount_namespace(pid)}
    processes: list[int] = []
    complete = False
    if cgroup:
        processes, complete = _processes_below(cgroup, _MAX_PROCESSES, _MAX_CGROUPS)
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


def known_root_directories(
    pid: int, started: int, is_known: Callable[[bytes], bool]
) -> list[RootDirectory] | None:
    """As `root_directories_of`, for the event loop: None if there are more processes than it can
    look at, if a process sees mounts that are not known by `is_known`, or if the process ended.

    To look at a root directory may mean to ask a server (see link_state.py), unless the mounts are
    those that a child has looked at. So they are compared first, once in each mount namespace.
    """
    roots: list[RootDirectory] = []
    try:
        cgroup = _payload_cgroup(pid)
        processes, complete = _processes_below(cgroup, _FEW, _FEW) if cgroup else ([], False)
        if not complete or process_start_time(pid) != started:
            return None
        seen = set()
        namespaces: set[str] = set()
        for process in dict.fromkeys((pid, *processes)):
            try:
                mounts = None
                # The kernel takes this text from no file system (proc(5)).
                namespace = os.readlink(f"/proc/{process}/ns/mnt")
                if namespace not in namespaces:
                    mounts = _mounts_of(process)
                    if mounts is None or not is_known(mounts):
                        break
                    namespaces.add(namespace)
                # Not the path of the root: a mount may hide another root with the same path.
                status = cached_status(f"/proc/{process}/root")
                key = namespace, status.mount, status.device, status.inode
                if key in seen:
                    continue
                seen.add(key)
                if mounts is None:
                    mounts = _mounts_of(process)
                if mounts is None or not is_known(mounts):
                    break
                namespace = _mount_namespace(process)
                root = RootDirectory.at(f"/proc/{process}/root", namespace, mounts)
                roots.append(replace(root, identity=INIT) if process == pid else root)
            except OSError:
                if process == pid:
                    raise
        else:
            return roots
    except OSError:
        pass  # the container ended
    for root in roots:
        os.close(root.fd)
    return None


def _root_of(pid: int) -> RootDirectory:
    return RootDirectory.at(f"/proc/{pid}/root", _mount_namespace(pid), _mounts_of(pid))


def _mounts_of(pid: int) -> bytes | None:
    with open(f"/proc/{pid}/mountinfo", "rb", buffering=0) as file:
        text = b""
        while part := file.read(_MOUNTS_MAX):
            text += part
            if len(text) > _MOUNTS_MAX:
                return None
    return text


def _mount_namespace(pid: int) -> str:
    """A number that no other namespace gets until the next boot (Linux 6.11); before, an inode
    number, which the kernel uses again."""
    with opened(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as fd:
        try:
            number = fcntl.ioctl(fd, _GET_MNTNS_ID, bytes(8)).hex()
        except OSError:
            number = f"{os.fstat(fd).st_ino}"
    return f"{boot_id()}:{number}"


def _is_seen(pid: int, seen: set[str]) -> bool:
    status = cached_status(f"/proc/{pid}/root")
    identity = f"{_mount_namespace(pid)}:{status.device}:{status.inode}"
    return identity in seen


def _payload_cgroup(pid: int) -> str | None:
    """The cgroup, in the unified hierarchy, below which all processes of the container are."""
    parts = (cgroup_of(pid) or "").split("/")
    for count, part in enumerate(parts):
        if part.startswith(_PAYLOAD):
            return "/".join(parts[: count + 1])
    return None


def _processes_below(cgroup: str, processes: int, cgroups: int) -> tuple[list[int], bool]:
    """The processes below the cgroup, at most so many, and whether these are all."""
    found: list[int] = []
    waiting = [f"{hierarchy()}{cgroup}"]
    for _ in range(cgroups):
        if not waiting or len(found) > processes:
            break
        directory = waiting.pop()
        try:
            with open(f"{directory}/cgroup.procs") as file:
                # A process of another PID namespace is shown as 0 (cgroups(7)).
                some = islice(file, processes + 1)
                found += [number for line in some if (number := int(line))]
            with os.scandir(directory) as entries:
                below = (e.path for e in entries if e.is_dir(follow_symlinks=False))
                waiting += islice(below, cgroups)
        except OSError:
            continue  # the cgroup was removed
    return found[:processes], not waiting and len(found) <= processes
