"""An instance that should have the hooks and lacks them gets one sentence with the way out."""

import re
from typing import Any

import pytest
import yaml
from support.disposable import REPO

from inx_sidecar.instances.missing_hooks import (
    BEGIN,
    has_hooks,
    may_use_inx,
    missing_lines,
    problem_of,
)

pytestmark = pytest.mark.main

WANTED = "lxc.init.cmd = /dev/.inx/init\nlxc.hook.stop = /etc/inx/hooks/stop\n"


def test_an_equal_text_lacks_no_line() -> None:
    assert missing_lines(WANTED, WANTED) == []


def test_spaces_order_and_more_lines_do_not_matter() -> None:
    present = "lxc.cap.drop =\n\nlxc.hook.stop=/etc/inx/hooks/stop\n lxc.init.cmd  =/dev/.inx/init"
    assert missing_lines(WANTED, present) == []


def test_every_missing_line_is_reported() -> None:
    assert missing_lines(WANTED, "lxc.init.cmd = /sbin/init\n") == WANTED.splitlines()
    [stop] = missing_lines(WANTED, "lxc.init.cmd = /dev/.inx/init")
    assert stop == "lxc.hook.stop = /etc/inx/hooks/stop"


def test_an_empty_raw_lxc_lacks_all_lines() -> None:
    profile = yaml.safe_load((REPO / "profiles/inx.yaml").read_text())
    raw = profile["config"]["raw.lxc"]
    assert missing_lines(raw, raw) == []
    assert missing_lines(raw, "") == raw.splitlines()


def test_the_former_name_of_a_hook_is_accepted() -> None:
    wanted = "lxc.hook.start-host = /etc/inx/hooks/mount"
    assert missing_lines(wanted, "lxc.hook.start-host = /etc/inx/hooks/start-host") == []
    assert missing_lines(wanted, "lxc.hook.start-host = /etc/inx/hooks/stop") != []


def test_a_line_in_a_comment_is_missing() -> None:
    assert missing_lines(WANTED, WANTED.replace("lxc.hook", "# lxc.hook")) != []


FLAKE = {"user.inx.flake": "/etc/nixos"}


def profile(name: str, raw: str | None = None, project: str = "default") -> dict[str, Any]:
    return {"name": name, "project": project, "config": {} if raw is None else {"raw.lxc": raw}}


ALL = [profile("default"), profile("inx", WANTED), profile("more", "lxc.cap.drop = x")]


def instance(
    *profiles: str, own: dict[str, str] | None = None, project: str = "default", **more: Any
) -> dict[str, Any]:
    """The instance `web` as Incus would describe it."""
    known = {place["name"]: place["config"] for place in ALL}
    expanded: dict[str, str] = {}
    for config in (*(known[name] for name in profiles), own or {}):
        expanded |= config
    return {
        "name": "web", "project": project, "type": "container", "profiles": list(profiles),
        "config": own or {}, "expanded_config": expanded,
    } | more  # fmt: skip


def problem(api: dict[str, Any]) -> str:
    text = problem_of(api, ALL, WANTED)
    assert not text or text.startswith(BEGIN)
    return text.removeprefix(BEGIN)


@pytest.mark.parametrize(
    "api",
    [
        instance("default", "inx", own=FLAKE),
        instance("more", "inx"),
        instance("inx", own={"raw.lxc": f"lxc.cap.drop = x\n{WANTED}"}),
        instance("default", own={"raw.lxc": WANTED}),
        instance("default"),
        instance("more", own={"user.inx.status": "failed: it has another system"}),
    ],
)
def test_hooks_that_are_there_or_not_wanted_are_no_problem(api: dict[str, Any]) -> None:
    assert problem(api) == ""


@pytest.mark.parametrize("profiles", [("default",), ("more",), ()])
def test_a_forgotten_profile(profiles: tuple[str, ...]) -> None:
    text = problem(instance(*profiles, own=FLAKE))
    assert text == (
        "no profile of 'web' has them; run 'incus profile add web inx', or unset its "
        "user.inx.* keys"
    )
    there = problem(instance(*profiles, own=FLAKE, project="shop"))
    assert "'incus profile add web inx --project shop'" in there


def test_a_project_without_the_profile() -> None:
    api = instance("default", own=FLAKE, project="shop")
    text = problem_of(api, [*ALL, profile("default", project="shop")], WANTED)
    make, add = re.findall("'(incus [^']+)'", text)
    assert make == "incus profile create inx --project shop < /etc/inx/profile.yaml"
    assert add == "incus profile add web inx --project shop"
    assert "incus profile create inx <" in problem_of(instance(own=FLAKE), ALL[:1], WANTED)


def test_the_profile_of_an_instance_that_ran_was_removed() -> None:
    assert problem(instance("default", own={"user.inx.sealed": "x"})).startswith("no profile ")


def test_a_raw_lxc_of_the_instance() -> None:
    assert problem(instance("inx", "more", own={"raw.lxc": "lxc.cap.drop = x"})) == (
        "raw.lxc of 'web' replaces that of its profiles; add to it the lines that 'incus profile "
        "get inx raw.lxc' prints"
    )
    most = WANTED.splitlines()[0]
    assert problem(instance("inx", own={"raw.lxc": most})).endswith(
        "add to it 'lxc.hook.stop = /etc/inx/hooks/stop'"
    )


def test_a_raw_lxc_of_a_later_profile() -> None:
    assert problem(instance("inx", "more")) == (
        "raw.lxc of the profile 'more' replaces that of the profile 'inx'; add to it the lines "
        "that 'incus profile get inx raw.lxc' prints"
    )


def test_a_profile_of_inx_that_was_changed() -> None:
    api = instance("inx") | {"expanded_config": {"raw.lxc": WANTED.splitlines()[0]}}
    assert problem(api).endswith(
        "raw.lxc of the profile 'inx' lacks 'lxc.hook.stop = /etc/inx/hooks/stop'; add to it what "
        "raw.lxc in /etc/inx/profile.yaml has"
    )


def test_a_project_has_profiles_of_its_own_or_those_of_default() -> None:
    own = profile("inx", "lxc.cap.drop = x", project="shop")
    api = instance("inx", project="shop") | {"expanded_config": own["config"]}
    assert "raw.lxc of the profile 'inx' lacks" in problem_of(api, [*ALL, own], WANTED)
    api = instance("inx", own={"raw.lxc": ""}, project="shop")
    assert "replaces that of its profiles" in problem_of(api, ALL, WANTED)


def test_which_instances_are_looked_at() -> None:
    assert may_use_inx(instance("inx")) and may_use_inx(instance(own=FLAKE))
    assert not may_use_inx(instance("default"))
    assert not may_use_inx(instance(own=FLAKE, type="virtual-machine"))
    assert has_hooks(profile("inx")) and has_hooks(profile("mine", WANTED))
    assert not has_hooks(profile("mine", "lxc.cap.drop = x"))
