"""Which member looks after the instances of members without inx, and what it writes."""

from typing import Any

import pytest

from inx_sidecar.instances import placement
from inx_sidecar.instances.placement import looked_after, text_for

pytestmark = pytest.mark.life

RAW = "lxc.hook.pre-start = /etc/inx/hooks/pre-start"


def member(name: str, version: str = "1", status: str = "Online") -> dict[str, Any]:
    config = {"user.inx.version": version} if version else {}
    return {"server_name": name, "config": config, "status": status}


def test_the_first_member_with_inx_that_answers_looks_after_those_without() -> None:
    listed = [member("c"), member("b"), member("a", "1", "Offline"), member("d", "")]
    assert looked_after("b", listed) == {"d"}
    for name in "a", "c", "d":
        assert looked_after(name, listed) == frozenset()


def test_nobody_looks_after_a_member_that_does_not_answer() -> None:
    assert looked_after("a", [member("a"), member("b", "", "Offline")]) == frozenset()
    assert looked_after("", []) == frozenset()


def instance(**changes: object) -> dict[str, Any]:
    config = {"raw.lxc": RAW, "user.inx.flake": "/x"}
    return {
        "name": "web", "project": "default", "location": "d", "status": "Stopped",
        "type": "container", "profiles": ["inx"], "config": {}, "expanded_config": config,
        **changes,
    }  # fmt: skip


def test_a_stopped_instance_that_uses_inx_gets_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "shipped_raw_lxc", lambda: RAW)
    text = text_for(instance(), "a")
    assert text == (
        "failed: no inx on the member 'd', so it cannot start there; install inx there, or run "
        "'incus move web --target a'"
    )
    assert "--target a --project shop'" in text_for(instance(project="shop"), "a")
    # Another member has written it, and proposes itself.
    assert text_for(instance(config={"user.inx.status": text}), "b") == ""
    elsewhere = text.replace("'d'", "'e'")
    assert text_for(instance(config={"user.inx.status": elsewhere}), "b") != ""


@pytest.mark.parametrize(
    "change",
    [
        {"status": "Running"},
        {"status": "Error", "expanded_config": None},
        {"location": "none"},
        {"expanded_config": {"raw.lxc": RAW}, "profiles": []},
        {"expanded_config": {"user.inx.flake": "/x"}, "profiles": []},
        {"type": "virtual-machine"},
    ],
)
def test_other_instances_get_none(
    change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "shipped_raw_lxc", lambda: RAW)
    assert text_for(instance(**change), "a") == ""
