"""Collections against registrations at every moment, and what makes a collection wait."""

import contextlib
import enum
import functools
import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, Self

import pytest
from support.disposable import REPO, Host
from support.incus import SECONDS, Incus
from support.nixworker import NixClient, make_link

from inx_sidecar.kernel.fanotify import Gate, Opening

pytestmark = pytest.mark.gc

SIDECAR = ["inx-sidecar.socket", "inx-sidecar.service"]
GCROOTS = "/nix/var/nix/gcroots"
TEMPROOTS = "/nix/var/nix/temproots"
_fresh = itertools.count()


class Stage(enum.IntEnum):
    """Moments of a collection (collectGarbage in libstore/gc.cc)."""

    BEFORE = 0
    LOCKED = 1  # it has gc.lock, but does not yet listen on gc-socket
    READ = 2  # it has read gcroots, and not yet the other roots
    ROOTED = 3  # it has read all roots, and will now delete
    AFTER = 4


class NixAborted(Exception):
    """Nix's server of new roots ended the collection, as it does now and then when a client comes
    and leaves in the same moment (NixOS/nix#15962)."""


P = ParamSpec("P")


def again_if_nix_aborts(test: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(test)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(3):
            with contextlib.suppress(NixAborted):
                return test(*args, **kwargs)
            Registration.leave_all()
        test(*args, **kwargs)

    return wrapper


# What a collection opens on its way to the stage after that one.
OPENS_NEXT = {Stage.LOCKED: GCROOTS, Stage.READ: TEMPROOTS}


class Collection:
    """`nix-store --gc`, stopped at each stage that is asked for."""

    def __init__(self, host: Host) -> None:
        self._directory = outside(host, f"/root/collection-{next(_fresh)}")
        self._directory.mkdir()
        # Nix opens and reads these: it goes on when whoever writes to them has gone.
        stages = Stage.LOCKED, Stage.ROOTED
        self._fifos = {stage: self._directory / stage.name for stage in stages}
        for fifo in self._fifos.values():
            os.mkfifo(fifo)
        inside = f"/root/{self._directory.name}"
        self._env = {
            "_NIX_TEST_GC_SYNC_1": f"{inside}/{Stage.LOCKED.name}",
            "_NIX_TEST_GC_SYNC_2": f"{inside}/{Stage.ROOTED.name}",
        }
        # What Nix reads between gcroots and temproots.
        self._gate = Gate()
        self._gate.mark(os.fspath(outside(host, "/nix/var/nix/profiles")))
        self._stage = Stage.BEFORE
        self._writer = -1
        self._opening: Opening | None = None
        self._host = host
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return child_of(self._process)

    def reach(self, stage: Stage) -> None:
        """Go on until `stage`, and stop there."""
        while self._stage < stage:
            self.let_go()
            self._stage = Stage(self._stage + 1)
            process = self._process = self._process or self._begin()
            if self._stage is Stage.AFTER:
                self._end(process)
            else:
                self._stop_at(self._stage, process)

    def let_go(self) -> None:
        """What `reach` does first: it goes on from where it is stopped."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
        if self._opening is not None:
            self._gate.let_through(self._opening)
            self._opening = None

    def _end(self, process: subprocess.Popen[str]) -> None:
        said, _ = process.communicate(timeout=SECONDS)
        if "terminate called without an active exception" in said:
            raise NixAborted(said)
        assert process.returncode == 0, said

    def _begin(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._host.enter(["nix-store", "--gc"], self._env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _stop_at(self, stage: Stage, process: subprocess.Popen[str]) -> None:
        if stage is Stage.READ:
            ready, _, _ = select.select([self._gate.fd], [], [], SECONDS)
            assert ready, "the collection does not read its roots"
            [self._opening] = self._gate.openings()
            return
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self._writer = os.open(self._fifos[stage], os.O_WRONLY | os.O_NONBLOCK)
                return
            except OSError:  # nobody reads it yet
                if process.poll() is not None:
                    self._end(process)
                assert time.monotonic() < deadline, f"the collection does not get {stage.name}"
                time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._gate.close()
        if self._process is not None:
            with self._process:
                if self._process.poll() is None:
                    os.killpg(self._process.pid, signal.SIGKILL)
        shutil.rmtree(self._directory)


class Registration:
    """A Nix client of an instance that makes one root, step by step."""

    present: ClassVar[set["Registration"]] = set()

    def __init__(self, instance: "Instance", link: str = "") -> None:
        self.instance = instance
        self.link = link or f"/srv/link-{next(_fresh)}"
        self.path = ""
        self._client: NixClient | None = None

    def begin(self) -> None:
        """A new path, with a temporary root."""
        number = next(_fresh)
        self._client = NixClient(self.instance.socket)
        self.present.add(self)
        self.path = self._client.add_text(f"race-{number}", f"{os.getpid()} {number}")
        self._client.add_temp_root(self.path)

    def register(self) -> None:
        assert self._client is not None
        make_link(self.path, os.fspath(self.instance.inside(self.link)))
        self._client.add_indirect_root(self.link)

    def leave(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
            self.present.remove(self)

    @classmethod
    def leave_all(cls) -> None:
        for registration in list(cls.present):
            registration.leave()

    def all(self) -> None:
        self.begin()
        self.register()
        self.leave()


class Instance:
    def __init__(self, incus: Incus, name: str) -> None:
        self.name = name
        self.host = incus.host
        self.uuid = incus.uuid(name)
        self.socket = os.fspath(outside(self.host, f"/run/inx/{self.uuid}/daemon-socket/socket"))
        self.inside("/srv").mkdir(exist_ok=True)

    def inside(self, path: str) -> Path:
        storage = "/var/lib/incus/storage-pools/default/containers"
        return outside(self.host, f"{storage}/{self.name}/rootfs{path}")

    def there(self, path: str) -> bool:
        """Whether the store still has it."""
        return os.path.lexists(outside(self.host, path))

    def rooted(self, path: str) -> bool:
        links = outside(self.host, f"{GCROOTS}/inx/{self.name}.{self.uuid}/links")
        with contextlib.suppress(FileNotFoundError):
            return any(os.readlink(links / name) == path for name in os.listdir(links))
        return False


def outside(host: Host, path: str) -> Path:
    return Path(f"/proc/{host.pid}/root{path}")


def child_of(process: subprocess.Popen[str]) -> int:
    """What nsenter runs, as this machine numbers it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + SECONDS
    while not (found := children.read_text().split()):
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(found[0])


def waits(pid: int) -> bool:
    """Whether the process waits until it may open a directory."""
    return Path(f"/proc/{pid}/wchan").read_text().startswith("fanotify")


def silence(pid: int) -> None:
    """The collection, stopped where it opens a directory, listens and does not answer, until it is
    sent SIGCONT."""
    tasks = Path(f"/proc/{pid}/task")
    listening = [task for task in tasks.iterdir() if task.name != str(pid)]
    # A thread that opens does not hear the signal: it is for one of the others, which stops all.
    os.kill(int(listening[0].name), signal.SIGSTOP)

    def silent() -> bool:
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in listening]
        return set(states) == {"T"}

    wait_until(silent, "the collection does not stop")


