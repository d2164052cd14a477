"""Events of Incus that are larger than what the sidecar reads of them."""

import pytest
from support.disposable import Host
from support.gc import main_pid
from support.incus import Incus

pytestmark = pytest.mark.life

# Incus tells the whole command line of a program that it executes, with six bytes for a "<". It
# takes a request of 1 MiB (version 7).
POST = """
import json, socket, sys
body = json.dumps({
    "command": ["true", *["<" * 100_000] * 10], "wait-for-websocket": False, "record-output": False
}).encode()
with socket.socket(socket.AF_UNIX) as channel:
    channel.connect("/var/lib/incus/unix.socket")
    head = f"POST /1.0/instances/{sys.argv[1]}/exec HTTP/1.1\\r\\nHost: incus\\r\\n"
    head += f"Connection: close\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    channel.sendall(head.encode() + body)
    print(channel.makefile().read())
"""


def connections(host: Host) -> set[str]:
    """The sockets of the sidecar that are connected to Incus."""
    rows = host.run(["ss", "-xHn", "state", "established"]).stdout.splitlines()
    peers = {row.split()[-1] for row in rows if "/var/lib/incus/unix.socket" in row}
    links = host.sh(f"cd /proc/{main_pid(host)}/fd; readlink *", check=False).stdout.split()
    return {link for link in links if link.removeprefix("socket:[").rstrip("]") in peers}


def test_a_large_event_does_not_end_the_connection(incus: Incus, host: Host) -> None:
    """The connection was cut, and the sidecar looked at everything again, each time."""
    flake = incus.flake(greeting="one")
    name = incus.launch(flake=f"{flake}#web")
    incus.eventually(lambda: len(connections(host)) == 1, lambda: str(connections(host)))
    before = connections(host)
    for _ in range(3):
        answer = host.run(["python3", "-I", "-c", POST, name]).stdout
        assert answer.startswith("HTTP/1.1 202 "), answer
    incus.flake(greeting="two")
    incus.set(name, "user.inx.update=2")
    incus.wait_generation(name, "2")
    incus.eventually(lambda: len(connections(host)) == 1, lambda: str(connections(host)))
    assert connections(host) == before
