"""GC roots: the time until a registered link has a root, the time of a comparison of everything,
the memory of the sidecar, and the time that the instance's own daemon adds to a build; the
comparison also for many instances that are simulated.

The instances do nothing. Clients on the host connect to the nix-daemons of the instances. A client
sleeps until its link has a root: one that looks again and again would have one of two processors.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from support.disposable import REPO, Host

COUNTS = (1, 20, 100)
LINKS = (10, 100)
ROUNDS = 300
BUILDS = 20
# What is simulated: so many instances, with so many links each.
SIMULATED = (1000, 100)
# That of the sidecar.
PYTHON = "/opt/inx/bin/python3"

# These programs run on the host: entering the host takes longer than the measured operations.
LAUNCH = """
exec </dev/null
for number in $(seq "$1" "$2"); do
    incus init --quiet --empty "b$number" --profile inx -c user.inx.flake=/etc/nixos#web
    incus config device add "b$number" eth0 none >/dev/null
    incus start "b$number"
done
for number in $(seq "$1" "$2"); do
    until incus exec "b$number" -- test -e /run/current-system/init 2>/dev/null; do :; done
done
"""

MEASURE = """
import json, os, socket, statistics, subprocess, sys, time
sys.path[:0] = ["/root/inx/tests"]
from inotify_simple import INotify, flags
from support.nixworker import NixClient