def held(host: Host, directory: str) -> bool:
    """Whether the barrier keeps somebody waiting who opens the directory."""
    script = 'readlink /proc/"$(systemctl show -P MainPID inx-barrier)"/fd/*'
    return directory in host.sh(script, check=False).stdout.split()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def wait_held(host: Host, directory: str) -> None:
    wait_until(lambda: held(host, directory), f"nobody waits for {directory}")


def main_pid(host: Host, unit: str) -> int:
    """As the host numbers it."""
    return int(host.run(["systemctl", "show", "-P", "MainPID", unit]).stdout)


def wait_back(host: Host, unit: str, before: int) -> None:
    """Until the unit is active with another main process than `before`."""

    def back() -> bool:
        active = host.run(["systemctl", "is-active", unit], check=False).returncode == 0
        return active and main_pid(host, unit) != before

    wait_until(back, f"{unit} does not come back")


def restarts(host: Host, unit: str) -> int:
    return int(host.run(["systemctl", "show", "-P", "NRestarts", unit]).stdout)


def send(host: Host, signal_name: str, unit: str) -> None:
    host.run(["systemctl", "kill", "--kill-whom=main", f"--signal={signal_name}", unit])


def journal(host: Host, unit: str, since: str) -> str:
    argv = ["journalctl", "--no-pager", "--unit", unit, f"--after-cursor={since}"]
    host.run(["journalctl", "--sync"])
    return host.run(argv).stdout


