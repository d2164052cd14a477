"""A static address of another member: who has it, and what the status says."""

import pytest

from inx_sidecar.incus.member_addresses import Claim
from inx_sidecar.instances.cluster_watch import by_address, conflict_text, conflicts

pytestmark = pytest.mark.life

OWN = Claim("10.0.0.5", "lan", "default", "web", "u1", shared=True)


def other(**changes: object) -> Claim:
    fields = {"address": "10.0.0.5", "network": "lan", "project": "default", "instance": "db"}
    return Claim(**{**fields, "uuid": "u2", "shared": True, **changes})  # type: ignore[arg-type]


def test_the_same_address_on_the_same_network_is_a_conflict() -> None:
    assert conflicts(OWN, by_address({"b": (other(),), "c": ()})) == [("b", other())]
    both = by_address({"c": (other(uuid="u3"),), "b": (other(), other(address="10.0.0.6"))})
    assert [member for member, _ in conflicts(OWN, both)] == ["b", "c"]
    for change in {"address": "10.0.0.6"}, {"network": "br0"}:
        assert conflicts(OWN, by_address({"b": (other(**change),)})) == []


def test_a_member_that_is_away_may_still_tell_of_an_instance_that_was_recovered_here() -> None:
    assert conflicts(OWN, by_address({"b": (other(uuid="u1"),)})) == []


def test_the_status_says_what_is_known() -> None:
    assert conflict_text(OWN, "b", other()) == (
        "10.0.0.5 is a static address of 'db' on the member 'b', too; change one of the two"
    )
    for change in {"shared": False}, {"project": "shop"}:
        text = conflict_text(OWN, "b", other(**change))
        assert text.endswith("change one of the two if lan is one network on both members")
