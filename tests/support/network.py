"""Static addresses of instances: the keys, and their effects inside and on the host."""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator

from support.disposable import Host
from support.incus import Incus
from support.store import build

# The setup that the manual of NixOS gives a container.
WIRE = {"host_address": "10.233.1.1,fc00::1", "address": "10.233.1.2,fc00::2"}
ADDRESSES_OF_TESTS = r"10\.233\.|fc00:"


@functools.cache
def recording_system(host: Host) -> str:
    """A link to a system that is there already, so that a start builds nothing.

    Its activation writes the addresses and routes that it finds to /etc/found.
    """
    text = """import ./system.nix {
        inherit deps; name = "net";
        activate = "{ ip address; ip route; ip -6 route; } >/etc/found 2>&1";
    }"""
    Incus(host, "net").flake_text(f"net = {text};", "/srv/net")
    build(host, "path:/srv/net#net", "/srv/system")
    return "/srv/system"


@contextlib.contextmanager
def nothing_is_left(incus: Incus) -> Iterator[None]:
    """The host has none of the addresses once the instances of the block are deleted."""
    yield
    incus.clean_up()
    incus.eventually(lambda: traces(incus.host) == "", lambda: traces(incus.host))


def traces(host: Host) -> str:
    """All that the host has of the addresses in these tests."""
    script = "ip -o address; ip route show table all; ip -6 route show table all"
    lines = host.sh(script).stdout.splitlines()
    return "\n".join(line for line in lines if re.search(ADDRESSES_OF_TESTS, line))


def keys(device: str = "eth0", **values: str) -> list[str]:
    return [f"user.inx.net.{device}.{what}={value}" for what, value in values.items()]


def made(incus: Incus, suffix: str = "", **values: str) -> str:
    """An instance whose only NIC is a setup to the host; `values` are its keys."""
    given = [word for pair in keys(**values) for word in ("-c", pair)]
    system = recording_system(incus.host)
    name = incus.init(*given, name=incus.name(suffix), system=system)
    add_wire(incus, name)
    return name


def add_nic(incus: Incus, name: str, device: str, *values: str) -> None:
    incus("config", "device", "add", name, device, "nic", *values)


def add_wire(incus: Incus, name: str, device: str = "eth0") -> None:
    add_nic(incus, name, device, "nictype=p2p", f"name={device}")


def start(incus: Incus, *names: str) -> None:
    for name in names:
        incus.start(name)
    for name in names:
        incus.wait_inside(name)


def is_refused(incus: Incus, name: str, pattern: str) -> None:
    """The start fails, and the log and the status tell the same sentence."""
    assert incus.start(name, check=False).returncode, f"{name} runs, and not: {pattern}"
    status = incus.wait_status(name, f"failed: .*{pattern}")
    incus.wait_log(name, status.removeprefix("failed: "))
    assert status.isprintable() and not status.endswith(".")
    incus.wait_state(name, "STOPPED")


def ip(incus: Incus, name: str, words: str) -> str:
    """What `ip` says in the network of the instance, asked from outside."""
    pid = str(incus.pid(name))
    return incus.host.run(["nsenter", "-t", pid, "-n", "ip", *words.split()]).stdout


def addresses(incus: Incus, name: str, interface: str = "eth0") -> set[str]:
    """The addresses that were given to the interface, not those of the kernel or of a router."""
    found = json.loads(ip(incus, name, f"-j address show dev {interface} scope global permanent"))
    given = [of for link in found for of in link["addr_info"] if of]
    return {f"{of['local']}/{of['prefixlen']}" for of in given}


def routes(incus: Incus, name: str) -> set[str]:
    """The routes with a gateway, but for those that a router announced."""
    found = json.loads(ip(incus, name, "-j -4 route")) + json.loads(ip(incus, name, "-j -6 route"))
    given = [of for of in found if "gateway" in of and of.get("protocol") != "ra"]
    return {f"{of['dst']} {of['gateway']} {of['dev']}" for of in given}


def reaches(incus: Incus, name: str, *targets: str) -> bool:
    """Whether all targets answer to the instance."""
    enter = ["nsenter", "-t", str(incus.pid(name)), "-n"]
    return all(answers(incus.host, target, *enter) for target in targets)


def answers(host: Host, target: str, *enter: str) -> bool:
    argv = [*enter, "ping", "-c", "3", "-i", "0.2", "-W", "2", "-w", "3", target]
    return host.run(argv, check=False).returncode == 0


def wire_works(incus: Incus, name: str) -> None:
    """The instance has WIRE: all of it, once, and in both directions."""
    assert addresses(incus, name) == {"10.233.1.2/32", "fc00::2/128"}
    assert routes(incus, name) == {"default 10.233.1.1 eth0", "default fc00::1 eth0"}
    assert reaches(incus, name, "10.233.1.1", "fc00::1")
    assert answers(incus.host, "10.233.1.2") and answers(incus.host, "fc00::2")
    assert traces(incus.host).count(" 10.233.1.1/32 ") == 1, traces(incus.host)


def reboots(incus: Incus, name: str, act: Callable[[], object]) -> None:
    """`act` makes the instance boot again."""
    before = incus.pid(name)
    act()
    incus.eventually(lambda: incus.pid(name) not in (0, before), incus.story)
    incus.wait_inside(name)