def now(host: Host) -> str:
    """The journal's end."""
    said = host.run(["journalctl", "-n", "1", "--show-cursor", "--no-pager"]).stdout
    return said.rpartition("-- cursor: ")[2].strip()


def drain(host: Host) -> None:
    """Until all that is registered by now has been rooted, and told to a collection that runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(SECONDS)
        asking.connect(os.fspath(outside(host, "/run/inx/sidecar.sock")))
        asking.sendall(b"drain")
        asking.shutdown(socket.SHUT_WR)
        assert asking.recv(4096) == b"0\n"


@contextlib.contextmanager
def stopped(host: Host, unit: str) -> Iterator[None]:
    """The main process of the unit does nothing meanwhile."""
    send(host, "STOP", unit)
    try:
        yield
    finally:
        send(host, "CONT", unit)


@contextlib.contextmanager
def running(host: Host, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A program on the host."""
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


def ended_well(process: subprocess.Popen[str], seconds: float) -> None:
    _, said = process.communicate(timeout=seconds)
    assert process.returncode == 0, said


def collect(host: Host) -> None:
    host.run(["nix-store", "--gc"])


@pytest.fixture(scope="module")
def instance(host: Host) -> Iterator[Instance]:
    incus = Incus(host, "race")
    yield Instance(incus, incus.launch(flake="/etc/nixos#web"))
    incus.clean_up()


@pytest.fixture(autouse=True)
def at_work(host: Host) -> Iterator[None]:
    """Sidecar and barrier run before each test, and after it."""
    yield
    Registration.leave_all()
    host.run(["systemctl", "reset-failed", "inx-*"], check=False)
    host.run(["systemctl", "start", *SIDECAR, "inx-barrier.service"])


@pytest.fixture
def no_barrier(host: Host) -> Iterator[None]:
    host.run(["systemctl", "stop", "inx-barrier.service"])
    yield
    host.run(["systemctl", "start", "inx-barrier.service"])


class Plans:
    """Clients for every way to spread the three steps over the stages of one collection."""

    def __init__(self, instance: Instance) -> None:
        stages = list(Stage)
        self.clients = {
            (begin, register, leave): Registration(instance)
            for begin in stages[:-1]
            for register in stages[begin:]
            for leave in stages[register:]
            # While it is locked, nobody gets a temporary root.
            if begin is not Stage.LOCKED or register > Stage.LOCKED
        }
        self._blocked: list[threading.Thread] = []

    def act(self, stage: Stage) -> None:
        for thread in self._blocked:
            thread.join(SECONDS)
            assert not thread.is_alive(), "a client still waits for a temporary root"
        self._blocked = []
        for (begin, register, leave), client in self.clients.items():
            if begin == stage == Stage.LOCKED:
                self._blocked.append(threading.Thread(target=client.begin, daemon=True))
                self._blocked[-1].start()
            elif begin == stage:
                client.begin()
            if register == stage:
                client.register()
            if leave == stage:
                client.leave()

    def lost(self) -> list[str]:
        return [
            "/".join(stage.name for stage in plan)
            for plan, client in self.clients.items()
            if not client.instance.there(client.path)
        ]

    def end(self) -> None:
        """Without links all of it is garbage: this store does delete what nothing holds."""
        for client in self.clients.values():
            client.leave()
            client.instance.inside(client.link).unlink()
        host = client.instance.host
        host.run(["/opt/inx/bin/inx-sidecar", "sync"])
        collect(host)
        assert len(self.lost()) == len(self.clients)


@again_if_nix_aborts
def test_a_root_holds_whenever_its_client_came_and_left(instance: Instance) -> None:
    plans = Plans(instance)
    with Collection(instance.host) as collection:
        for stage in Stage:
            collection.reach(stage)
            plans.act(stage)
    assert plans.lost() == []
    collect(instance.host)
    assert plans.lost() == []
    plans.end()


