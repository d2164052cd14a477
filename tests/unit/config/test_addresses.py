"""Static addresses: text becomes addresses and routes, or is refused by the name of its key."""

from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inx_sidecar.base.errors import ConfigError
from inx_sidecar.config.addresses import End, Nic, Wire, claims, parse_nics, wires
from inx_sidecar.config.keys import parse

pytestmark = pytest.mark.life

P2P = {"nictype": "p2p", "name": "eth0", "host_name": "veth1"}
BRIDGED = {"network": "lan", "name": "eth0"}


def nics(device: str = "eth0", **values: str) -> tuple[Nic, ...]:
    return parse_nics({f"user.inx.net.{device}.{what}": text for what, text in values.items()})


def refusal(device: str = "eth0", **values: str) -> str:
    with pytest.raises(ConfigError) as caught:
        nics(device, **values)
    return str(caught.value)


def wire(of: Mapping[str, str], *others: Mapping[str, str], **values: str) -> Wire:
    """How eth0 is set up, if it is `of` that kind and the instance has `others` beside it."""
    have = {f"eth{number}": device for number, device in enumerate((of, *others))}
    (found,) = wires(nics(**values), have, "web")
    return found


def clash(keys: Mapping[str, str], have: Mapping[str, Mapping[str, str]]) -> str:
    found = parse_nics({f"user.inx.net.{key}": value for key, value in keys.items()})
    with pytest.raises(ConfigError) as caught:
        wires(found, have, "web")
    return str(caught.value)


def told(end: End | None) -> str:
    """As one would write it by hand."""
    assert end is not None
    ways = (f"{r.target} via {r.gateway}" if r.gateway else f"{r.target}" for r in end.routes)
    return f"{' '.join(map(str, end.addresses))}; {', '.join(ways)}"


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("10.0.0.2", "10.0.0.2/32"),
        ("10.0.0.2/24", "10.0.0.2/24"),
        ("10.0.0.2/32", "10.0.0.2/32"),
        ("10.0.0.0/31", "10.0.0.0/31"),
        ("169.254.7.1/16", "169.254.7.1/16"),
        ("fd00::2", "fd00::2/128"),
        ("FD00:0::0002/64", "fd00::2/64"),
        ("fd00::/127", "fd00::/127"),
        ("fe80::2/64", "fe80::2/64"),
        ("10.0.0.2,fd00::2", "10.0.0.2/32 fd00::2/128"),
        (" 10.0.0.2/24 , 10.0.0.3/24,fd00::2/64 ", "10.0.0.2/24 10.0.0.3/24 fd00::2/64"),
        ("10.0.0.2/24,10.0.1.2/24", "10.0.0.2/24 10.0.1.2/24"),
        (",".join(f"10.0.0.{n}" for n in range(1, 65)), None),
    ],
)
def test_addresses_that_are_allowed(text: str, addresses: str | None) -> None:
    for key in "address", "host_address":
        (nic,) = nics(**{key: text})
        found = nic.addresses if key == "address" else nic.host_addresses
        assert addresses is None or " ".join(map(str, found)) == addresses


NOT_ADDRESSES = [
    "x", ",", "10.0.0.2,", ",10.0.0.2", "10.0.0.2,,10.0.0.3", "10.0.0.2 10.0.0.3", "10.0.0.2;id",
    "10.0.0.2\n10.0.0.3", "10.0.0.2\0", "$(id)", "10.0.0.2 dev eth0", "-4", "10.0.0", "10.0.0.256",
    "010.0.0.2", "0xa000002", "167772162", "٣.0.0.2", "10.0.0.٣", "fd00::٢", "10.0.0.2.",
    "web", "localhost", "example.org", "fd00:::2", "fd00::2::3", "[fd00::2]", "fd00::g",
    "1" * 5000, "9" * 100_000, ":" * 100_000, "'10.0.0.2'", "10.0.0.2#", "any", "default",
]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        *NOT_ADDRESSES,
        "10.0.0.2/", "10.0.0.2/33", "10.0.0.2/-1", "10.0.0.2/+24", "10.0.0.2/24/24", "10.0.0.2/ 24",
        "10.0.0.2/255.255.255.0", "10.0.0.2/0.0.0.255", "10.0.0.2/2٤", "10.0.0.2/٢٤",
        "10.0.0.2/" + "9" * 5000, "10.0.0.2/x", "/24", "/", "fd00::2/129", "fd00::2/ffff::",
        "fe80::2%eth0", "fe80::2%eth0/64", "fe80::2/64%eth0", "fd00::2%", "10.0.0.2%eth0",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    for key in "address", "host_address":
        said = refusal(**{key: text})
        assert said.startswith(f"user.inx.net.eth0.{key} is ") and len(said) < 500
        assert "allowed: addresses such as 192.0.2.2/24 or 2001:db8::2/64" in said


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0", "0.0.0.0/0", "::", "::/0", "127.0.0.1", "127.9.9.9/8", "::1", "::1/128",
        "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "10.0.0.0/24", "10.0.0.255/24",
        "fd00::/64", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:0", "10.0.0.2/0", "fd00::2/0",
    ],
)  # fmt: skip
def test_an_address_that_no_host_has_is_refused(text: str) -> None:
    for key in "address", "host_address":
        assert f"user.inx.net.eth0.{key} is {text!r}" in refusal(**{key: text})


