"""Static addresses, `user.inx.net.NIC.*`, from before PID 1 until the stop."""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from support.disposable import Host
from support.incus import Incus
from support.network import (
    WIRE,
    add_nic,
    add_wire,
    addresses,
    answers,
    is_refused,
    keys,
    made,
    nothing_is_left,
    reaches,
    reboots,
    recording_system,
    routes,
    start,
    traces,
    wire_works,
)
from support.services import kill_sidecar
from support.sources import endless

pytestmark = pytest.mark.life


@pytest.fixture(autouse=True)
def addresses_are_taken_back(incus: Incus) -> Iterator[None]:
    with nothing_is_left(incus):
        yield


def comes_back_after(incus: Incus, name: str, act: Callable[[], object]) -> None:
    """`act` stops the instance; the host has nothing of the setup then, until the next start."""
    setup = incus.get(name, "volatile.eth0.host_name")
    assert setup in links(incus.host)
    act()
    incus.wait_state(name, "STOPPED")
    incus.eventually(
        lambda: traces(incus.host) == "" and setup not in links(incus.host),
        lambda: f"{setup} of {links(incus.host)}\n{traces(incus.host)}",
    )
    incus.eventually(lambda: incus.start(name, check=False).returncode == 0, incus.story)
    incus.wait_inside(name)
    wire_works(incus, name)


def links(host: Host) -> set[str]:
    return {link["ifname"] for link in json.loads(host.run(["ip", "-j", "link"]).stdout)}


def kill_init(incus: Incus, name: str) -> None:
    incus.host.run(["kill", "-9", str(incus.pid(name))])


def test_a_wire_to_the_host_lasts_from_start_to_stop(incus: Incus, host: Host) -> None:
    name = made(incus, **WIRE)
    start(incus, name)
    incus.sh(
        name,
        """grep -q 'inet 10.233.1.2/32' /etc/found; grep -q 'inet6 fc00::2/128' /etc/found
        grep -q 'default via 10.233.1.1' /etc/found; grep -q 'default via fc00::1' /etc/found
        ! grep -q tentative.*fc00 /etc/found""",
    )
    wire_works(incus, name)
    kill_sidecar(host)
    wire_works(incus, name)
    reboots(incus, name, lambda: incus("restart", name))
    wire_works(incus, name)
    reboots(incus, name, lambda: incus("restart", "-f", name))
    wire_works(incus, name)
    for reboot in ["reboot"], ["busybox", "reboot", "-f"]:
        reboots(incus, name, partial(incus.run, name, *reboot, check=False))
        wire_works(incus, name)
    comes_back_after(incus, name, lambda: incus("stop", name))
    comes_back_after(incus, name, lambda: incus("stop", "-f", name))
    comes_back_after(incus, name, lambda: kill_init(incus, name))
    kill_sidecar(host)
    comes_back_after(incus, name, lambda: incus("stop", "-f", name))
    host.run(["systemctl", "stop", "inx-sidecar.service"])
    comes_back_after(incus, name, lambda: kill_init(incus, name))


def test_an_instance_that_waits_for_a_build_has_its_addresses_already(
    incus: Incus, host: Host
) -> None:
    """The addresses are there before the system is."""
    flake = endless(incus)
    name = incus.init(flake=f"{flake}#web")
    add_wire(incus, name)
    incus.set(name, *keys(**WIRE))
    incus.start(name)
    wire_works(incus, name)
    kill_sidecar(host)
    incus.wait_status(name, "building")
    wire_works(incus, name)


def test_systemd_leaves_the_addresses_alone(incus: Incus, host: Host) -> None:
    given = [word for pair in keys(**WIRE) for word in ("-c", pair)]
    name = incus.init(*given, flake="/etc/nixos#systemd")
    add_wire(incus, name)
    start(incus, name)
    incus.eventually(
        lambda: incus.inside(name, "systemctl is-system-running --wait"),
        lambda: incus.console(name),
    )
    wire_works(incus, name)
    incus.run(name, "systemctl", "restart", "systemd-networkd")
    incus.eventually(
        lambda: incus.inside(name, "systemctl is-active systemd-networkd"),
        lambda: incus.console(name),
    )
    wire_works(incus, name)
    reboots(incus, name, lambda: incus.run(name, "systemctl", "reboot", check=False))
    wire_works(incus, name)


