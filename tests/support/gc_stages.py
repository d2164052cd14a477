"""Nix clients that register a root step by step, and collections that stop at each stage.

Both run in this process, outside the host: it sees the host's files in /proc.
"""

import contextlib
import enum
import functools
import itertools
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, ParamSpec, Self

from inx_sidecar.kernel.fanotify import OpenRequest, PermissionGroup
from support.disposable import Host
from support.gc import BARRIER, COLLECT, GCROOTS, ROOTS, SIDECAR_UNITS, main_pid
from support.incus import SECONDS, Incus
from support.nixworker import NixClient, make_link

P = ParamSpec("P")
fresh_numbers = itertools.count()


def outside(host: Host, path: str) -> Path:
    """The path on this machine of a file of the host."""
    return Path(f"/proc/{host.pid}/root{path}")


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Instance:
    """A running instance, with its files as this process sees them."""

    def __init__(self, incus: Incus, name: str) -> None:
        self.name = name
        self.host = incus.host
        self.uuid = incus.uuid(name)
        self.socket = os.fspath(outside(self.host, f"/run/inx/{self.uuid}/daemon-socket/socket"))
        self.inside("/srv").mkdir(exist_ok=True)

    @classmethod
    @contextlib.contextmanager
    def launched(cls, host: Host) -> Iterator[Self]:
        """An instance that exists while the block runs."""
        incus = Incus(host, "race")
        yield cls(incus, incus.launch(flake="/etc/nixos#web"))
        incus.clean_up()

    def inside(self, path: str) -> Path:
        storage = "/var/lib/incus/storage-pools/default/containers"
        return outside(self.host, f"{storage}/{self.name}/rootfs{path}")

    def in_store(self, path: str) -> bool:
        return os.path.lexists(outside(self.host, path))

    def rooted(self, path: str) -> bool:
        """A link inside holds the path on the host."""
        links = outside(self.host, f"{ROOTS}/{self.name}.{self.uuid}/links")
        with contextlib.suppress(FileNotFoundError):
            return any(os.readlink(links / name) == path for name in os.listdir(links))
        return False


class Registration:
    """A Nix client of an instance. It makes one root, step by step."""

    present: ClassVar[set["Registration"]] = set()

    def __init__(self, instance: Instance, link: str = "") -> None:
        self.instance = instance
        self.link = link or f"/srv/link-{next(fresh_numbers)}"
        self.path = ""
        self._client: NixClient | None = None

    def begin(self) -> None:
        """Connect, add a new path to the store, and make its temporary root."""
        number = next(fresh_numbers)
        self._client = NixClient(self.instance.socket)
        self.present.add(self)
        self.path = self._client.add_text(f"race-{number}", f"{os.getpid()} {number}")
        self._client.add_temp_root(self.path)

    def register(self) -> None:
        """Make the link, and register it."""
        assert self._client is not None
        make_link(self.path, os.fspath(self.instance.inside(self.link)))
        self._client.add_indirect_root(self.link)

    def leave(self) -> None:
        """Disconnect, unless that is done already: the temporary root ends."""
        if self._client is not None:
            self._client.close()
            self._client = None
            self.present.remove(self)

    @classmethod
    def leave_all(cls) -> None:
        for registration in list(cls.present):
            registration.leave()

    def complete(self) -> None:
        """Do all three steps."""
        self.begin()
        self.register()
        self.leave()

    def in_store(self) -> bool:
        return self.instance.in_store(self.path)

    def rooted(self) -> bool:
        return self.instance.rooted(self.path)

    def unlink(self) -> None:
        self.instance.inside(self.link).unlink()


class Stage(enum.IntEnum):
    """Moments of a collection (collectGarbage in libstore/gc.cc)."""

    BEFORE = 0
    LOCKED = 1  # it has gc.lock, but does not yet listen on gc-socket
    READ = 2  # it has read gcroots, but not yet the other roots
    ROOTED = 3  # it has read all roots, and deletes next
    AFTER = 4


# The directory that a collection opens between the stage and the next one, and the barrier guards.
OPENS_NEXT = {Stage.LOCKED: GCROOTS, Stage.READ: "/nix/var/nix/temproots"}


class NixAborted(Exception):
    """The collection was ended by a bug of Nix, and not by inx.

    Nix's server of new roots sometimes ends the process when a client connects and leaves in the
    same moment (NixOS/nix#15962).
    """


def again_if_nix_aborts(test: Callable[P, None]) -> Callable[P, None]:
    """Repeat a test that ends with NixAborted, up to three times."""

    @functools.wraps(test)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(3):
            with contextlib.suppress(NixAborted):
                return test(*args, **kwargs)
            Registration.leave_all()
        test(*args, **kwargs)

    return wrapper