def test_an_address_counts_once_however_it_is_written() -> None:
    assert "has 10.0.0.2 twice" in refusal(address="10.0.0.2,10.0.0.2")
    assert "has 10.0.0.2 twice" in refusal(address="10.0.0.2/24,10.0.0.2/16")
    assert "user.inx.net.eth0.address has fd00::2 twice" in refusal(address="fd00::2,FD00:0::2")
    assert "user.inx.net.eth0.host_address" in refusal(host_address="fd00::2,fd00::2")


def test_there_are_at_most_so_many() -> None:
    many = ",".join(f"10.0.0.{n}" for n in range(1, 66))
    assert "user.inx.net.eth0.address has 65 addresses; at most 64" in refusal(address=many)
    assert "user.inx.net.eth0.gateway has 1001" in refusal(address="10.0.0.2", gateway="," * 1000)


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1,fd00::1", "fe80::1", "fd00::1 , 10.0.0.1"])
def test_gateways_that_are_allowed(text: str) -> None:
    (nic,) = nics(address="10.0.0.2/24,fd00::2/64", gateway=text)
    assert {str(gateway) for gateway in nic.gateways} == set(text.replace(" ", "").split(","))


@pytest.mark.parametrize(
    "text",
    [
        *NOT_ADDRESSES, "10.0.0.1/24", "fd00::1/64", "fe80::1%eth0", "fd00::1%",
        "10.0.0.1,10.0.0.3", "fd00::1,10.0.0.1,fd00::3", "10.0.0.1,10.0.0.1", "0.0.0.0", "::",
        "127.0.0.1", "::1",
        "224.0.0.1", "255.255.255.255", "ff02::2", "::ffff:10.0.0.1", "::ffff:127.0.0.1",
    ],
)  # fmt: skip
def test_gateways_that_are_refused(text: str) -> None:
    said = refusal(address="10.0.0.2/24,fd00::2/64", gateway=text)
    assert said.startswith("user.inx.net.eth0.gateway is ") and len(said) < 500


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gateway": "10.0.0.1"}, "eth0.address has no IPv4 address; add one"),
        ({"address": "fd00::2", "gateway": "10.0.0.1"}, "has no IPv4 address"),
        ({"address": "10.0.0.2", "gateway": "10.0.0.1,fd00::1"}, "has no IPv6 address"),
        ({"address": "10.0.0.2", "gateway": "10.0.0.2"}, "10.0.0.2 in user.inx.net.eth0.address"),
        ({"address": "fd00::2", "host_address": "fd00:0::2/64"}, "fd00::2 in user.inx.net.eth0"),
    ],
)
def test_the_keys_of_a_nic_have_to_go_together(values: dict[str, str], said: str) -> None:
    assert said in refusal(**values)


def test_each_device_has_keys_of_its_own_whatever_its_name() -> None:
    keys = {
        "user.inx.net.b.address": "10.0.0.2",
        "user.inx.net.a.b-c_d.address": "10.0.0.3",
        "user.inx.net.address.address": "10.0.0.4",
        "user.inx.net.a.b-c_d.gateway": "10.0.0.1",
        "user.inx.flake": "/etc/nixos",
    }
    found = {nic.device: len(nic.gateways) for nic in parse_nics(keys)}
    assert found == {"b": 0, "a.b-c_d": 1, "address": 0}
    assert parse(keys, "web", "/etc/nixos").nics == parse_nics(keys)


