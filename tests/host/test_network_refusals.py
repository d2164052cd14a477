"""Static addresses that are wrong, or that the host or another instance has, are refused."""

import re
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.incus import Incus
from support.network import (
    WIRE,
    add_nic,
    add_wire,
    addresses,
    answers,
    ip,
    is_refused,
    keys,
    made,
    nothing_is_left,
    reaches,
    reboots,
    start,
    traces,
    wire_works,
)
from support.services import restart_sidecar

pytestmark = pytest.mark.life


@pytest.fixture(autouse=True)
def addresses_are_taken_back(incus: Incus) -> Iterator[None]:
    with nothing_is_left(incus):
        yield


def test_an_address_belongs_to_one_running_instance(incus: Incus, host: Host) -> None:
    """Of an instance and its copy, only one may run, also after a restore and a new name."""
    one = made(incus, **WIRE)
    start(incus, one)
    incus("snapshot", "create", one, "before")
    two = incus.adopt(incus.name("copy"))
    incus("copy", one, two)
    is_refused(incus, two, f"10.233.1.2 of '{two}' is a static address of '{one}', which runs")
    wire_works(incus, one)
    reboots(incus, one, lambda: incus("snapshot", "restore", one, "before"))
    wire_works(incus, one)
    incus("stop", "-f", one)
    start(incus, two)
    wire_works(incus, two)
    is_refused(incus, one, f"static address of '{two}'")
    incus("stop", "-f", two)
    other = incus.adopt(incus.name("other"))
    incus("rename", two, other)
    start(incus, other)
    is_refused(incus, one, f"static address of '{other}'")
    wire_works(incus, other)
    incus.set(one, *keys(address="10.233.1.3,fc00::3"))
    start(incus, one)
    assert answers(host, "10.233.1.3") and answers(host, "fc00::3")
    assert reaches(incus, one, "10.233.1.1", "fc00::1", "10.233.1.2", "fc00::2")
    incus("stop", "-f", other)
    incus.eventually(lambda: "10.233.1.2" not in traces(host), lambda: traces(host))
    assert answers(host, "10.233.1.3") and answers(host, "fc00::3")
    assert reaches(incus, one, "10.233.1.1", "fc00::1")


def test_one_of_many_that_start_at_once_gets_the_address(incus: Incus, host: Host) -> None:
    names = [made(incus, f"n{number}", **WIRE) for number in range(5)]
    at_once = 'for name; do incus start "$name" </dev/null & done; wait'
    host.run(["bash", "-uc", at_once, "at-once", *names])
    # Incus undoes a refused start after its command has ended.
    runs = "RUNNING"
    incus.eventually(lambda: [incus.state(name) for name in names].count(runs) == 1, incus.story)
    (one,) = [name for name in names if incus.state(name) == runs]
    incus.wait_inside(one)
    wire_works(incus, one)
    for name in set(names) - {one}:
        incus.wait_status(name, f"failed: .* is a static address of '{one}', which runs")
    restart_sidecar(host)
    for name in set(names) - {one}:
        is_refused(incus, name, f"static address of '{one}'")
    wire_works(incus, one)


def test_bad_values_are_refused_in_one_sentence_and_do_nothing(incus: Incus, host: Host) -> None:
    name = made(incus, **WIRE)
    for key, value in {
        "address": "10.233.1.2;id",
        "host_address": "10.233.1.1\nwarning: all is well",
        "gateway": "10.233.1.٣",
    }.items():
        incus.set(name, *keys(**{key: value}))
        is_refused(incus, name, rf"user\.inx\.net\.eth0\.{key} is .*allowed: ")
        incus.set(name, *keys(**{key: WIRE.get(key, "")}))
    for key, value, said in [
        ("user.inx.net.eth1.address", "10.233.1.3", "a NIC that .* does not have .it has eth0."),
        ("user.inx.net.root.address", "10.233.1.3", "'user.inx.net.root' names a NIC that"),
        ("user.inx.net.eth0.netmask", "24", "unknown key 'user.inx.net.eth0.netmask'"),
    ]:
        incus.set(name, f"{key}={value}")
        is_refused(incus, name, said)
        incus("config", "unset", name, key)
    add_nic(incus, name, "eth9", "network=incusbr0")
    incus.set(name, "user.inx.net.eth9.host_address=10.233.9.1")
    is_refused(incus, name, "host_address goes with a NIC of nictype=p2p")
    assert traces(host) == ""


@pytest.fixture
def blackhole(host: Host) -> Iterator[None]:
    host.run("ip route add blackhole 10.233.7.2/32".split())
    yield
    host.run("ip route del blackhole 10.233.7.2/32".split())


