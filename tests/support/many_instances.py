"""Compare the links of very many instances: `python many_instances.py DIRECTORY COUNT LINKS`

Everything that a comparison looks at is real: a process for each instance, with its own mounts and
its cgroup, its root file system with links, registrations, roots, and a database of Nix. Only Incus
is left out, and the systems. Prints JSON: seconds of CPU for each comparison, of the process and of
its children, and MiB that are resident.
"""

import asyncio
import json
import os
import resource
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from inx_sidecar import server  # the sidecar has this in memory, too
from inx_sidecar.base import paths
from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.incus.running_record import process_start_time
from inx_sidecar.kernel import cgroups
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    MS_PRIVATE,
    MS_REC,
    mount,
    move_mount,
    open_tree,
    opened,
    unshare,
)
from inx_sidecar.links import indirect_roots
from inx_sidecar.links.resolver import InitProcess
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots.comparison import compare_running
from inx_sidecar.roots.inventory import Inventory
from inx_sidecar.roots.mirror import Mirror
from support.containers import pivot_here

ROUNDS = 6
AT_ONCE = 8  # as roots/reconciler
SETTLES = 4.0  # until the change times are old enough (kernel/change_times)
MIB = 1 << 20


def main(place: str, count: int, links: int) -> None:
    for name in ("STATE", "RUN", "GCROOTS"):
        setattr(paths, name, f"{place}/{name}")
    for name in ("GC_LOCK", "GC_SOCKET", "NIX_DB"):
        setattr(paths, name, f"{place}/{name}")
    uuids = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(count)]
    for uuid in uuids:
        _make(f"{place}/{uuid}/rootfs", uuid, links)
    with closing(sqlite3.connect(paths.NIX_DB)) as db, db:
        db.execute("create table ValidPaths (path text unique not null)")
        db.executemany("insert into ValidPaths values (?)", [(_path(n),) for n in range(links)])
    with _running([f"{place}/{uuid}/rootfs" for uuid in uuids]) as pids:
        print(json.dumps(asyncio.run(_compare(place, dict(zip(uuids, pids, strict=True))))))


def _path(number: int) -> str:
    return f"/nix/store/{number:032d}-bench-{number}"


def _make(rootfs: str, uuid: str, links: int) -> None:
    for directory in (f"{rootfs}/root", paths.auto_dir(uuid)):
        os.makedirs(directory)
    for number in range(links):
        os.symlink(_path(number), f"{rootfs}/root/result-{number}")
        indirect_roots.put(uuid, f"/root/result-{number}")


@contextmanager
def _running(roots: list[str]) -> Iterator[list[int]]:
    """A process in each of the root directories, with its own mounts and its cgroup."""
    ready, report = os.pipe()
    pids: list[int] = []
    groups: list[Path] = []
    try:
        for root in roots:
            group = Path(f"{cgroups.hierarchy()}/lxc.payload.bench-{os.getpid()}-{len(pids)}")
            group.mkdir()
            groups.append(group)
            pids.append(_begin(root, group, report))
        left = len(pids)
        while left:
            left -= len(os.read(ready, left))
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for group in groups:
            group.rmdir()


def _begin(root: str, group: Path, report: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        (group / "cgroup.procs").write_text("0")
        unshare(CLONE_NEWNS)
        os.chdir(root)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        with opened(open_tree(AT_FDCWD, ".")) as tree, opened(os.open(".", os.O_PATH)) as here:
            move_mount(tree, here)
            os.fchdir(tree)
            pivot_here()
        os.write(report, b"r")
        while True:
            signal.pause()
    finally:
        os._exit(1)


async def _compare(place: str, instances: dict[str, int]) -> dict[str, object]:
    gc = GcClient()
    mirrors = []
    for number, (uuid, pid) in enumerate(instances.items()):
        facts = LxcFacts(f"c{number}", f"{place}/{uuid}/rootfs", "")
        process = InitProcess(pid, process_start_time(pid))
        mirror = Mirror(facts.lxc_name, uuid, facts.rootfs, process, 100_000, gc)
        mirrors.append((mirror, Instance(facts.lxc_name, "default", uuid, facts, False, {})))
    turns = asyncio.Semaphore(AT_ONCE)
    inventory = Inventory((), frozenset(), "a simulation")

    async def compare(mirror: Mirror, instance: Instance) -> None:
        async with turns:
            await compare_running(gc, mirror, instance, inventory)

    rounds = []
    for number in range(ROUNDS):
        if number == 1:
            await asyncio.sleep(SETTLES)
        begin = time.process_time(), _children()
        wall = time.perf_counter()
        await asyncio.gather(*(compare(mirror, instance) for mirror, instance in mirrors))
        rounds.append(
            {
                "wall": time.perf_counter() - wall,
                "cpu": time.process_time() - begin[0],
                "children": _children() - begin[1],
            }
        )
    with open("/proc/self/status") as status:
        resident = next(int(line.split()[1]) / 1024 for line in status if "VmRSS" in line)
    return {"rounds": rounds, "resident": resident}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    assert server
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