@again_if_nix_aborts
def test_a_root_holds_if_the_sidecar_sees_it_when_the_collection_waits(
    instance: Instance,
) -> None:
    """So it is the waiting that counts, not how quick the sidecar is."""
    host = instance.host
    plans = Plans(instance)
    with Collection(host) as collection:
        for stage in Stage:
            collection.reach(stage)
            with stopped(host, "inx-sidecar.service"):
                plans.act(stage)
                if stage in OPENS_NEXT:
                    collection.let_go()
                    wait_held(host, OPENS_NEXT[stage])
    assert plans.lost() == []
    collect(host)
    assert plans.lost() == []
    plans.end()


@again_if_nix_aborts
def test_a_root_holds_without_the_barrier_as_soon_as_the_collection_was_told(
    instance: Instance, no_barrier: None
) -> None:
    host = instance.host
    plans = Plans(instance)
    with Collection(host) as collection:
        for stage in Stage:
            collection.reach(stage)
            plans.act(stage)
            if stage is not Stage.LOCKED:  # it could not be told yet
                drain(host)
    assert plans.lost() == []
    collect(host)
    assert plans.lost() == []
    plans.end()


@again_if_nix_aborts
def test_a_build_inside_that_begins_while_a_collection_runs_is_kept(
    instance: Instance, incus: Incus
) -> None:
    name = f"race-build-{next(_fresh)}"
    text = (
        f'derivation {{ name = "{name}"; system = "x86_64-linux"; builder = "/bin/sh"; '
        'args = [ "-c" "echo $name > $out" ]; }'
    )
    script = f"cd /srv; echo '{text}' >{name}.nix; nix-build {name}.nix -o {name}"
    argv = ["incus", "exec", instance.name, "--", "sh", "-euc", script]
    for stage in Stage.LOCKED, Stage.READ, Stage.ROOTED:
        with Collection(instance.host) as collection:
            collection.reach(stage)
            with running(instance.host, *argv) as build:
                wait_until(lambda: instance.inside(f"/srv/{name}.nix").exists(), "nothing begins")
                if stage is not Stage.LOCKED:
                    ended_well(build, SECONDS)
                collection.reach(Stage.AFTER)
                if stage is Stage.LOCKED:
                    ended_well(build, SECONDS)
        path = os.readlink(instance.inside(f"/srv/{name}"))
        assert instance.there(path), stage
        collect(instance.host)
        assert instance.there(path), stage
        instance.inside(f"/srv/{name}").unlink()
        instance.inside(f"/srv/{name}.nix").unlink()
        collect(instance.host)
        assert not instance.there(path), stage


@pytest.mark.parametrize("stage", [Stage.LOCKED, Stage.READ, Stage.ROOTED])
@again_if_nix_aborts
def test_a_link_that_is_registered_anew_during_a_collection_keeps_what_it_leads_to_now(
    instance: Instance, stage: Stage
) -> None:
    old = Registration(instance)
    old.all()
    new = Registration(instance, old.link)
    new.begin()
    with Collection(instance.host) as collection:
        collection.reach(stage)
        new.register()
        new.leave()
        collection.reach(Stage.AFTER)
    assert instance.there(new.path)
    # What had been read as a root is spared by this collection alone.
    assert instance.there(old.path) == (stage > Stage.LOCKED)
    collect(instance.host)
    assert instance.there(new.path) and not instance.there(old.path)
    instance.inside(new.link).unlink()
    collect(instance.host)
    assert not instance.there(new.path)


@pytest.mark.parametrize("stage", [Stage.LOCKED, Stage.READ, Stage.ROOTED])
@again_if_nix_aborts
def test_a_link_that_leads_elsewhere_unannounced_is_seen_by_the_next_collection_that_reads_roots(
    instance: Instance, stage: Stage
) -> None:
    """Its new target is held by another client until the collection has ended."""
    link, other = Registration(instance), Registration(instance)
    link.all()
    other.begin()
    with Collection(instance.host) as collection:
        collection.reach(stage)
        make_link(other.path, os.fspath(instance.inside(link.link)))
        collection.reach(Stage.AFTER)
    assert instance.there(link.path) == (stage > Stage.LOCKED)
    if stage is Stage.LOCKED:
        other.leave()
    collect(instance.host)
    other.leave()
    collect(instance.host)
    assert instance.there(other.path) and not instance.there(link.path)
    instance.inside(link.link).unlink()


