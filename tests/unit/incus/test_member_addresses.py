"""What a member tells of its addresses is read by members with other versions of inx."""

import json

import pytest

from inx_sidecar.incus.member_addresses import Claim, decode, encode, is_shared

pytestmark = pytest.mark.life

ONE = Claim("10.0.0.5", "lan", "default", "web", "u1", shared=True)
TWO = Claim("fd00::5", "br0", "shop", "shop_db", "u2", shared=False)


def test_claims_are_told_in_one_order_and_read_again() -> None:
    assert encode([TWO, ONE]) == encode([ONE, TWO])
    assert decode(encode([TWO, ONE])) == (ONE, TWO)
    assert encode([]) == "" and decode("") == ()


def test_a_newer_member_may_tell_more() -> None:
    entries = json.loads(encode([ONE]))
    entries[0]["since"] = 7
    assert decode(json.dumps([*entries, {"range": "10.0.0.0/24"}, "x", 7])) == (ONE,)


@pytest.mark.parametrize("text", ["{", "7", '"x"', "{}", "null", '[{"address": 7}]', "[[]]"])
def test_what_is_not_understood_is_left_out(text: str) -> None:
    assert decode(text) == ()


def test_a_member_tells_a_bounded_number_of_addresses() -> None:
    many = [Claim(f"10.0.{n // 250}.{n % 250}", "lan", "p", "i", "u", True) for n in range(5000)]
    assert len(decode(encode(many))) == 1000


@pytest.mark.parametrize(
    ("network", "shared"),
    [
        ({"managed": True, "type": "ovn", "config": {}}, True),
        ({"managed": True, "type": "macvlan", "config": {"parent": "eth0"}}, True),
        ({"managed": True, "type": "bridge", "config": {"ipv4.nat": "true"}}, None),
        ({"managed": True, "type": "bridge", "config": {"bridge.external_interfaces": ""}}, None),
        (
            {"managed": True, "type": "bridge", "config": {"bridge.external_interfaces": "eth1"}},
            False,
        ),
        ({"managed": True, "type": "bridge", "config": {"tunnel.a.protocol": "vxlan"}}, False),
        ({"managed": False, "type": "bridge"}, False),
        ({}, False),
    ],
)
def test_which_networks_all_members_have(network: dict[str, object], shared: bool | None) -> None:
    assert is_shared(network) is shared