class Collection:
    """`nix-store --gc`. It stops at each stage that a test wants to reach."""

    def __init__(self, host: Host) -> None:
        self._directory = outside(host, f"/root/collection-{next(fresh_numbers)}")
        self._directory.mkdir()
        # Nix opens and reads these pipes. It goes on as soon as their writer closes them.
        stages = Stage.LOCKED, Stage.ROOTED
        self._fifos = {stage: self._directory / stage.name for stage in stages}
        for fifo in self._fifos.values():
            os.mkfifo(fifo)
        inside = f"/root/{self._directory.name}"
        self._env = {
            "_NIX_TEST_GC_SYNC_1": f"{inside}/{Stage.LOCKED.name}",
            "_NIX_TEST_GC_SYNC_2": f"{inside}/{Stage.ROOTED.name}",
        }
        # Nix reads this directory after gcroots and before temproots.
        self._permissions = PermissionGroup()
        self._permissions.mark(os.fspath(outside(host, "/nix/var/nix/profiles")))
        self._stage = Stage.BEFORE
        self._writer = -1
        self._request: OpenRequest | None = None
        self._host = host
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return child_of(self._process)

    def reach(self, stage: Stage) -> None:
        """Let the collection go on until `stage`, and stop it there."""
        while self._stage < stage:
            self.let_go()
            self._stage = Stage(self._stage + 1)
            process = self._process = self._process or self._begin()
            if self._stage is Stage.AFTER:
                self._end(process)
            else:
                self._stop_at(self._stage, process)

    def let_go(self) -> None:
        """Let the collection go on from where it is stopped. `reach` does this first."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
        if self._request is not None:
            self._permissions.allow(self._request)
            self._request = None

    def _end(self, process: subprocess.Popen[str]) -> None:
        said, _ = process.communicate(timeout=SECONDS)
        if "terminate called without an active exception" in said:
            raise NixAborted(said)
        assert process.returncode == 0, said

    def _begin(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._host.enter(COLLECT, self._env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _stop_at(self, stage: Stage, process: subprocess.Popen[str]) -> None:
        if stage is Stage.READ:
            ready, _, _ = select.select([self._permissions.fd], [], [], SECONDS)
            assert ready, "the collection does not read its roots"
            [self._request] = self._permissions.open_requests()
            return
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self._writer = os.open(self._fifos[stage], os.O_WRONLY | os.O_NONBLOCK)
                return
            except OSError:  # nobody reads the pipe yet
                if process.poll() is not None:
                    self._end(process)
                assert time.monotonic() < deadline, f"the collection does not get {stage.name}"
                time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._permissions.close()
        if self._process is not None:
            with self._process:
                if self._process.poll() is None:
                    os.killpg(self._process.pid, signal.SIGKILL)
        shutil.rmtree(self._directory)


@contextlib.contextmanager
def running(host: Host, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A program on the host, which is killed if it still runs after the block."""
    with subprocess.Popen(
        host.enter(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_success(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said


def child_of(process: subprocess.Popen[str]) -> int:
    """The number on this machine of the process that nsenter runs."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def begun() -> bool:
        assert process.poll() is None, "the process has ended"
        return children.read_text() != ""

    wait_until(begun, "nsenter runs nothing")
    return int(children.read_text().split()[0])


def waits_for_barrier(pid: int) -> bool:
    """The process waits for permission to open a directory."""
    return Path(f"/proc/{pid}/wchan").read_text().startswith("fanotify")


def wait_held(host: Host, directory: str) -> None:
    """Wait until the barrier holds a process that opens the directory."""
    script = 'readlink /proc/"$(systemctl show -P MainPID inx-barrier)"/fd/*'

    def held() -> bool:
        return directory in host.sh(script, check=False).stdout.split()

    wait_until(held, f"nobody waits for {directory}")


def wait_for_successor(host: Host, unit: str, before: int) -> None:
    """Wait until the unit is active with another main process than `before`."""

    def back() -> bool:
        active = host.run(["systemctl", "is-active", unit], check=False).returncode == 0
        return active and main_pid(host, unit) != before

    wait_until(back, f"{unit} does not come back")


def drain(host: Host) -> None:
    """Wait until the sidecar has made all roots that are registered by now.

    A collection that runs has then heard of them.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(SECONDS)
        asking.connect(os.fspath(outside(host, "/run/inx/sidecar.sock")))
        asking.sendall(b"drain")
        asking.shutdown(socket.SHUT_WR)
        assert asking.recv(4096) == b"0\n"


def restore_units(host: Host) -> None:
    """Disconnect all clients, and start what a test has stopped."""
    Registration.leave_all()
    host.run(["systemctl", "reset-failed", "inx-*"], check=False)
    host.run(["systemctl", "start", *SIDECAR_UNITS, BARRIER])
