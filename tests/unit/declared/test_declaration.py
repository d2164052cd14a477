"""Requests for a declared instance keep what others have set."""

import pytest

from inx_sidecar.declared.declaration import DeclaredInstance
from inx_sidecar.declared.ownership import OWNERSHIP_KEY
from unit.declared.examples import WEB, present

pytestmark = pytest.mark.nixos


def test_what_others_set_stays_and_what_is_no_longer_declared_goes() -> None:
    before = DeclaredInstance(
        "web",
        config={"limits.cpu": "1", "boot.autostart": "false"},
        devices={"old": {"type": "disk"}},
    )
    found = present(before)
    others = {"user.inx.generation": "3", "volatile.uuid": "x", "user.inx.status": "ready"}
    found["config"] |= others
    found["devices"]["mine"] = {"type": "proxy"}
    changed = WEB.update_request(found)
    assert changed is not None
    assert changed["config"] == {
        **others,
        "boot.autostart": "true",
        OWNERSHIP_KEY: WEB.ownership.as_text(),
    }
    assert changed["devices"] == {"mine": {"type": "proxy"}, "data": {"type": "disk"}}
    assert WEB.update_request({**found, **changed}) is None, "once is enough"


def test_a_creation_says_all_that_is_declared() -> None:
    request = WEB.creation_request()
    assert request["config"] == {
        "boot.autostart": "true",
        OWNERSHIP_KEY: WEB.ownership.as_text(),
    }
    assert request["devices"] == {"data": {"type": "disk"}}
    assert (request["name"], request["type"], request["profiles"]) == ("web", "container", ["inx"])