@pytest.fixture
def lans(incus: Incus) -> Iterator[list[str]]:
    """Two bridges that differ only in the addresses of the host."""
    names = ["inxlan1", "inxlan2"]
    for number, name in enumerate(names, 1):
        options = [f"ipv4.address=10.233.{number}0.1/24", f"ipv6.address=fc00:{number}::1/64"]
        incus("network", "create", name, *options, "ipv4.dhcp=false", "ipv4.nat=false")
    yield names
    incus.clean_up()
    for name in names:
        incus("network", "delete", name)


def test_static_addresses_on_bridges(incus: Incus, host: Host, lans: list[str]) -> None:
    """Several addresses, IPv6 alone, a gateway, NICs that Incus names, macvlan, privileged."""
    one, same, far, macvlan = (
        incus.init(name=incus.name(suffix), system=recording_system(host))
        for suffix in ("one", "same", "far", "mac")
    )
    add_nic(incus, one, "eth0", f"network={lans[0]}", "name=eth0")
    add_nic(incus, one, "other", f"network={lans[1]}")
    mine = {"address": "10.233.10.7/24,10.233.10.8/24,fc00:1::7/64", "gateway": "10.233.10.1"}
    incus.set(one, *keys(**mine), *keys("other", address="fc00:2::7/64"))
    add_nic(incus, same, "eth0", "nictype=bridged", f"parent={lans[0]}", "name=eth0")
    incus.set(same, *keys(address="10.233.10.8"))
    add_nic(incus, far, "eth0", f"network={lans[1]}", "name=lan")
    far_keys = {"address": "10.233.10.7,fc00:2::9/64", "gateway": "10.233.20.1,fe80::1"}
    incus.set(far, "security.privileged=true", *keys(**far_keys))
    add_nic(incus, macvlan, "eth0", "nictype=macvlan", f"parent={lans[0]}", "name=eth0")
    incus.set(macvlan, *keys(address="10.233.10.7/24"))

    start(incus, one, far)
    assert addresses(incus, one) == set(mine["address"].split(","))
    assert addresses(incus, one, "eth1") == {"fc00:2::7/64"}
    assert routes(incus, one) == {"default 10.233.10.1 eth0"}
    assert answers(host, "10.233.10.7") and answers(host, "10.233.10.8")
    assert answers(host, "fc00:2::7") and answers(host, "fc00:1::7")
    assert addresses(incus, far, "lan") == {"10.233.10.7/32", "fc00:2::9/64"}
    assert routes(incus, far) == {"default 10.233.20.1 lan", "default fe80::1 lan"}
    assert reaches(incus, far, "fc00:2::7")

    is_refused(incus, same, f"10.233.10.8 of '{same}' is a static address of '{one}', which runs")
    is_refused(incus, macvlan, f"10.233.10.7 of '{macvlan}' is a static address of '{one}'")
    incus.set(macvlan, *keys(address="10.233.10.1/24"))
    is_refused(incus, macvlan, f"this host's own address on {lans[0]}; change one")
    incus.set(macvlan, *keys(address="10.233.10.9/24"))
    incus.set(same, *keys(address="10.233.10.1"))
    is_refused(incus, same, f"10.233.10.1 in .* is this host's own address on {lans[0]}")
    start(incus, macvlan)
    assert addresses(incus, macvlan) == {"10.233.10.9/24"}
    assert reaches(incus, macvlan, "10.233.10.7")