@pytest.mark.usefixtures("blackhole")
def test_an_address_of_the_host_is_not_taken_from_it(incus: Incus, host: Host) -> None:
    """The refusal comes before there is a container, so that nothing has to be undone."""
    bridge = host.sh("ip -4 -o address show dev incusbr0 | awk '{ print $4 }'").stdout.strip()
    own, bits = bridge.split("/")
    beside = own.rpartition(".")[0] + ".77"
    name = made(incus)
    for values, said in [
        ({"address": own}, f"{own} in .*eth0.address .* is this host's own address on incusbr0"),
        ({"host_address": f"{beside}/{bits}"}, rf"overlaps with {bridge} on incusbr0; leave out /"),
        ({"address": "10.233.7.2"}, "10.233.7.2/32 of .* is already routed to elsewhere"),
    ]:
        incus.set(name, *keys(**({"address": "", "host_address": ""} | values)))
        before = incus.host.sh("ip -o address; ip route").stdout
        is_refused(incus, name, said)
        assert incus.host.sh("ip -o address; ip route").stdout == before


def test_an_address_in_a_network_of_the_host_is_refused(incus: Incus, host: Host) -> None:
    """With a route to the setup, no other machine of that network could have the address."""
    own = host.sh("ip -4 -o address show dev incusbr0 | awk '{ print $4 }'").stdout.strip()
    beside = own.rpartition(".")[0] + ".77"
    name = made(incus, address=beside, host_address="10.233.1.1")
    is_refused(incus, name, beside)


def test_the_hosts_end_takes_no_address_of_an_instance(incus: Incus, host: Host) -> None:
    """Otherwise the host would answer itself, and no longer reach the instance."""
    one = made(incus, **WIRE)
    two = made(incus, "b", host_address="10.233.1.2", address="10.233.1.9")
    start(incus, one)
    is_refused(incus, two, "10.233.1.2")
    wire_works(incus, one)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("10.233.3.1/24", "10.233.3.2/24"), ("10.233.3.3/24", "10.233.3.4/24")),
        (("10.233.3.1", "10.233.3.2"), ("10.233.3.2", "10.233.3.4")),
    ],
)
def test_wires_of_one_instance_do_not_collide(
    incus: Incus, first: tuple[str, str], second: tuple[str, str]
) -> None:
    name = made(incus, host_address=first[0], address=first[1])
    add_wire(incus, name, "ve1")
    incus.set(name, *keys("ve1", host_address=second[0], address=second[1]))
    is_refused(incus, name, "10.233.3.")


# Shell text by which root inside changes the interfaces.
HOSTILE = """
    ip link set eth0 down; ip link set eth0 name stolen
    ip link add eth0 type bridge; ip address add 10.233.1.77/24 dev eth0; ip link set eth0 up
    ip address add 10.233.1.3/32 dev stolen; ip address add 10.233.1.1/32 dev stolen
    ip link set stolen up
    ip route add 10.233.0.0/16 dev stolen
"""


def test_root_inside_reaches_nothing_of_the_host_or_of_others(incus: Incus, host: Host) -> None:
    """Root may change the end of the setup inside; the next boot repairs it."""
    hostile = made(incus, **WIRE)
    other = made(incus, "b", host_address="10.233.1.1", address="10.233.1.3")
    start(incus, hostile, other)
    before = traces(host)
    incus.sh(hostile, HOSTILE)
    assert sorted(without_states(traces(host))) == sorted(without_states(before))
    assert answers(host, "10.233.1.3") and reaches(incus, other, "10.233.1.1")
    reboots(incus, hostile, lambda: incus.run(hostile, "busybox", "reboot", "-f", check=False))
    assert addresses(incus, hostile) == {"10.233.1.2/32", "fc00::2/128"}
    assert "stolen" not in ip(incus, hostile, "-o link")
    incus.sh(hostile, "ip link del eth0")
    incus.eventually(lambda: "10.233.1.2" not in traces(host), lambda: traces(host))
    assert answers(host, "10.233.1.3") and reaches(incus, other, "10.233.1.1")
    reboots(incus, hostile, lambda: incus.run(hostile, "busybox", "reboot", "-f", check=False))
    assert addresses(incus, hostile) == {"10.233.1.2/32", "fc00::2/128"}
    assert answers(host, "10.233.1.2") and answers(host, "10.233.1.3")
    assert reaches(incus, hostile, "10.233.1.1", "10.233.1.3")


def without_states(lines: str) -> set[str]:
    """The lines without the state of the links, which the container may change."""
    return {
        re.sub(r"<.*?>| state \w+| (linkdown|tentative)\b", "", line) for line in lines.splitlines()
    }
