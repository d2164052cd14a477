"""What a neighbour notices while an instance registers GC roots without end, and when that instance
is deleted: the time until a link has its root, the answer of the sidecar to a collection, a start.

The attacker has six connections to its Nix daemon. The limit of roots is the default, 20 000.
"""

import json
import subprocess
from typing import Any

from support.attacks import flooded
from support.disposable import REPO, Host
from support.incus import Incus

SECONDS = 20
CONNECTIONS = 6

# This program runs on the host: entering the host takes longer than the measured operations.
MEASURE = """
import json, os, socket, statistics, subprocess, sys, time
sys.path[:0] = ["/root/inx/tests"]
from support.nixworker import NixClient

name, evil, seconds = json.load(sys.stdin)
run = lambda *argv: subprocess.run(argv, capture_output=True, text=True,
                                   stdin=subprocess.DEVNULL).stdout.strip()
uuid = run("incus", "config", "get", name, "volatile.uuid")
rootfs = f"/var/lib/incus/storage-pools/default/containers/{name}/rootfs"
roots = f"/nix/var/nix/gcroots/inx/{name}.{uuid}/links"
auto = f"/var/lib/inx/{evil}/auto"

def ask(word):
    with socket.socket(socket.AF_UNIX) as sidecar:
        sidecar.connect("/run/inx/sidecar.sock")
        sidecar.sendall(word)
        sidecar.shutdown(socket.SHUT_WR)
        return sidecar.makefile("rb").read()

def timed(function, *given):
    begin = time.perf_counter()
    function(*given)
    return 1000 * (time.perf_counter() - begin)

def rooted(client, path, number):
    before = set(os.listdir(roots)) if os.path.isdir(roots) else set()
    client.register(path, rootfs, f"/root/flood-{time.time_ns()}")
    while not os.path.isdir(roots) or set(os.listdir(roots)) <= before:
        time.sleep(0.0005)

def memory():
    pid = run("systemctl", "show", "--property=MainPID", "--value", "inx-sidecar")
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if "VmRSS" in line)

found = {"root": [], "drain": [], "start": [], "files": 0, "memory": 0.0}
with NixClient(f"/run/inx/{uuid}/daemon-socket/socket") as client:
    path = client.add_text("bench-flood", "bench")
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        found["root"].append(timed(rooted, client, path, number))
        found["drain"].append(timed(ask, b"drain"))
        if number % 4 == 1:
            run("incus", "stop", "-f", "spare")
            found["start"].append(timed(run, "incus", "start", "spare"))
            found["memory"] = max(found["memory"], memory())
            if os.path.isdir(auto):
                found["files"] = max(found["files"], len(os.listdir(auto)))
found["restarts"] = int(run("systemctl", "show", "--property=NRestarts", "--value", "inx-sidecar"))
print(json.dumps(found))
"""


def measure(host: Host) -> dict[str, Any]:
    """The times in milliseconds of each operation of the neighbour, in each phase."""
    host.push(REPO / "tests", ["support"], "/root/inx/tests")
    incus = Incus(host, "bench")
    good, evil = (incus.launch(name=name, flake="/etc/nixos#web") for name in ("good", "evil"))
    incus.launch(name="spare", flake="/etc/nixos#web")
    uuid = incus.uuid(evil)

    def phase(seconds: int) -> dict[str, Any]:
        given = json.dumps([good, uuid, seconds])
        done = host.run(["python3", "-c", MEASURE], input=given, timeout=900)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    phases = {"quiet": phase(SECONDS)}
    with flooded(incus, evil, CONNECTIONS):
        phases["flood"] = phase(SECONDS)
    with subprocess.Popen(host.enter(["incus", "delete", "-f", evil]), stdin=subprocess.DEVNULL):
        phases["deletion"] = phase(SECONDS)
    return phases


def table(phases: dict[str, Any]) -> str:
    rows = []
    for what in ("root", "drain", "start"):
        quiet = _point(phases["quiet"][what], 0.5)
        for name, found in phases.items():
            half, most = _point(found[what], 0.5), max(found[what])
            rows.append(
                f"{what:<8}{name:<10}{half:>9.1f}{most:>9.1f}{half / quiet:>8.2f}"
                f"{most / max(phases['quiet'][what]):>8.2f}"
            )
    lines = ["                   p50 ms   max ms   ratio   ratio of max", *rows, ""]
    for name, found in phases.items():
        lines.append(
            f"{name}: {found['files']} files at most, {found['memory']:.0f} MiB, "
            f"{found['restarts']} restarts"
        )
    return "\n".join(lines)


def _point(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]
