"""Addresses and routes of both ends of a setup follow from the keys and the devices."""

from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inx_sidecar.base.errors import ConfigError
from inx_sidecar.config.keys import parse_spec
from inx_sidecar.config.nic_keys import parse_nics
from inx_sidecar.config.nic_setup import End, NicSetup, claims, excluded_claims, plan_nic_setups
from unit.config.test_nic_keys import nics

pytestmark = pytest.mark.life

P2P = {"nictype": "p2p", "name": "eth0", "host_name": "veth1"}
BRIDGED = {"network": "lan", "name": "eth0"}
# Text that is nearly an address, and any other text.
_PARTS = st.sampled_from([
    "10.0.0.2", "255.255.255.255", "0", "::", "fe80::1", "fd00:", "::ffff:10.0.0.1", "/", "/24",
    "/64", "/0", "/32", "/128", "/129", "%eth0", "%", ",", " ", "\n", "\0", ".", ":", "-", "٣",
    "9" * 5000, "\ud800",
])  # fmt: skip
VALUES = st.one_of(st.text(), st.lists(_PARTS, max_size=8).map("".join))


def setup(of: Mapping[str, str], *others: Mapping[str, str], **values: str) -> NicSetup:
    """The setup of eth0, a device `of` this kind; the instance also has the NICs `others`."""
    have = {f"eth{number}": device for number, device in enumerate((of, *others))}
    (found,) = plan_nic_setups(nics(**values), have, "web")
    return found


def clash(keys: Mapping[str, str], have: Mapping[str, Mapping[str, str]]) -> str:
    found = parse_nics({f"user.inx.net.{key}": value for key, value in keys.items()})
    with pytest.raises(ConfigError) as caught:
        plan_nic_setups(found, have, "web")
    return str(caught.value)


def in_words(end: End | None) -> str:
    """The addresses, then the routes."""
    assert end is not None
    ways = (f"{r.target} via {r.gateway}" if r.gateway else f"{r.target}" for r in end.routes)
    return f"{' '.join(map(str, end.addresses))}; {', '.join(ways)}"


@pytest.mark.parametrize(
    ("values", "inside", "host"),
    [
        (
            {"address": "10.0.0.2", "host_address": "10.0.0.1"},
            "10.0.0.2/32; 10.0.0.1/32, 0.0.0.0/0 via 10.0.0.1",
            "10.0.0.1/32; 10.0.0.2/32",
        ),
        (
            {"address": "10.0.0.2,fd00::2", "host_address": "10.0.0.1,fd00::1"},
            "10.0.0.2/32 fd00::2/128; "
            "10.0.0.1/32, fd00::1/128, 0.0.0.0/0 via 10.0.0.1, ::/0 via fd00::1",
            "10.0.0.1/32 fd00::1/128; 10.0.0.2/32, fd00::2/128",
        ),
        (
            {"address": "10.0.0.2/24", "host_address": "10.0.0.1/24"},
            "10.0.0.2/24; 0.0.0.0/0 via 10.0.0.1",
            "10.0.0.1/24; ",
        ),
        (
            {"address": "10.0.0.2/24", "host_address": "10.0.0.1"},
            "10.0.0.2/24; 0.0.0.0/0 via 10.0.0.1",
            "10.0.0.1/32; 10.0.0.2/32",
        ),
        ({"address": "fd00::2"}, "fd00::2/128; ", "; fd00::2/128"),
        ({"host_address": "10.0.0.1"}, "; ", "10.0.0.1/32; "),
        (
            {"address": "fd00::2", "host_address": "10.0.0.1,fd00::1"},
            "fd00::2/128; fd00::1/128, ::/0 via fd00::1",
            "10.0.0.1/32 fd00::1/128; fd00::2/128",
        ),
        (
            {"address": "10.0.0.2", "host_address": "10.0.0.1,10.0.0.9"},
            "10.0.0.2/32; 10.0.0.1/32, 10.0.0.9/32, 0.0.0.0/0 via 10.0.0.1",
            "10.0.0.1/32 10.0.0.9/32; 10.0.0.2/32",
        ),
        (
            {"address": "10.0.0.2", "host_address": "10.0.0.1", "gateway": "10.0.0.9"},
            "10.0.0.2/32; 10.0.0.1/32, 10.0.0.9/32, 0.0.0.0/0 via 10.0.0.9",
            "10.0.0.1/32; 10.0.0.2/32",
        ),
        (
            {"address": "fe80::2", "host_address": "fe80::1"},
            "fe80::2/128; ::/0 via fe80::1",
            "fe80::1/128; ",
        ),
    ],
)
def test_a_p2p_nic_and_its_peer_on_the_host(values: dict[str, str], inside: str, host: str) -> None:
    found = setup(P2P, **values)
    assert (in_words(found.inside), in_words(found.host)) == (inside, host)
    assert (found.name, found.host_name, found.network) == ("eth0", "veth1", "p2p/")


