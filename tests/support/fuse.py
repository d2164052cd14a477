"""FUSE file systems in a container of the tests."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from inx_sidecar.kernel.syscalls import CLONE_NEWNS, CLONE_NEWUSER, mount, setns
from support.containers import Sandbox
from support.links import Web


def _mount_hanging(place: str, sandbox: Sandbox) -> None:
    """Mount a FUSE file system in the container. No process answers its requests."""

    def prepare() -> None:
        os.makedirs(place, exist_ok=True)

    sandbox.inside(prepare)
    user = os.open(f"/proc/{sandbox.pid}/ns/user", os.O_RDONLY)
    mounts = os.open(f"/proc/{sandbox.pid}/ns/mnt", os.O_RDONLY)
    setns(user, CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    setns(mounts, CLONE_NEWNS)
    mount("hang", place, "fuse", 0, f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other")


@contextmanager
def hanging(web: Web, place: str) -> Iterator[None]:
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
