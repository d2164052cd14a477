"""Static addresses: text becomes addresses and routes, or is refused by the name of its key."""

import pytest

from inx_sidecar.base.errors import ConfigError
from inx_sidecar.config.keys import parse_spec
from inx_sidecar.config.nic_keys import Nic, parse_nics

pytestmark = pytest.mark.life


def nics(device: str = "eth0", **values: str) -> tuple[Nic, ...]:
    return parse_nics({f"user.inx.net.{device}.{what}": text for what, text in values.items()})


def refusal(device: str = "eth0", **values: str) -> str:
    with pytest.raises(ConfigError) as caught:
        nics(device, **values)
    return str(caught.value)


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
        message = refusal(**{key: text})
        assert message.startswith(f"user.inx.net.eth0.{key} is ") and len(message) < 500
        assert "allowed: addresses such as 192.0.2.2/24 or 2001:db8::2/64" in message


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
    message = refusal(address="10.0.0.2/24,fd00::2/64", gateway=text)
    assert message.startswith("user.inx.net.eth0.gateway is ") and len(message) < 500


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gateway": "10.0.0.1"}, "eth0.address has no IPv4 address; add one"),
        ({"address": "fd00::2", "gateway": "10.0.0.1"}, "has no IPv4 address"),
        ({"address": "10.0.0.2", "gateway": "10.0.0.1,fd00::1"}, "has no IPv6 address"),
        ({"address": "10.0.0.2", "gateway": "10.0.0.2"}, "10.0.0.2 in user.inx.net.eth0.address"),
        ({"address": "fd00::2", "host_address": "fd00:0::2/64"}, "fd00::2 in user.inx.net.eth0"),
    ],
)
def test_the_keys_of_a_nic_have_to_go_together(values: dict[str, str], message: str) -> None:
    assert message in refusal(**values)


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
    assert parse_spec(keys, "web", "/etc/nixos").nics == parse_nics(keys)


@pytest.mark.parametrize("key", ["net", "net.eth0", "net.address", "net..address", "net.eth0.mac"])
def test_a_key_that_is_none_of_these_is_unknown(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key 'user\.inx\.{key}'.*net\.NIC\.gateway"):
        parse_spec({f"user.inx.{key}": "10.0.0.2"}, "web", "/etc/nixos")


def test_an_unset_key_is_as_good_as_none() -> None:
    keys = {f"user.inx.net.eth0.{what}": "" for what in ("address", "host_address", "gateway")}
    assert parse_spec(keys, "web", "/etc/nixos").nics == ()


def test_other_addresses_ask_for_no_rebuild() -> None:
    def mark(**keys: str) -> str:
        return parse_spec({f"user.inx.{k}": v for k, v in keys.items()}, "web", "/x").fingerprint()

    assert mark(**{"net.eth0.address": "10.0.0.2"}) == mark()


@pytest.mark.parametrize("key", ["address", "gateway"])
def test_what_is_wrong_is_said_also_of_a_device_with_a_long_name(key: str) -> None:
    with pytest.raises(ConfigError, match=r"; (allowed:|known are) "):
        parse_spec({f"user.inx.net.{'x' * 5000}.{key}": "no"}, "web", "/etc/nixos")
