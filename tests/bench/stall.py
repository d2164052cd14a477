"""A file system of an instance never answers: the time that the sidecar is away when it is
restarted, and the time of a start of another instance, each compared to the same without it.
"""

import json
import statistics
from typing import Any

from support.attacks import stalled
from support.disposable import REPO, Host
from support.gc import register
from support.incus import Incus

ROUNDS = 7

# This program runs on the host: entering the host takes longer than the measured operations.
MEASURE = """
import json, subprocess, sys, time
rounds = json.load(sys.stdin)
quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
run = lambda *argv: subprocess.run(argv, check=True, **quiet)

def timed(function, *given):
    begin = time.perf_counter()
    function(*given)
    return 1000 * (time.perf_counter() - begin)

found = {"restart": [], "start": []}
for _ in range(rounds):
    found["restart"].append(timed(run, "systemctl", "restart", "inx-sidecar"))
    found["start"].append(timed(run, "incus", "start", "spare"))
    run("incus", "stop", "-f", "spare")
print(json.dumps(found))
"""


def measure(host: Host) -> dict[str, Any]:
    """Medians in milliseconds, without and with the file system."""
    host.push(REPO / "tests", ["support"], "/root/inx/tests")
    incus = Incus(host, "bench")
    name = incus.launch(name="evil", flake="/etc/nixos#web")
    incus.launch(name="spare", flake="/etc/nixos#web")
    incus("stop", "-f", "spare")

    def times() -> dict[str, float]:
        done = host.run(["python3", "-c", MEASURE], input=json.dumps(ROUNDS), timeout=900)
        found = json.loads(done.stdout)
        return {what: statistics.median(values) for what, values in found.items()}

    numbers = {"quiet": times()}
    incus.sh(name, "mkdir /root/stall")
    with stalled(incus, name, "/root/stall") as requests:
        register(incus, name, ["/root/stall/link"])
        assert requests.readline() == '"asked"\n'
        numbers["stalled"] = times()
    return numbers


def table(numbers: dict[str, Any]) -> str:
    rows = [
        f"{what:<28}{quiet:>8.0f} ms{numbers['stalled'][what]:>8.0f} ms"
        f"{numbers['stalled'][what] / quiet:>8.2f}"
        for what, quiet in numbers["quiet"].items()
    ]
    return "\n".join(["                                  quiet    stalled   ratio", *rows])
