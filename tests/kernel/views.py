"""A store, and views of it in a container: shared by the tests of the isolated store."""

import asyncio
import os
import pickle
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from support.containers import CLONE_NEWPID, Sandbox, apart

from inx_sidecar.container.locked_mounts import HostDirectory
from inx_sidecar.container.mounts import attach_mounts, attach_store_over
from inx_sidecar.container.namespaces import Container
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, mount, unshare
from inx_sidecar.nix.generation_changes import Change
from kernel.test_mounts import CHANGE

T = TypeVar("T")


def name_of(label: str) -> str:
    return f"{'0' * 32}-{label}"


DIRECTORY: Final = name_of("directory")
FILE: Final = name_of("file")
HIDDEN: Final = name_of("hidden")
ODD: Final = name_of("a+b.c_d?e=f-g")
LARGE: Final = 50 << 20
_MTIME: Final = 1_000_000_001_234_567_890
SHOWN: Final[Set[str]] = frozenset(
    {
        DIRECTORY, FILE, ODD, "entries", name_of("x" * 211),
        *map(name_of, ["empty", "none", "large", "program", "same", "in", "out", "dangling"]),
    }
)  # fmt: skip


def make_store(path: Path) -> None:
    """A store with the entries of SHOWN, and with as many others."""
    path.mkdir()
    for name in (DIRECTORY, ODD, "entries", HIDDEN):
        (path / name / "bin/deep").mkdir(parents=True)
        (path / name / "bin/deep/file").write_text(f"of {name}")
        (path / name / "up").symlink_to(f"../{HIDDEN}/bin/deep/file")
        (path / name / "across").symlink_to(f"../{FILE}")
    (path / DIRECTORY / "suid").touch()
    (path / DIRECTORY / "suid").chmod(0o6755)
    os.mknod(path / DIRECTORY / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (path / name_of("none")).mkdir()
    (path / name_of("empty")).touch()
    (path / FILE).write_text("of the host")
    os.link(path / FILE, path / name_of("same"))
    (path / name_of("program")).write_text("#!/bin/sh\n")
    (path / name_of("program")).chmod(0o555)
    with open(path / name_of("large"), "wb") as file:
        file.truncate(LARGE)
        file.seek(LARGE - 3)
        file.write(b"end")
    (path / name_of("in")).symlink_to(f"{DIRECTORY}/bin/deep/file")
    (path / name_of("out")).symlink_to(HIDDEN)
    (path / name_of("dangling")).symlink_to("/gone")
    (path / name_of("x" * 211)).write_text("a name of the greatest length")
    (path / name_of("hidden-file")).write_text("hidden")
    for found in sorted(path.rglob("*"), reverse=True):
        if found.name in (FILE, name_of("same"), name_of("empty"), "file"):
            found.chmod(0o444)
        elif found.is_dir() and not found.is_symlink():
            found.chmod(0o555)
        os.utime(found, ns=(_MTIME, _MTIME), follow_symlinks=False)


def attached(
    sandbox: Sandbox, store: Path, names: Iterable[str] = SHOWN, change: Change | None = CHANGE
) -> bool:
    view = HostDirectory(str(store), "nix/store", entries=frozenset(names))
    with Container(sandbox.pid, "web") as container:
        return asyncio.run(attach_mounts(container, [view], change))


def shown(
    sandbox: Sandbox, store: Path, names: Iterable[str], change: Change | None = None
) -> bool:
    view = HostDirectory(str(store), "nix/store", entries=frozenset(names))
    with Container(sandbox.pid, "web") as container:
        return asyncio.run(attach_store_over(container, view, change))


def listed(sandbox: Sandbox, path: str = "/nix/store") -> Set[str]:
    return set(sandbox.inside(partial(os.listdir, path)))


def below(top: str) -> Iterator[str]:
    for directory, directories, files in os.walk(top):
        yield from (os.path.relpath(f"{directory}/{name}", top) for name in directories + files)


@contextmanager
def steps(sandbox: Sandbox, life: Callable[[], Iterator[T]]) -> Iterator[Callable[[], T]]:
    """Run `life` in one process inside; each call returns the next value that `life` yields.

    The process runs on between the calls.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def live() -> None:
        values = life()
        while theirs.recv(1):
            theirs.send(pickle.dumps(next(values)))

    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            sandbox.inside(live)
        finally:
            os._exit(0)
    theirs.close()

    def step() -> T:
        ours.send(b"?")
        answer = ours.recv(1 << 20)
        assert answer, "the process inside has ended"
        value: T = pickle.loads(answer)
        return value

    try:
        yield step
    finally:
        ours.close()  # the process inside reads the end of file, and exits
        os.waitpid(pid, 0)


def with_proc(function: Callable[[], T]) -> T:
    """Inside: the result of `function`, with /proc mounted for a PID namespace of its own."""

    def alone() -> T:
        mount("proc", "/proc", "proc", 0)
        return function()

    unshare(CLONE_NEWNS | CLONE_NEWPID)
    return apart(alone)