def output(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    done.check_returncode()
    return done.stdout.strip()

def compared():
    # The barrier waits for this request when a collection begins.
    begin = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as sidecar:
        sidecar.connect("/run/inx/sidecar.sock")
        sidecar.sendall(b"sync")
        sidecar.shutdown(socket.SHUT_WR)
        answer = sidecar.makefile("rb").read()
    assert answer.startswith(b"0\\n") and b"nothing" not in answer, answer
    return 1000 * (time.perf_counter() - begin)

class Instance:
    def __init__(self, name):
        uuid = output("incus", "config", "get", name, "volatile.uuid")
        self.rootfs = f"/var/lib/incus/storage-pools/default/containers/{name}/rootfs"
        self.roots = f"/nix/var/nix/gcroots/inx/{name}.{uuid}/links"
        self.daemon = f"/run/inx/{uuid}/daemon-socket/socket"
        self.changes = INotify()
        self.changes.add_watch(self.roots, flags.MOVED_TO)

    def register(self, count, link):
        with NixClient(self.daemon) as client:
            for number in range(count):
                client.register(paths[number], self.rootfs, f"/root/{link}-{number}")

    def wait(self, count):
        while len(os.listdir(self.roots)) < count:
            time.sleep(0.001)

count, links, rounds = json.load(sys.stdin)
instances = [Instance(f"b{number}") for number in range(1, count + 1)]
keeper = NixClient(instances[0].daemon)
paths = [keeper.add_text(f"bench-{number}", f"{number}") for number in range(max(*links, rounds))]
answer = {"syncs": {}}
for many in links:
    for instance in instances:
        instance.register(many, "bench")
    for instance in instances:
        instance.wait(many)
    time.sleep(4)  # until the change times are old enough (kernel/change_times)
    compared()
    answer["syncs"][many] = statistics.median(compared() for _ in range(9))
latencies = []
for number in range(rounds):
    instance = instances[number % count]
    instance.changes.read(timeout=0)
    before = len(os.listdir(instance.roots))
    with NixClient(instance.daemon) as client:
        client.register(paths[number], instance.rootfs, f"/root/late-{number}")
        begin = time.perf_counter()
        while len(os.listdir(instance.roots)) == before:
            instance.changes.read()
        latencies.append(1000 * (time.perf_counter() - begin))
answer["latencies"] = sorted(latencies)
pid = output("systemctl", "show", "--property=MainPID", "--value", "inx-sidecar")
with open(f"/proc/{pid}/status") as status:
    answer["memory"] = next(int(line.split()[1]) / 1024 for line in status if "VmRSS" in line)
for instance in instances:
    for entry in os.listdir(f"{instance.rootfs}/root"):
        os.unlink(f"{instance.rootfs}/root/{entry}")
compared()
print(json.dumps(answer))
"""

BUILD = """
import json, os, subprocess, sys, time
output = lambda *a: subprocess.run(a, capture_output=True, text=True, check=True).stdout.strip()
uuid = output("incus", "config", "get", "b1", "volatile.uuid")
stores = {"host": "unix:///nix/var/nix/daemon-socket/socket",
          "instance": f"unix:///run/inx/{uuid}/daemon-socket/socket"}
times = {name: [] for name in stores}
for number in range(int(sys.argv[1])):
    for name, store in stores.items():
        text = ('derivation { name = "bench"; system = builtins.currentSystem; builder = "/bin/sh";'
                ' args = [ "-c" "echo >$out %s %d" ]; }' % (name, number))
        begin = time.perf_counter()
        output("nix-build", "--store", store, "--no-out-link", "-E", text)
        times[name].append(1000 * (time.perf_counter() - begin))
collect = {}
for name, verb in (("barrier", "start"), ("no barrier", "stop")):
    output("systemctl", verb, "inx-barrier")
    collect[name] = []
    for _ in range(int(sys.argv[1])):
        begin = time.perf_counter()
        output("nix-store", "--gc", "--print-roots")
        collect[name].append(1000 * (time.perf_counter() - begin))
output("systemctl", "start", "inx-barrier")
print(json.dumps(times | collect))
"""

# As the sidecar starts: without OpenSSL.
SIMULATE = """
import sys
from inx_sidecar import services
with services.without_openssl():
    from support import many_instances
many_instances.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


def measure(host: Host) -> dict[str, Any]:
    """Milliseconds and MiB by the number of instances. Milliseconds of builds and root scans.
    What support/many_instances.py gives."""
    host.push(REPO / "tests", ["support"], "/root/inx/tests")
    counts: dict[str, Any] = {}
    running = 0
    for count in COUNTS:
        argv = ["bash", "-euc", LAUNCH, "launch", str(running + 1), str(count)]
        host.run(argv, timeout=900)
        running = count
        given = json.dumps([count, LINKS, ROUNDS])
        done = host.run([PYTHON, "-c", MEASURE], input=given, timeout=900)
        counts[str(count)] = json.loads(done.stdout)
    done = host.run(["python3", "-c", BUILD, str(BUILDS)], timeout=600)
    times = {name: statistics.median(values) for name, values in json.loads(done.stdout).items()}
    # On the file system of the host's disk: that of the host itself is an overlay.
    host.sh("mkdir /var/lib/incus/bench")
    argv = ["env", "PYTHONPATH=/root/inx/tests", PYTHON, "-c", SIMULATE, "/var/lib/incus/bench"]
    done = host.run([*argv, *map(str, SIMULATED)], timeout=1800)
    return {"counts": counts, "times": times, "simulated": json.loads(done.stdout)}


def table(numbers: dict[str, Any]) -> str:
    lines = [
        "instances   registered to root, ms        compared, ms, links each     sidecar",
        "            p50     p99     max     "
        + "".join(f"{n:>9}" for n in LINKS)
        + "          MiB",
    ]
    for count, found in numbers["counts"].items():
        late = found["latencies"]
        syncs = "".join(f"{found['syncs'][str(links)]:>9.0f}" for links in LINKS)
        ends = (late[len(late) // 2], late[len(late) * 99 // 100], late[-1])
        shown = "".join(f"{value:>8.1f}" for value in ends)
        lines.append(f"{count:>9}{shown}     {syncs}     {found['memory']:>8.1f}")
    times = numbers["times"]
    lines += [
        "",
        f"build by the host's daemon {times['host']:.0f} ms, by an instance's "
        f"{times['instance']:.0f} ms: ratio {times['instance'] / times['host']:.2f}",
        f"finding roots with the barrier {times['barrier']:.0f} ms, without "
        f"{times['no barrier']:.0f} ms ({COUNTS[-1]} instances)",
        "",
    ]
    instances, links = SIMULATED
    simulated = numbers["simulated"]
    first, last = simulated["rounds"][0], simulated["rounds"][-1]
    lines.append(
        f"simulated, {instances} instances, {links} links each: the first comparison takes "
        f"{first['cpu'] + first['children']:.1f} s of CPU, one after no change "
        f"{last['cpu'] + last['children']:.2f} s ({last['wall']:.2f} s); "
        f"{simulated['resident']:.0f} MiB"
    )
    return "\n".join(lines)


def plot(numbers: dict[str, Any], file: Path) -> None:
    """Plot the comparison time by instances and links, and the distribution of the latency."""
    from matplotlib.figure import Figure  # only here: the benches need nothing else

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    compared, late = figure.subplots(1, 2)
    for links in LINKS:
        times = [found["syncs"][str(links)] for found in numbers["counts"].values()]
        compared.plot(COUNTS, times, marker="o", label=f"{links} links each")
    compared.set(title="Comparing all roots", xlabel="instances that run", ylabel="ms", ylim=0)
    compared.legend(frameon=False)
    for count, found in numbers["counts"].items():
        values = found["latencies"]
        share = [(rank + 1) / len(values) for rank in range(len(values))]
        late.plot(values, share, label=f"{count} instances")
    late.set(title="From registered to root", xlabel="ms", ylabel="share of links", xlim=0, ylim=0)
    late.legend(frameon=False)
    for axes in (compared, late):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)