@pytest.mark.sid
def test_wires_beside_a_bridge(incus: Incus, host: Host) -> None:
    """A setup beside the bridge, as extraVeths, gives no default route."""
    name = incus.init("-c", "security.privileged=true", system=recording_system(host))
    add_nic(incus, name, "ve1", "nictype=p2p", "name=setup")
    add_nic(incus, name, "ve2", "nictype=p2p")
    first = keys("ve1", host_address="10.233.2.1/24", address="10.233.2.2/24")
    second = keys("ve2", host_address="fc00:3::1", address="fc00:3::2,fc00:3::3")
    incus.set(name, *first, *second)
    start(incus, name)
    assert addresses(incus, name, "setup") == {"10.233.2.2/24"}
    assert addresses(incus, name, "eth1") == {"fc00:3::2/128", "fc00:3::3/128"}
    assert not [way for way in routes(incus, name) if way.startswith("default 10.233.")]
    assert not [way for way in routes(incus, name) if way.startswith("default fc00:")]
    assert reaches(incus, name, "10.233.2.1", "fc00:3::1")
    assert answers(host, "10.233.2.2") and answers(host, "fc00:3::3")
    incus("stop", "-f", name)
    incus.set(name, *keys("ve1", gateway="10.233.2.1"))
    start(incus, name)
    incus.sh(name, "grep -q 'default via 10.233.2.1 dev setup' /etc/found")


def test_changed_keys_of_profile_and_instance_count_at_the_next_start(
    incus: Incus, host: Host
) -> None:
    profile = incus.profile()
    incus("profile", "device", "add", profile, "eth0", "nic", "nictype=p2p", "name=eth0")
    incus("profile", "set", profile, *keys(**WIRE))
    name = incus.init("--profile", profile, system=recording_system(host))
    start(incus, name)
    wire_works(incus, name)
    before = incus.pid(name)

    incus("profile", "set", profile, *keys(address="10.233.1.9,fc00::9"))
    incus.set(name, *keys(gateway="10.233.1.777"))
    said = incus.wait_status(name, "failed: user.inx.net.eth0.gateway is '10.233.1.777'")
    assert said.isprintable()
    wire_works(incus, name)
    kill_sidecar(host)
    wire_works(incus, name)
    assert incus.pid(name) == before
    incus("config", "unset", name, "user.inx.net.eth0.gateway")
    incus.wait_status(name, "ready")
    wire_works(incus, name)
    incus("restart", "-f", name)
    incus.wait_inside(name)
    assert addresses(incus, name) == {"10.233.1.9/32", "fc00::9/128"}

    for key in "address", "host_address":
        incus("profile", "unset", profile, f"user.inx.net.eth0.{key}")
    assert addresses(incus, name) == {"10.233.1.9/32", "fc00::9/128"}
    incus("restart", "-f", name)
    incus.wait_inside(name)
    assert addresses(incus, name) == set()
    assert not re.search(r"10\.233|fc00:", traces(host))


def test_each_line_of_the_journal_names_its_instance(incus: Incus, host: Host) -> None:
    """The lines of a start, of a refusal, and of a build for an instance that runs."""
    source = incus.flake("web", greeting="one")
    one = incus.launch(flake=f"{source}#web")
    two = incus.launch(name=incus.name("b"), flake=f"{source}#web")
    three = incus.init(*["-c", *keys(address="x")], name=incus.name("c"), flake=f"{source}#web")
    is_refused(incus, three, "user.inx.net.eth0.address")
    incus.flake("web", greeting=f"never built before: {one}")
    incus.set(one, "user.inx.update=2")
    incus.wait_generation(one, "2")
    asked = ["journalctl", "-q", "--no-pager", "-o", "json", "_SYSTEMD_UNIT=inx-sidecar.service"]
    lines = [json.loads(line) for line in host.run(asked).stdout.splitlines()]
    for name in one, two, three:
        text = host.run(["journalctl", "-q", "--no-pager", "-o", "cat", f"INX_INSTANCE={name}"])
        shown = text.stdout.splitlines()
        assert shown and all(line.startswith(f"{name}: ") for line in shown), shown
        about = [line for line in lines if str(line["MESSAGE"]).startswith(f"{name}: ")]
        assert {line.get("INX_INSTANCE") for line in about} == {name}
        assert any("net.eth0" in line for line in shown) == (name == three)
        assert any("build" in line for line in shown) == (name != three)
    assert len([m for m in lines if re.match(f"{one}: .*building", str(m["MESSAGE"]))]) > 1