@pytest.mark.parametrize(
    ("values", "inside"),
    [
        ({"address": "10.0.0.2/24"}, "10.0.0.2/24; "),
        ({"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, "10.0.0.2/24; 0.0.0.0/0 via 10.0.0.1"),
        (
            {"address": "10.0.0.2", "gateway": "10.0.0.1"},
            "10.0.0.2/32; 10.0.0.1/32, 0.0.0.0/0 via 10.0.0.1",
        ),
        (
            {"address": "10.0.0.2/24", "gateway": "10.0.1.1"},
            "10.0.0.2/24; 10.0.1.1/32, 0.0.0.0/0 via 10.0.1.1",
        ),
        ({"address": "fd00::2/64", "gateway": "fe80::1"}, "fd00::2/64; ::/0 via fe80::1"),
        (
            {"address": "10.0.0.2/24,fd00::2/64", "gateway": "fd00::1,10.0.0.1"},
            "10.0.0.2/24 fd00::2/64; ::/0 via fd00::1, 0.0.0.0/0 via 10.0.0.1",
        ),
    ],
)
def test_a_nic_on_a_network(values: dict[str, str], inside: str) -> None:
    found = setup(BRIDGED, **values)
    assert in_words(found.inside) == inside and found.host is None


def test_the_host_is_the_way_out_of_an_only_nic_alone() -> None:
    values = {"address": "10.0.0.2", "host_address": "10.0.0.1"}
    assert in_words(setup(P2P, BRIDGED, **values).inside) == "10.0.0.2/32; 10.0.0.1/32"
    found = setup(P2P, BRIDGED, **values, gateway="10.0.0.1")
    assert in_words(found.inside) == "10.0.0.2/32; 10.0.0.1/32, 0.0.0.0/0 via 10.0.0.1"


def test_every_route_can_be_added_once_those_before_it_are_there() -> None:
    """A gateway is reachable by an address or by a route that comes first."""
    found = setup(
        P2P, address="10.0.0.2,10.1.0.2/24,fd00::2", host_address="10.0.0.1,fd00::1",
        gateway="10.9.0.1,fd09::1",
    )  # fmt: skip
    reached = [interface.network for interface in found.inside.addresses]
    for route in found.inside.routes:
        assert (
            route.gateway is None
            or any(route.gateway in network for network in reached if network.version == 4)
            or any(route.gateway in network for network in reached if network.version == 6)
        )
        reached.append(route.target)


@pytest.mark.parametrize(
    ("device", "network"),
    [
        (P2P, "p2p/"),
        ({"network": "lan"}, "lan"),
        ({"nictype": "bridged", "parent": "lan"}, "lan"),
        ({"nictype": "macvlan", "parent": "lan"}, "lan"),
        ({"nictype": "physical", "parent": "enp1s0"}, "enp1s0"),
        ({}, "eth0"),
    ],
)
def test_a_claim_is_an_address_and_its_network(device: dict[str, str], network: str) -> None:
    found = setup(device, address="10.0.0.2/24,FD00::2")
    assert claims([found]) == {f"10.0.0.2 {network}", f"fd00::2 {network}"}
    assert claims([]) == frozenset()


@pytest.mark.parametrize(
    ("keys", "have", "message"),
    [
        ({"eth1.address": "10.0.0.2"}, {"eth0": P2P, "a": P2P}, "it has a, eth0"),
        ({"eth1.address": "10.0.0.2"}, {}, "it has none"),
        (
            {"eth0.host_address": "10.0.0.1"},
            {"eth0": BRIDGED},
            "user.inx.net.eth0.host_address goes with a NIC of nictype=p2p, and 'eth0' of 'web' "
            "is on the network 'lan'",
        ),
        (
            {"eth0.address": "10.0.0.2", "eth0.host_address": "10.0.0.1"},
            {"eth0": {"nictype": "macvlan", "parent": "lan"}},
            "'eth0' of 'web' is macvlan; unset one",
        ),
        (
            {"a.address": "10.0.0.2", "b.address": "10.0.0.2/24"},
            {"a": P2P, "b": P2P},
            "10.0.0.2 is the address of two NICs of 'web'",
        ),
        (
            {"a.address": "fd00::2", "a.gateway": "fd00::1", "b.address": "fd01::2",
             "b.gateway": "fd01::1"},
            {"a": BRIDGED, "b": P2P},
            "user.inx.net.a.gateway and user.inx.net.b.gateway exclude each other; keep one IPv6",
        ),
    ],
)  # fmt: skip
def test_what_the_devices_do_not_allow(
    keys: dict[str, str], have: dict[str, dict[str, str]], message: str
) -> None:
    assert message in clash(keys, have)


def test_two_nics_may_have_an_address_on_different_networks_and_a_gateway_for_each_family() -> None:
    given = parse_nics({
        "user.inx.net.a.address": "10.0.0.2/24", "user.inx.net.a.gateway": "10.0.0.1",
        "user.inx.net.b.address": "10.0.0.2/24,fd00::2", "user.inx.net.b.gateway": "fd00::1",
    })  # fmt: skip
    found = plan_nic_setups(given, {"a": {"network": "one"}, "b": {"network": "two"}}, "web")
    assert len(claims(found)) == 3


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("address", "host_address", "gateway"), VALUES)))  # fmt: skip
@example({"address": "10.0.0.2/" + "9" * 5000})
@example({"address": "10.0.0.2", "gateway": "٣" * 5000})
@example({"address": "fd00::2/٣"})
def test_any_text_is_accepted_or_refused_by_the_name_of_its_key(values: dict[str, str]) -> None:
    try:
        found = nics(**values)
        for device in P2P, BRIDGED:
            plan_nic_setups(found, {"eth0": device}, "web")
    except ConfigError as error:
        assert any(f"user.inx.net.eth0.{key}" in str(error) for key in values)
        assert str(error).isprintable() and len(str(error)) < 1000


