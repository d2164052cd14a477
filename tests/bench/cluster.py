"""Clusters: what an event and a comparison cost a member while another member has many instances.

Two members. The instances are empty and never started: Incus' answers are real, and only the other
members of a larger cluster are simulated, by the number of instances on the second one.
"""

import json
from typing import Any

from support.cluster import Cluster

MEMBERS = 2
OWN = 200
COUNTS = (0, 1000)
ROUNDS = 20
FEW = 5

# These programs run on a host: entering it takes longer than what is measured.
CREATE = """
import http.client, json, socket, sys, threading

class Incus(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/lib/incus/unix.socket")

def ask(method, url, body=None):
    connection = Incus("incus")
    connection.request(method, url, json.dumps(body) if body else None)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer

target, prefix, first, last = json.load(sys.stdin)

def create(numbers):
    for number in numbers:
        request = {
            "name": f"{prefix}{number}", "source": {"type": "none"}, "profiles": ["default", "inx"]
        }
        answer = ask("POST", f"/1.0/instances?target={target}", request)
        path, _, query = answer["operation"].partition("?")
        ended = ask("GET", f"{path}/wait?timeout=120&{query}")
        assert ended["metadata"]["status"] == "Success", ended

threads = [threading.Thread(target=create, args=(range(first + n, last, 4),)) for n in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""

# As COMMANDS of the shell, each repeated; the sums of the CPU times of both units, in ms each time.
CPU = """
cpu() { awk '/usage_usec/ {print $2}' "/sys/fs/cgroup/system.slice/$1.service/cpu.stat"; }
settle() { # until the sidecar has done what the last event asks for
    before=-1 now=$(cpu inx-sidecar)
    while [ "$now" != "$before" ]; do sleep 1.5; before=$now now=$(cpu inx-sidecar); done
}
settle
sidecar=$(cpu inx-sidecar) incus=$(cpu incus) begin=$(date +%s%N)
for round in $(seq "$ROUNDS"); do eval "$COMMAND" </dev/null >/dev/null; done
end=$(date +%s%N)
settle
echo $(($(cpu inx-sidecar) - sidecar)) $(($(cpu incus) - incus)) $(((end - begin) / 1000))
"""

LIST = """curl -s -A "$AGENT" --unix-socket /var/lib/incus/unix.socket \
'http://incus/1.0/instances?recursion=1&all-projects=true'"""
EVENTS = {
    "own": ("incus config set own1 user.note=$round", ROUNDS),
    "other": ("incus config set other1 user.note=$round", ROUNDS),
    "profile": ("incus profile set bench user.note=$round; sleep 0.5", FEW),
    "comparison": ("/opt/inx/bin/inx-sidecar sync", FEW),
    "list of all": (LIST.replace("$AGENT", "bench"), FEW),
    "list of own": (LIST.replace("$AGENT", "incus-cluster-notifier"), FEW),
}


def measure(cluster: Cluster) -> dict[str, Any]:
    first, second = cluster.members

    def create(target: str, prefix: str, begin: int, end: int) -> None:
        request = json.dumps([target, prefix, begin, end])
        first.run(["python3", "-c", CREATE], input=request, timeout=3600)

    create(first.name, "own", 0, OWN)
    first.run(["incus", "profile", "create", "bench"])
    numbers: dict[str, Any] = {}
    present = 0
    for count in COUNTS:
        # One more is there at first: events are about it.
        create(second.name, "other", present, max(count, 2))
        present = max(count, 2)
        numbers[str(count)] = {}
        for name, (command, rounds) in EVENTS.items():
            environment = {"COMMAND": command, "ROUNDS": str(rounds)}
            said = first.sh(CPU, env=environment, timeout=600).stdout.split()
            each = [int(text) / 1000 / rounds for text in said]
            numbers[str(count)][name] = dict(zip(("sidecar", "incus", "time"), each, strict=True))
    return numbers


def table(numbers: dict[str, Any]) -> str:
    lines = [f"{OWN} instances on this member; milliseconds each"]
    lines += ["instances elsewhere  of                sidecar    Incus    time"]
    for count, found in numbers.items():
        for name, each in found.items():
            figures = "".join(f"{each[key]:9.1f}" for key in ("sidecar", "incus", "time"))
            lines.append(f"{count:>19}  {name:15}{figures}")
    return "\n".join(lines)
