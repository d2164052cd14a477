"""It is said that Docker drops packets of a bridge only if nothing can accept them."""

import pytest

from inx_sidecar.container.forwarding import dropped_bridges

pytestmark = pytest.mark.main

# As nft prints what Docker 27 sets.
TABLE = """
table ip filter {
	chain DOCKER {
	}

	chain DOCKER-USER {
		counter packets 0 bytes 0 return
	}

	chain DOCKER-FORWARD {
		iifname "docker0" counter packets 12 bytes 720 accept
	}

	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		counter packets 0 bytes 0 jump DOCKER-USER
		counter packets 0 bytes 0 jump DOCKER-FORWARD
	}
}
"""
USER = "chain DOCKER-USER {"
FORWARD = "policy drop;"


def dropped(*changes: tuple[str, str]) -> list[str]:
    text = TABLE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return dropped_bridges(text.splitlines(), ["incusbr0", "br1"])


def test_docker_drops_what_it_does_not_forward() -> None:
    assert dropped() == ["incusbr0", "br1"]


@pytest.mark.parametrize("chain", [USER, FORWARD])
def test_a_rule_for_a_bridge_accepts_its_packets(chain: str) -> None:
    rule = 'iifname "incusbr0" counter packets 3 bytes 9 accept'
    assert dropped((chain, f"{chain}\n{rule}")) == ["br1"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("policy drop", "policy accept"),
        ("DOCKER-USER", "MINE"),
        (USER, f"{USER}\naccept"),
        (USER, f"{USER}\ncounter packets 1 bytes 2 accept"),
        (USER, f"{USER}\ncounter packets 1 bytes 2 jump MINE"),
        (FORWARD, f"{FORWARD}\ncounter packets 0 bytes 0 jump ufw-before-forward"),
        (TABLE, ""),
    ],
)  # fmt: skip
def test_what_others_may_accept_is_not_known(old: str, new: str) -> None:
    assert dropped((old, new)) == []