@pytest.mark.parametrize("key", ["net", "net.eth0", "net.address", "net..address", "net.eth0.mac"])
def test_a_key_that_is_none_of_these_is_unknown(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key 'user\.inx\.{key}'.*net\.NIC\.gateway"):
        parse({f"user.inx.{key}": "10.0.0.2"}, "web", "/etc/nixos")


def test_an_unset_key_is_as_good_as_none() -> None:
    keys = {f"user.inx.net.eth0.{what}": "" for what in ("address", "host_address", "gateway")}
    assert parse(keys, "web", "/etc/nixos").nics == ()


def test_other_addresses_ask_for_no_rebuild() -> None:
    def mark(**keys: str) -> str:
        return parse({f"user.inx.{k}": v for k, v in keys.items()}, "web", "/x").fingerprint()

    assert mark(**{"net.eth0.address": "10.0.0.2"}) == mark()


# --- What follows from them -------------------------------------------------------------------


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
def test_a_wire_to_the_host(values: dict[str, str], inside: str, host: str) -> None:
    found = wire(P2P, **values)
    assert (told(found.inside), told(found.host)) == (inside, host)
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
    found = wire(BRIDGED, **values)
    assert told(found.inside) == inside and found.host is None


def test_the_host_is_the_way_out_of_an_only_nic_alone() -> None:
    values = {"address": "10.0.0.2", "host_address": "10.0.0.1"}
    assert told(wire(P2P, BRIDGED, **values).inside) == "10.0.0.2/32; 10.0.0.1/32"
    found = wire(P2P, BRIDGED, **values, gateway="10.0.0.1")
    assert told(found.inside) == "10.0.0.2/32; 10.0.0.1/32, 0.0.0.0/0 via 10.0.0.1"


def test_every_route_can_be_added_once_those_before_it_are_there() -> None:
    """A gateway is reachable by an address or by a route that comes first."""
    found = wire(
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
    found = wire(device, address="10.0.0.2/24,FD00::2")
    assert claims([found]) == {f"10.0.0.2 {network}", f"fd00::2 {network}"}
    assert claims([]) == frozenset()


@pytest.mark.parametrize(
    ("keys", "have", "said"),
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
    keys: dict[str, str], have: dict[str, dict[str, str]], said: str
) -> None:
    assert said in clash(keys, have)


def test_two_nics_may_have_an_address_on_different_networks_and_a_gateway_for_each_family() -> None:
    given = parse_nics({
        "user.inx.net.a.address": "10.0.0.2/24", "user.inx.net.a.gateway": "10.0.0.1",
        "user.inx.net.b.address": "10.0.0.2/24,fd00::2", "user.inx.net.b.gateway": "fd00::1",
    })  # fmt: skip
    found = wires(given, {"a": {"network": "one"}, "b": {"network": "two"}}, "web")
    assert len(claims(found)) == 3


# --- Whatever the text ------------------------------------------------------------------------

# Text that comes close to an address, and any other.
_PARTS = st.sampled_from([
    "10.0.0.2", "255.255.255.255", "0", "::", "fe80::1", "fd00:", "::ffff:10.0.0.1", "/", "/24",
    "/64", "/0", "/32", "/128", "/129", "%eth0", "%", ",", " ", "\n", "\0", ".", ":", "-", "٣",
    "9" * 5000, "\ud800",
])  # fmt: skip
VALUES = st.one_of(st.text(), st.lists(_PARTS, max_size=8).map("".join))


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("address", "host_address", "gateway"), VALUES)))  # fmt: skip
@example({"address": "10.0.0.2/" + "9" * 5000})
@example({"address": "10.0.0.2", "gateway": "٣" * 5000})
@example({"address": "fd00::2/٣"})
def test_any_text_is_accepted_or_refused_by_the_name_of_its_key(values: dict[str, str]) -> None:
    try:
        found = nics(**values)
        for device in P2P, BRIDGED:
            wires(found, {"eth0": device}, "web")
    except ConfigError as error:
        assert any(f"user.inx.net.eth0.{key}" in str(error) for key in values)
        assert str(error).isprintable() and len(str(error)) < 1000


@given(st.text(min_size=1), VALUES)
@example("x" * 5000, "10.0.0.2")
@example("eth0\n", "10.0.0.2")
def test_any_name_of_a_device_is_accepted_or_refused(device: str, value: str) -> None:
    keys = {f"user.inx.net.{device}.address": value, f"user.inx.net.{device}.gateway": value}
    try:
        wires(parse(keys, "web", "/etc/nixos").nics, {}, "web")
    except ConfigError as error:
        assert "user.inx." in str(error) and str(error).isprintable()


@pytest.mark.parametrize("key", ["address", "gateway"])
def test_what_is_wrong_is_said_also_of_a_device_with_a_long_name(key: str) -> None:
    with pytest.raises(ConfigError, match=r"; (allowed:|known are) "):
        parse({f"user.inx.net.{'x' * 5000}.{key}": "no"}, "web", "/etc/nixos")