@pytest.mark.parametrize("stage", [Stage.LOCKED, Stage.READ, Stage.ROOTED])
@again_if_nix_aborts
def test_what_a_removed_link_led_to_goes_with_the_collection_that_reads_roots_after_that(
    instance: Instance, stage: Stage
) -> None:
    gone, stays = Registration(instance), Registration(instance)
    gone.all()
    stays.all()
    with Collection(instance.host) as collection:
        collection.reach(stage)
        instance.inside(gone.link).unlink()
        collection.reach(Stage.AFTER)
    assert instance.there(gone.path) == (stage > Stage.LOCKED)
    collect(instance.host)
    assert not instance.there(gone.path) and instance.there(stays.path)
    instance.inside(stays.link).unlink()


@pytest.mark.parametrize("barrier", [True, False])
@again_if_nix_aborts
def test_a_collection_is_told_by_the_next_sidecar_what_the_last_one_rooted_and_did_not_tell(
    instance: Instance, request: pytest.FixtureRequest, barrier: bool
) -> None:
    """It dies when the roots stand, which the collection does not see any more."""
    host = instance.host
    if not barrier:
        request.getfixturevalue("no_barrier")
    first, *clients = (Registration(instance) for _ in range(6))
    for client in first, *clients:
        client.begin()
    with Collection(host) as collection:
        collection.reach(Stage.READ)
        # The connection of the sidecar stands already, and is not opened and closed in one moment.
        first.register()
        drain(host)
        silence(collection.pid)
        try:
            with stopped(host, "inx-sidecar.service"):
                for client in clients:
                    client.register()
                    client.leave()
            for client in clients:
                wait_until(lambda c=client: instance.rooted(c.path), "a root is missing")  # type: ignore[misc]
            before = main_pid(host, "inx-sidecar.service")
            send(host, "KILL", "inx-sidecar.service")
            wait_back(host, "inx-sidecar.service", before)
        finally:
            os.kill(collection.pid, signal.SIGCONT)
        if not barrier:
            drain(host)
        collection.reach(Stage.AFTER)
    assert [client.path for client in clients if not instance.there(client.path)] == []
    for client in first, *clients:
        instance.inside(client.link).unlink()


@again_if_nix_aborts
def test_a_sidecar_that_is_killed_while_it_waits_for_a_collection_to_listen_loses_nothing(
    instance: Instance,
) -> None:
    host = instance.host
    client = Registration(instance)
    client.begin()
    with Collection(host) as collection:
        collection.reach(Stage.LOCKED)
        client.register()
        client.leave()
        wait_until(lambda: instance.rooted(client.path), "the root is missing")
        send(host, "KILL", "inx-sidecar.service")
        collection.reach(Stage.AFTER)
    assert instance.there(client.path)
    instance.inside(client.link).unlink()


def test_a_sidecar_that_is_stopped_delays_a_collection_for_a_while_and_the_journal_says_so(
    instance: Instance,
) -> None:
    host = instance.host
    client = Registration(instance)
    client.all()
    drain(host)
    begin, since = time.monotonic(), now(host)
    with stopped(host, "inx-sidecar.service"):
        told = host.run(["nix-store", "--gc", "--print-roots"]).stdout
        took = time.monotonic() - begin
    assert 5 <= took < 20
    assert client.path in told
    said = journal(host, "inx-barrier", since)
    assert said.count("goes on: the sidecar does not answer, roots may be missing") == 2, said
    instance.inside(client.link).unlink()


def test_a_sidecar_that_hangs_is_ended_and_the_collection_waits_for_the_next_one(
    instance: Instance,
) -> None:
    host = instance.host
    dropin = "/run/systemd/system/inx-sidecar.service.d/short.conf"
    host.sh(f'mkdir -p "$(dirname {dropin})"; printf "[Service]\nWatchdogSec=2\n" >{dropin}')
    try:
        host.sh("systemctl daemon-reload; systemctl restart inx-sidecar.service")
        client = Registration(instance)
        before, count, since = (
            main_pid(host, "inx-sidecar.service"), restarts(host, "inx-sidecar.service"), now(host)
        )  # fmt: skip
        send(host, "STOP", "inx-sidecar.service")
        client.all()
        collect(host)
        assert instance.there(client.path)
        assert main_pid(host, "inx-sidecar.service") != before
        assert restarts(host, "inx-sidecar.service") == count + 1
        assert "Watchdog timeout" in journal(host, "inx-sidecar", since)
        assert "goes on" not in journal(host, "inx-barrier", since)
    finally:
        host.sh(f"rm {dropin}; systemctl daemon-reload; systemctl restart inx-sidecar.service")
    instance.inside(client.link).unlink()


