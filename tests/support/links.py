"""A container with links, in a cgroup as LXC names it, for the tests of the link resolver."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from inx_sidecar.incus.running_record import process_start_time
from inx_sidecar.kernel import cgroups
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, CLONE_NEWUSER, mount, setns, unshare
from inx_sidecar.links import resolver
from inx_sidecar.links.resolver import InitProcess, ResolvedLink
from support.containers import FIRST_ID, Sandbox, make_rootfs, running

NAME: Final = "web"
# The container's copy of its registrations, below its root file system.
COPY: Final = "nix/var/nix/gcroots/auto"


def store(digit: str) -> str:
    return f"/nix/store/{digit * 32}-{digit}"


ONE, TWO, OUTSIDE = store("1"), store("2"), store("9")


class Web:
    """A running container in a cgroup as LXC names it. It makes links and resolves them."""

    def __init__(self, sandbox: Sandbox, cgroup: Path) -> None:
        self.sandbox = sandbox
        self.rootfs = sandbox.rootfs
        self.cgroup = cgroup
        self.process = InitProcess(sandbox.pid, process_start_time(sandbox.pid))
        join_cgroup(cgroup, sandbox.pid)

    def link(self, path: str, target: str = ONE) -> None:
        """Make a link as the container's root, in the mount namespace of its init."""
        self.inside(lambda: make_link(path, target))

    def inside(self, function: Callable[[], object]) -> None:
        def call() -> None:
            function()

        self.sandbox.inside(call)

    def resolve_all(self, *paths: str, problem: str = "") -> dict[str, ResolvedLink]:
        """Resolve registered paths. The problem that is reported has `problem` in it, if any."""
        resolved = asyncio.run(resolver.resolve_links(NAME, self.process, paths))
        assert problem in resolved.problem and bool(problem) == bool(resolved.problem)
        assert resolved.unanswered is None
        assert list(resolved.links) == list(dict.fromkeys(paths))
        return dict(resolved.links)

    def resolve(self, path: str, problem: str = "") -> ResolvedLink:
        return self.resolve_all(path, problem=problem)[path]

    @contextmanager
    def service(
        self, prepare: Callable[[], object], *, below: str = "", own_mounts: bool = True
    ) -> Iterator[int]:
        """A process of the container, after `prepare`, with or without its own mount namespace."""
        ready, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                enter(self.sandbox)
                if own_mounts:
                    unshare(CLONE_NEWNS)
                prepare()
                os.write(report, b"r")
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        os.close(report)
        try:
            assert os.read(ready, 1) == b"r", "the service did not start"
            cgroup = self.cgroup / below
            cgroup.mkdir(parents=True, exist_ok=True)
            join_cgroup(cgroup, pid)
            yield pid
        finally:
            os.close(ready)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def enter(sandbox: Sandbox) -> None:
    user = os.open(f"/proc/{sandbox.pid}/ns/user", os.O_RDONLY)
    mounts = os.open(f"/proc/{sandbox.pid}/ns/mnt", os.O_RDONLY)
    if not sandbox.privileged:
        setns(user, CLONE_NEWUSER)
    setns(mounts, CLONE_NEWNS)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def join_cgroup(cgroup: Path, pid: int) -> None:
    (cgroup / "cgroup.procs").write_text(f"{pid}")


def make_link(path: str, target: str = ONE) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink(target, path)


def make_long_way(path: str, end: str) -> None:
    """Make a link at `path` to the directory `end`, by long links: the kernel needs a millisecond
    for each walk. It allows 40 links, but counts them again if it has to begin again."""
    os.mkdir(f"{path}.d")
    for number in range(19):
        name = f"{path}.d/{number}"
        os.symlink("/" + "./" * 2000 + end[1:], name)
        end = name
    os.symlink(end, path)
    # Only links that were used since they were made are found in the cache.
    for link in [path, *(f"{path}.d/{number}" for number in range(19))]:
        while os.lstat(link).st_atime_ns <= os.lstat(link).st_ctime_ns:
            os.stat(link)


def mount_tmpfs(path: str) -> None:
    os.makedirs(path, exist_ok=True)
    mount("none", path, "tmpfs", 0)


def mount_disk(*places: str, target: str = ONE) -> None:
    """Mount a tmpfs at each place, and make the link `result` on the last one."""
    for place in places:
        mount_tmpfs(place)
    make_link(f"{places[-1]}/result", target)


def remove_cgroup(cgroup: Path) -> None:
    for directory, _, _ in os.walk(cgroup, topdown=False):
        deadline = time.monotonic() + 60
        while True:
            try:
                os.rmdir(directory)
                break
            except OSError:  # its last process has not ended yet
                if time.monotonic() > deadline:
                    raise


@contextmanager
def started_web(rootfs: Path, *, privileged: bool = False) -> Iterator[Web]:
    cgroup = Path(f"{cgroups.hierarchy()}/lxc.payload.test-{os.getpid()}")
    cgroup.mkdir()
    try:
        make_rootfs(rootfs, 0 if privileged else FIRST_ID)
        with running(rootfs, privileged=privileged) as sandbox:
            yield Web(sandbox, cgroup)
    finally:
        remove_cgroup(cgroup)