@given(st.text(min_size=1), VALUES)
@example("x" * 5000, "10.0.0.2")
@example("eth0\n", "10.0.0.2")
def test_any_name_of_a_device_is_accepted_or_refused(device: str, value: str) -> None:
    keys = {f"user.inx.net.{device}.address": value, f"user.inx.net.{device}.gateway": value}
    try:
        plan_nic_setups(parse_spec(keys, "web", "/etc/nixos").nics, {}, "web")
    except ConfigError as error:
        assert "user.inx." in str(error) and str(error).isprintable()


def test_what_an_instance_excludes_is_its_own_and_the_hosts_addresses() -> None:
    """Several setups may share the host's address; no instance may take it for its own."""
    found = setup(P2P, address="10.0.0.2,fe80::2", host_address="10.0.0.1,fe80::1")
    assert claims([found]) == {"10.0.0.2 p2p/"}
    assert excluded_claims([found]) == {"10.0.0.2 p2p/", "10.0.0.1 p2p/"}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("10.0.0.1", "10.0.0.1", ""),
        ("10.0.0.1/24", "10.0.0.9", "leave out /24"),
        ("10.0.0.1/24", "10.0.1.1/24", ""),
        ("10.0.0.1/24", "fd00::1/64", ""),
    ],
)
def test_networks_of_host_addresses_do_not_overlap(a: str, b: str, message: str) -> None:
    keys = {"a.host_address": a, "b.host_address": b}
    if message:
        assert message in clash(keys, {"a": P2P, "b": P2P})
    else:
        given = parse_nics({f"user.inx.net.{key}": value for key, value in keys.items()})
        assert len(plan_nic_setups(given, {"a": P2P, "b": P2P}, "web")) == 2


def test_a_host_address_does_not_cover_the_address_of_another_nic() -> None:
    keys = {"a.host_address": "10.0.0.1/24", "b.address": "10.0.0.7"}
    assert "has 10.0.0.7 of user.inx.net.b.address" in clash(keys, {"a": P2P, "b": P2P})


def test_a_nic_that_is_not_attached_gets_nothing_and_does_not_count() -> None:
    """It has no interface inside; Incus calls no other values false (validate.IsBool)."""
    keys = {"a.address": "10.0.0.2", "a.host_address": "10.0.0.1", "b.address": "10.0.0.2"}
    given = parse_nics({f"user.inx.net.{key}": value for key, value in keys.items()})
    for no, yes in zip(("false", "0", "no", "OFF"), ("true", "1", "", "On"), strict=True):
        devices = {"a": P2P | {"attached": yes}, "b": P2P | {"attached": no}}
        (found,) = plan_nic_setups(given, devices, "web")
        assert found.nic.device == "a" and claims([found]) == {"10.0.0.2 p2p/"}
        assert "0.0.0.0/0 via 10.0.0.1" in in_words(found.inside), "it is the only one attached"