def test_a_barrier_that_hangs_is_ended_and_collections_go_on(instance: Instance) -> None:
    host = instance.host
    before, since = main_pid(host, "inx-barrier.service"), now(host)
    send(host, "STOP", "inx-barrier.service")
    begin = time.monotonic()
    with running(host, "nix-store", "--gc", "--print-roots") as collection:
        wait_until(lambda: waits(child_of(collection)), "it does not wait")
        ended_well(collection, SECONDS)
    assert time.monotonic() - begin < 30
    assert "Watchdog timeout" in journal(host, "inx-barrier", since)
    works_again(instance, before)


def works_again(instance: Instance, before: int) -> None:
    """Another barrier holds a collection until a sidecar that slept has seen what is new."""
    host = instance.host

    wait_back(host, "inx-barrier.service", before)
    client = Registration(instance)
    with running(host, "nix-store", "--gc") as collection:
        ended_well(collection, SECONDS)
    with contextlib.ExitStack() as asleep:
        asleep.enter_context(stopped(host, "inx-sidecar.service"))
        client.all()
        with running(host, "nix-store", "--gc") as collection:
            wait_held(host, GCROOTS)
            asleep.close()
            ended_well(collection, SECONDS)
    assert instance.there(client.path)
    instance.inside(client.link).unlink()


@again_if_nix_aborts
def test_a_barrier_that_is_killed_lets_go_at_once_and_comes_back(instance: Instance) -> None:
    host = instance.host
    before = main_pid(host, "inx-barrier.service")
    with (
        stopped(host, "inx-sidecar.service"),
        running(host, "ls", GCROOTS) as listing,
        Collection(host) as collection,
    ):
        collection.reach(Stage.LOCKED)
        collection.let_go()
        wait_until(lambda: waits(child_of(listing)) and waits(collection.pid), "they do not wait")
        begin = time.monotonic()
        send(host, "KILL", "inx-barrier.service")
        ended_well(listing, SECONDS)
        collection.reach(Stage.READ)
        assert time.monotonic() - begin < 3
    works_again(instance, before)


def test_without_a_sidecar_collections_go_on_at_once(instance: Instance) -> None:
    host = instance.host
    since = now(host)
    with contextlib.ExitStack() as asleep:
        asleep.enter_context(stopped(host, "inx-sidecar.service"))
        with running(host, "nix-store", "--gc", "--print-roots") as waiting:
            wait_held(host, GCROOTS)
            begin = time.monotonic()
            host.run(["systemctl", "stop", *SIDECAR])  # systemd wakes what it stops
            ended_well(waiting, SECONDS)
        host.run(["nix-store", "--gc", "--print-roots"])
        assert time.monotonic() - begin < 4
        host.run(["systemctl", "start", *SIDECAR])
    said = journal(host, "inx-barrier", since)
    assert "goes on: the inx sidecar is not reachable" in said, said
    assert "systemctl start inx-sidecar.socket" in said


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_collection_that_waits_waits_for_the_next_sidecar(instance: Instance, how: str) -> None:
    host = instance.host
    since = now(host)
    client = Registration(instance)
    send(host, "STOP", "inx-sidecar.service")
    client.all()
    with running(host, "nix-store", "--gc") as collection:
        wait_held(host, GCROOTS)
        if how == "restart":
            host.run(["systemctl", "restart", "inx-sidecar.service"])
        else:
            send(host, "KILL", "inx-sidecar.service")
        ended_well(collection, SECONDS)
    assert instance.there(client.path)
    assert "goes on" not in journal(host, "inx-barrier", since)
    instance.inside(client.link).unlink()


