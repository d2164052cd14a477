"""Kills at random moments around an instance with a store of its own, in which Nix works."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Final

from support.cache import HostError
from support.incus import Incus
from support.own import begin_builds, is_right, own, part_of, system

# Kill a process some time after it is there, if it comes up within two seconds: the writer of the
# database, a child of the sidecar, or a program of Nix inside. Prints "killed" if there was one.
_KILL: Final = r"""
import os, sys, time

kind, name, delay = sys.argv[1], os.fsencode(sys.argv[2]), float(sys.argv[3])


def read(pid, file):
    try:
        with open(f"/proc/{pid}/{file}", "rb") as found:
            return found.read()
    except OSError:
        return b""


def is_meant(pid):
    words = read(pid, "cmdline").split(b"\0")
    if kind == "writer":
        return any(word.endswith(b"/own_database_writer.py") for word in words)
    if kind == "child":
        parent = (read(pid, "stat").rpartition(b") ")[2].split() + [b"0", b"0"])[1]
        sidecar = any(word.endswith(b"/inx-sidecar") for word in words) and b"run" in words
        return sidecar and read(int(parent), "cmdline") == read(pid, "cmdline")
    if b"lxc.payload." + name + b"/" not in read(pid, "cgroup").replace(b"\n", b"/"):
        return False
    if kind == "collector":
        return b"--gc" in words or b"nix-collect-garbage" in words
    if kind == "daemon inside":
        return b"daemon" in words
    return b"nix-build" in words or any(word.endswith(b"/bin/nix") for word in words)


end = time.monotonic() + 2
while time.monotonic() < end:
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if pid != os.getpid() and is_meant(pid):
            time.sleep(delay)
            try:
                os.kill(pid, 9)
                print("killed")
            except ProcessLookupError:
                pass
            sys.exit()
    time.sleep(0.001)
"""
# What the host shows, and nobody has deleted inside, is valid inside.
_SHOWN: Final = """
    ls /nix/.inx | while read -r name; do
        [ ! -e "/nix/store/$name" ] || echo "/nix/store/$name"
    done | xargs nix-store --check-validity
"""
# systemd would start it again, too.
_DAEMON: Final = """
    loop='while :; do nix --extra-experimental-features nix-command daemon; sleep 0.1; done'
    setsid sh -c "$loop" </dev/null >/dev/null 2>&1 &
    until [ -S /nix/var/nix/daemon-socket/socket ]; do sleep 0.1; done
