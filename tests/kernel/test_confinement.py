"""A confined process has the files below a directory, and nothing else."""

import errno
import os
import resource
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.containers import Sandbox, apart

from inx_sidecar.kernel.confinement import confine
from inx_sidecar.kernel.syscalls import CLONE_NEWUSER, opened, setns, unshare

pytestmark = pytest.mark.isolated


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.mkdir()
    (path / "file").write_text("below")
    (path / "out").symlink_to("../outside")
    (tmp_path / "outside").write_text("outside")
    return path


def confined(sandbox: Sandbox, place: Path, attempt: Callable[[], object]) -> object:
    """The result of `attempt` in a confined process: root of the container, among the mounts of the
    host, which is the errno if it fails."""

    def alone() -> object:
        status = os.open("/proc/self/status", os.O_RDONLY)
        os.dup2(status, 100)
        with opened(os.open(place, os.O_PATH)) as root:
            with open(f"/proc/{sandbox.pid}/ns/user") as user:
                if not sandbox.privileged:
                    setns(user.fileno(), CLONE_NEWUSER)
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            confine(root, {resource.RLIMIT_NOFILE: 200})
        try:
            return attempt()
        except OSError as error:
            return error.errno

    return apart(alone)


def test_files_below_the_directory_are_there_and_no_others(sandbox: Sandbox, place: Path) -> None:
    for path in (place.parent, place):
        path.chmod(0o755)
    assert confined(sandbox, place, lambda: Path("/file").read_text()) == "below"
    for outside in ("/../outside", "/out", "/etc", str(place)):
        assert confined(sandbox, place, partial(os.stat, outside)) == errno.ENOENT


def test_no_capability_is_left_and_none_can_be_gained(sandbox: Sandbox, place: Path) -> None:
    def status() -> dict[str, str]:
        lines = os.pread(100, 1 << 16, 0).decode().splitlines()
        return dict(line.split(":\t") for line in lines if "\t" in line)

    found = confined(sandbox, place, status)
    assert isinstance(found, dict)
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff")} == {"0" * 16}
    assert found["NoNewPrivs"] == "1"
    attempts: list[Callable[[], object]] = [
        lambda: os.chroot("/"),
        lambda: unshare(CLONE_NEWUSER),
        lambda: os.chown("/file", 1, 1),
        lambda: os.setgroups([1]),
    ]
    for attempt in attempts:
        assert confined(sandbox, place, attempt) == errno.EPERM


def test_the_sockets_of_the_host_cannot_be_reached(sandbox: Sandbox, place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket() as inet:
        abstract.bind(f"\0inx-test-{os.getpid()}")
        inet.bind(("127.0.0.1", 0))
        for listener in (abstract, inet):
            listener.listen()
            family, address = listener.family, listener.getsockname()

            def connect(family: int = family, address: object = address) -> None:
                with socket.socket(family) as client:
                    client.connect(address)  # type: ignore[arg-type]

            connect()
            assert confined(sandbox, place, connect) in (errno.ECONNREFUSED, errno.ENETUNREACH)


def test_the_containers_root_starts_no_process(unprivileged: Sandbox, place: Path) -> None:
    assert confined(unprivileged, place, os.fork) == errno.EAGAIN


def test_limits_are_hard(sandbox: Sandbox, place: Path) -> None:
    found = confined(sandbox, place, lambda: resource.getrlimit(resource.RLIMIT_NOFILE))
    assert found == (200, 200)

    def raise_it() -> None:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
        except ValueError as error:
            raise PermissionError(errno.EPERM, str(error)) from None

    assert confined(sandbox, place, raise_it) == errno.EPERM
