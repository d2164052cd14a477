"""Clients of several instances register GC roots as fast as possible, while all kinds of
collections run one after another. No path may be lost. This program is copied to a host.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

from support.nixworker import NixClient, make_link

KINDS = frozenset(
    ("nix-store --gc", "nix-collect-garbage", "nix-gc.service", "--print-roots", "min-free")
)


@dataclass
class Figures:
    """The results of a run."""

    registered: int = 0
    verified: int = 0
    lost: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    collections: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    deleted: int = 0
    kept: int = 0  # paths whose link was removed, but which the last collection did not delete
    kills: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Registration:
    at: float
    link: str
    path: str


class Stress:
    """Clients of all instances register links, collections run, and each path is verified.

    A path is verified after a collection that began after its client had disconnected: the path
    must exist. Then its link is removed, so that the next collections have paths to delete.
    """

    def __init__(self, instances: list[tuple[str, str]], clients: int, live: int) -> None:
        self.figures = Figures()
        self._run = f"gcstress-{os.getpid()}-{time.time_ns()}"
        self._instances = instances
        self._clients = clients
        self._live = live
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._collected_since = 0.0
        self._numbers = itertools.count()
        self._removed: list[str] = []

    def run(self, seconds: float, at_least: int, kill_after: float) -> None:
        begin = time.monotonic()
        workers = [
            threading.Thread(target=self._register, args=(name, uuid, number))
            for name, uuid in self._instances
            for number in range(self._clients)
        ]
        others = [
            threading.Thread(target=self._collect, args=(kinds,))
            for kinds in (
                (self._store_gc, self._collect_garbage, self._service),
                (self._print_roots, self._build, self._store_gc),
            )
        ]
        if kill_after:
            others.append(threading.Thread(target=self._kill, args=(kill_after,)))
        for thread in workers + others:
            thread.start()
        while (
            time.monotonic() < begin + seconds
            or self.figures.registered < at_least
            or not (kill_after or KINDS <= self.figures.collections.keys())
        ):
            if time.monotonic() > begin + 6 * seconds:
                break  # the figures tell the caller how many links were registered
            self._stop.wait(0.1)
        self._stop.set()
        for thread in workers + others:
            thread.join()
        self.figures.seconds = time.monotonic() - begin
        # No link is left, and no client runs: all paths are garbage now.
        self._store_gc()
        self.figures.kept = sum(map(os.path.lexists, self._removed))

    def _register(self, name: str, uuid: str, number: int) -> None:
        socket_path = f"/run/inx/{uuid}/daemon-socket/socket"
        inside = f"/srv/{self._run}-{number}"
        outside = f"/var/lib/incus/containers/{name}/rootfs{inside}"
        os.makedirs(outside)
        waiting: collections.deque[Registration] = collections.deque()
        while not self._stop.is_set():
            item = f"{name}-{next(self._numbers)}"
            link = f"{outside}/{item}"
            try:
                with NixClient(socket_path) as client:
                    path = client.add_text(f"{self._run}-{item}", item)
                    client.add_temp_root(path)
                    make_link(path, link)
                    client.add_indirect_root(f"{inside}/{item}")
            except Exception as error:
                with self._lock:
                    self.figures.errors.append(f"{item}: {error!r}")
                continue
            waiting.append(Registration(time.monotonic(), link, path))
            with self._lock:
                self.figures.registered += 1
                since = self._collected_since
            while len(waiting) > self._live and waiting[0].at < since:
                self._verify(waiting.popleft())
        while waiting:
            if waiting[0].at >= self._collected_since:
                self._store_gc()
            self._verify(waiting.popleft())

    def _verify(self, registration: Registration) -> None:
        there = os.path.lexists(registration.path)
        os.unlink(registration.link)
        with self._lock:
            self.figures.verified += 1
            self._removed.append(registration.path)
            if not there:
                self.figures.lost.append(f"{registration.path} of {registration.link}")

    def _collect(self, kinds: tuple[Callable[[], None], ...]) -> None:
        for kind in itertools.cycle(kinds):
            if self._stop.is_set():
                return
            kind()

    def _store_gc(self) -> None:
        self._command("nix-store --gc", ["nix-store", "--gc"], collects=True)

    def _collect_garbage(self) -> None:
        self._command("nix-collect-garbage", ["nix-collect-garbage"], collects=True)

    def _service(self) -> None:
        argv = ["systemctl", "start", "nix-gc.service"]
        self._command("nix-gc.service", argv, collects=True)

    def _print_roots(self) -> None:
        self._command("--print-roots", ["nix-store", "--gc", "--print-roots"])

    def _build(self) -> None:
        text = (
            f'derivation {{ name = "{self._run}-{next(self._numbers)}"; builder = "/bin/sh"; '
            'system = "x86_64-linux"; args = [ "-c" "echo >$out" ]; }'
        )
        options = "--option min-free 1000000000000000 --option min-free-check-interval 0".split()
        argv = ["nix-build", "--store", "daemon", "--no-out-link", *options, "-E", text]
        self._command("min-free", argv)

    def _command(self, kind: str, argv: list[str], *, collects: bool = False) -> None:
        begin = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        with self._lock:
            self.figures.collections[kind] = self.figures.collections.get(kind, 0) + 1
            if done.returncode:
                last_line = done.stderr.strip().splitlines()[-1:]
                self.figures.failed.append(f"{kind}: {done.returncode} {last_line}")
            elif collects:
                self._collected_since = max(self._collected_since, begin)
            self.figures.deleted += done.stderr.count("deleting '/nix/store/")

    def _kill(self, seconds: float) -> None:
        """Kill the sidecar again and again, each time `seconds` after its start."""
        show = ["systemctl", "show", "-P", "MainPID", "inx-sidecar.service"]
        while True:
            # systemctl waits until a start that is in progress has ended.
            subprocess.run(["systemctl", "start", "inx-sidecar.service"], check=False)
            if self._stop.wait(seconds):
                return
            pid = int(subprocess.run(show, capture_output=True, text=True, check=True).stdout)
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self.figures.kills += 1


@contextlib.contextmanager
def gc_service() -> Iterator[None]:
    """nix-gc.service as NixOS has it, without a limit of starts."""
    unit = "/run/systemd/system/nix-gc.service"
    with open(unit, "w") as file:
        file.write(
            "[Unit]\nStartLimitIntervalSec=0\n"
            "[Service]\nType=oneshot\nExecStart=/usr/bin/nix-collect-garbage\n"
        )
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    try:
        yield
    finally:
        os.unlink(unit)
        subprocess.run(["systemctl", "daemon-reload"], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--at-least", type=int, default=0, metavar="REGISTRATIONS")
    parser.add_argument("--kill-after", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--clients", type=int, default=1, help="for each instance")
    parser.add_argument("--live", type=int, default=20, help="links that stay, for each client")
    parser.add_argument("instances", nargs="+", metavar="NAME.UUID")
    args = parser.parse_args()
    instances = [(text[:-37], text[-36:]) for text in args.instances]
    stress = Stress(instances, args.clients, args.live)
    with gc_service():
        stress.run(args.seconds, args.at_least, args.kill_after)
    print(json.dumps(asdict(stress.figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
