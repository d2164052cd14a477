"""What a store of its own was shown has roots, as long as the root file system records it."""

import pytest

from inx_sidecar.nix.generations import Generations
from inx_sidecar.roots.system_roots import shown_roots, unwanted_roots

pytestmark = pytest.mark.isolated

FIRST, SECOND = (f"/nix/store/{letter * 32}-system" for letter in "ab")


def test_each_path_has_a_root_of_its_own() -> None:
    assert shown_roots([FIRST, SECOND]) == {"shown/" + "a" * 32: FIRST, "shown/" + "b" * 32: SECOND}


def test_the_newest_have_roots() -> None:
    many = [f"/nix/store/{number:032}-system" for number in range(1200)]
    assert list(shown_roots(many).values()) == many[200:]


def test_a_root_is_dropped_when_the_record_has_the_path_no_more() -> None:
    rooted = shown_roots([FIRST, SECOND]) | {"links/x": FIRST}
    assert unwanted_roots(Generations(), (), rooted, [FIRST, SECOND]) == []
    assert unwanted_roots(Generations(), (), rooted, [SECOND]) == ["shown/" + "a" * 32]
    assert unwanted_roots(Generations(), (), rooted) == list(shown_roots([FIRST, SECOND]))
