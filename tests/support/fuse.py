"""FUSE file systems in a container of the tests."""

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Protocol
from unittest.mock import patch

from inx_sidecar.kernel.syscalls import CLONE_NEWNS, CLONE_NEWUSER, mount, setns
from support.attacker import stalling
from support.attacker.answering import Answers
from support.attacker.stalling import never_answer_below_overlay
from support.containers import Sandbox


def _enter_with_fuse(sandbox: Sandbox) -> int:
    """Become the container's root in its mount namespace, with a descriptor of the host's
    /dev/fuse, which is returned."""
    user = os.open(f"/proc/{sandbox.pid}/ns/user", os.O_RDONLY)
    mounts = os.open(f"/proc/{sandbox.pid}/ns/mnt", os.O_RDONLY)
    setns(user, CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    setns(mounts, CLONE_NEWNS)
    return fuse


def _mount_hanging(place: str, sandbox: Sandbox) -> None:
    """Mount a FUSE file system in the container. No process answers its requests."""

    def prepare() -> None:
        os.makedirs(place, exist_ok=True)

    sandbox.inside(prepare)
    fuse = _enter_with_fuse(sandbox)
    mount("hang", place, "fuse", 0, f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other")


class HasSandbox(Protocol):
    @property
    def sandbox(self) -> Sandbox: ...


@contextmanager
def hanging(web: HasSandbox, place: str) -> Iterator[None]:
    ready, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _mount_hanging(place, web.sandbox)
            os.write(report, b"r")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(report)
    try:
        assert os.read(ready, 1) == b"r", "no FUSE file system"
        yield
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def hanging_below_overlay(web: HasSandbox, place: str) -> Iterator[int]:
    """An overlay at `place` above a FUSE file system that answers nothing any more. The block gets
    a pipe, which can be read when a request has come."""
    ready, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for path in ("/etc", place):
                web.sandbox.inside(functools.partial(os.makedirs, path, exist_ok=True))
            fuse = _enter_with_fuse(web.sandbox)
            sys.stdout = open(report, "w")
            with patch.object(stalling, "open_fuse", lambda: fuse):
                never_answer_below_overlay(place)
        finally:
            os._exit(1)
    os.close(report)
    try:
        said = b""
        while not said.endswith(b"\n"):
            part = os.read(ready, 100)
            assert part, "no overlay"
            said += part
        assert said == b'"mounted"\n', said
        yield ready
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)


class Requests:
    """The processes that have asked the file system of `answering` for anything."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def processes(self) -> set[int]:
        os.set_blocking(self._pipe, False)
        found = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._pipe, 1 << 16):
                found += part
        return {int(line) for line in found.split()}


@contextmanager
def answering(sandbox: Sandbox, place: str, directories: Set[str]) -> Iterator[Requests]:
    """A FUSE file system at `place` that answers at once. Each of its directories has
    `directories`, and a file for each other name that somebody opens to write."""
    ready, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            fuse = _enter_with_fuse(sandbox)
            options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
            mount("answers", place, "fuse", 0, options)
            Answers(fuse, report, directories).serve()
        finally:
            os._exit(1)
    os.close(report)
    try:
        assert os.read(ready, 16), "no FUSE file system"
        yield Requests(ready)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