def test_many_may_list_gcroots_at_once_and_the_barrier_keeps_nothing_open(
    instance: Instance,
) -> None:
    host = instance.host
    open_files = 'ls /proc/"$(systemctl show -P MainPID inx-barrier)"/fd | wc -l'
    assert "inx" in host.run(["ls", GCROOTS]).stdout.split()
    before = int(host.sh(open_files).stdout)
    script = f"""
        for i in {{1..$N}}; do ls {GCROOTS} >/tmp/listing-$i & done
        wait
        for i in {{1..$N}}; do grep -qx inx /tmp/listing-$i; rm /tmp/listing-$i; done
    """
    host.sh(script.replace("$N", "50"))
    wait_until(lambda: int(host.sh(open_files).stdout) == before, "files are left open")


def test_more_may_wait_than_a_process_may_usually_have_open(instance: Instance) -> None:
    """Nobody is refused, and nobody goes on before the sidecar has answered."""
    host = instance.host
    since = now(host)
    script = f"""
        for i in {{1..1500}}; do ls {GCROOTS} >/dev/null & pids+=" $!"; done
        echo begun
        failed=0
        for pid in $pids; do wait $pid || failed=1; done
        exit $failed
    """
    client = Registration(instance)
    with contextlib.ExitStack() as asleep:
        asleep.enter_context(stopped(host, "inx-sidecar.service"))
        client.all()
        with running(host, "bash", "-c", script) as listings:
            assert listings.stdout is not None and listings.stdout.readline() == "begun\n"
            asleep.close()
            ended_well(listings, SECONDS)
    said = journal(host, "inx-barrier", since)
    assert "Too many open files" not in said and "cannot be asked" not in said, said[-2000:]
    instance.inside(client.link).unlink()


def test_one_that_registers_without_pause_keeps_nobody_waiting(instance: Instance) -> None:
    host = instance.host
    since = now(host)
    stop = threading.Event()
    failed: list[Exception] = []
    client = Registration(instance)
    client.all()
    drain(host)
    client.begin()

    def register() -> None:
        try:
            while not stop.is_set():
                client.register()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=register)
    thread.start()
    try:
        for _ in range(3):
            host.run(["ls", GCROOTS])
        assert "goes on" not in journal(host, "inx-barrier", since)
    finally:
        stop.set()
        thread.join(SECONDS)
        client.leave()
    assert failed == []
    instance.inside(client.link).unlink()


@pytest.fixture(scope="module")
def four(host: Host) -> Iterator[list[str]]:
    """NAME.UUID of instances that register at once."""
    incus = Incus(host, "stress")
    names = [incus.launch(name=incus.name(s), flake="/etc/nixos#web") for s in "abcd"]
    host.push(REPO / "tests", ["support"], "/root/stress")
    yield [f"{name}.{incus.uuid(name)}" for name in names]
    incus.clean_up()


@pytest.mark.parametrize("kill_after", [0, 2])
def test_nothing_is_lost_while_instances_register_and_collections_run_without_pause(
    host: Host, four: list[str], instance: Instance, kill_after: int
) -> None:
    """With `kill_after`, the sidecar is killed so many seconds after it has come up."""
    since = now(host)
    options = f"--seconds 30 --at-least 2600 --kill-after {kill_after}".split()
    argv = ["env", "-C/root/stress", "python3", "-m", "support.gcstress", *options, *four]
    figures: dict[str, Any] = json.loads(host.run(argv, timeout=280).stdout)
    figures["let through"] = journal(host, "inx-barrier", since).count("goes on")
    print({key: len(value) if isinstance(value, list) else value for key, value in figures.items()})
    assert figures["lost"] == []
    assert figures["errors"] == []
    assert "root lost" not in journal(host, "inx-sidecar", since)
    assert figures["registered"] == figures["verified"] >= 2600
    assert figures["deleted"] > 100 and figures["kept"] == 0
    kinds = {"nix-store --gc", "nix-collect-garbage", "nix-gc.service", "--print-roots", "min-free"}
    # A collection that waits for one sidecar after the other takes its time.
    assert set(figures["collections"]) == kinds or kill_after
    assert sum(figures["collections"].values()) > 5
    # Nix's own: its server of new roots can end the collection (NixOS/nix#15962), and where a
    # daemon collects, its client hears of that only that it is gone.
    crashed = "terminate called" in journal(host, "nix-daemon", since)
    own = ["terminate called", *(["daemon disconnected unexpectedly"] if crashed else [])]
    assert [text for text in figures["failed"] if not any(end in text for end in own)] == []
    assert (figures["kills"] > 3) == bool(kill_after)