"""
_SERVICES: Final = {
    "sidecar": ["--kill-whom=main", "inx-sidecar"],
    "sidecar and its children": ["inx-sidecar"],
    "daemon of the host": ["nix-daemon"],
    "incusd": ["incus"],
}
# The longest time from the beginning of a process to its kill, in seconds.
_PROCESSES: Final = {
    "writer": 0.1,
    "child": 0.02,
    "collector": 0.1,
    "program of Nix": 0.3,
    "daemon inside": 0.3,
}
# When these processes are there.
_SHOWS: Final = ["an update", "a start of another system", "a collection inside and an update"]
_COLLECTS: Final = ["a collection inside", "a collection inside and an update"]
_WORKS: Final = ["an update", "a collection inside", "a collection on the host"]
_WHEN: Final = {
    "writer": _SHOWS, "child": _SHOWS, "collector": _COLLECTS,
    "program of Nix": _WORKS, "daemon inside": _WORKS,
}  # fmt: skip


class Victim:
    """An instance that builds and collects all the time, while it gets one system after the other.

    `counts` tells what was killed, and how often a process of that kind was met.
    """

    def __init__(self, incus: Incus, random: Random) -> None:
        self._incus = incus
        self._random = random
        self._systems = [system(incus, number) for number in (1, 2, 3, 4)]
        self._wanted = self._systems[0]
        self._name = own(incus, self._wanted)
        self.counts: Counter[str] = Counter()
        self._begin_builds()
        self._actions: dict[str, Callable[[], object]] = {
            "an update": self._ask,
            "a restart": self._restart,
            "a start of another system": self._start_other,
            "a collection inside": lambda: self._sh("nix-collect-garbage -d"),
            "a collection inside and an update": self._collect_and_update,
            "a collection on the host": lambda: incus.host.run(["nix-collect-garbage"]),
        }

    def kill_something(self) -> str:
        """Kill something while something is done, and look at the store; returns what it was."""
        kill = self._random.choice([*_SERVICES, *_PROCESSES, "instance"])
        action = self._random.choice(_WHEN.get(kill, list(self._actions)))
        told = f"{kill}, during {action}"
        try:
            with self._beside(self._actions[action]):
                self._kill(kill)
            self._recover()
            self._look()
        except Exception as error:
            raise AssertionError(f"{told}: {error}") from error
        return told

    def _kill(self, what: str) -> None:
        self.counts[what] += 1
        host = self._incus.host
        if what in _PROCESSES:
            delay = self._random.uniform(0, _PROCESSES[what])
            argv = ["python3", "-I", "-c", _KILL, what, self._name, str(delay)]
            self.counts[f"{what}, met"] += "killed" in host.run(argv).stdout
            return
        delay = self._random.uniform(0, 0.7)
        if what in _SERVICES:
            argv = ["systemctl", "kill", "--signal=KILL", *_SERVICES[what]]
        else:
            argv = ["kill", "-9", str(self._pid())]
        host.run(["sh", "-c", f'sleep {delay}; "$@"', "sh", *argv], check=False)

    @contextlib.contextmanager
    def _beside(self, action: Callable[[], object]) -> Iterator[None]:
        def act() -> None:
            with contextlib.suppress(HostError):  # what it needs may be killed
                action()

        thread = threading.Thread(target=act)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def _pid(self) -> int:
        """The init of the instance; a PID that no process has, if it does not run."""
        with contextlib.suppress(HostError):
            return self._incus.pid(self._name) or 1 << 30
        return 1 << 30

    def _sh(self, script: str) -> None:
        self._incus.sh(self._name, script, check=False)

    def _begin_builds(self) -> None:
        """With a daemon inside, or without."""
        store = self._random.choice(["", "daemon"])
        if store:
            self._incus.sh(self._name, _DAEMON)
        part = part_of(self._incus, self._wanted)
        begin_builds(self._incus, self._name, "loop", part, collect=True, store=store)

    def _ask(self) -> None:
        self._wanted = self._random.choice([path for path in self._systems if path != self._wanted])
        self._incus.set(self._name, f"user.inx.system={self._wanted}")

    def _end(self) -> None:
        """End all processes of the instance at once.

        `incus stop -f` freezes them first, and then LXC now and then waits without end for a thaw
        of its cgroup, which is empty.
        """
        self._incus.host.run(["kill", "-9", str(self._pid())], check=False)
        self._incus.wait_state(self._name, "STOPPED")

    def _restart(self) -> None:
        self._end()
        self._incus.start(self._name, check=False)

    def _start_other(self) -> None:
        self._end()
        self._ask()
        self._incus.start(self._name, check=False)

    def _collect_and_update(self) -> None:
        self._sh("setsid nix-collect-garbage -d </dev/null >/dev/null 2>&1 &")
        self._ask()

    def _recover(self) -> None:
        """As an operator does: start the instance if it has ended, and ask again for an update that
        has failed."""
        incus, name = self._incus, self._name

        def is_well() -> bool:
            try:
                if not incus.pid(name):
                    incus.start(name, check=False)
                if incus.get(name, "user.inx.system") != self._wanted:
                    incus.set(name, f"user.inx.system={self._wanted}")
                status = incus.status(name)
                if "has begun to make" in status:
                    self._sh("nix-collect-garbage")
                if status.startswith("failed"):
                    self.counts[status[:60]] += 1
                    incus.set(name, f"user.inx.update={self._random.random()}")
                runs = f"[ $(readlink -f /run/current-system) = {self._wanted} ]"
                return (
                    status.startswith("ready")
                    and incus.get(name, "user.inx.status.system") == self._wanted
                    and incus.inside(name, runs)
                )
            except HostError:
                return False

        incus.eventually(is_well, lambda: f"{incus.status(name)} {incus.story()}")

    def _look(self) -> None:
        """The database inside is right about what is there, now or after a restart."""
        incus, name = self._incus, self._name
        needed = " ".join(incus.host.run(["nix-store", "-qR", self._wanted]).stdout.split())
        self._sh("kill -9 -1")
        if self._random.random() < 0.5:
            self._end()
            self._recover()
            self._is_true(_SHOWN)
        self._is_true("nix-store --verify --check-contents")
        self._is_true(f"nix-store --check-validity {needed} && ls {needed}")
        # What killed builds and collections have left is garbage, and nothing else.
        incus.sh(name, "rm -f /root/loop-* /root/failures; nix-store --gc")
        is_right(incus, name)
        self._is_true(f"nix-store --check-validity {needed} && ls {needed}")
        self._begin_builds()

    def _is_true(self, script: str) -> None:
        done = self._incus.sh(self._name, script, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + self._incus.story()
