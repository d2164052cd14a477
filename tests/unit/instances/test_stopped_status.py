"""The status of an instance that does not run follows what happened to it."""

import re

import pytest

from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.incus.status_keys import INTERRUPTED
from inx_sidecar.instances.missing_hooks import BEGIN
from inx_sidecar.instances.stopped_status import configuration_of, refusal_of, stopped_text

pytestmark = pytest.mark.life

HIDDEN = f"{BEGIN}raw.lxc"


def text(
    present: str,
    problem: str = "",
    *,
    has_hooks: bool = True,
    by_itself: bool = False,
    starts: bool = False,
    changed: bool = False,
) -> str:
    return stopped_text(
        present, problem, "web",
        has_hooks=has_hooks, by_itself=by_itself, starts=starts, changed=changed,
    )  # fmt: skip


def test_a_member_with_inx_removes_what_another_member_wrote_as_there_was_none() -> None:
    assert text("failed: no inx on the member 'c', so it cannot start there") == ""


@pytest.mark.parametrize("present", ["", "ready", "building", "failed: x", f"failed: {HIDDEN}"])
def test_hooks_that_are_missing_are_told(present: str) -> None:
    assert text(present, HIDDEN, has_hooks=False, by_itself=True) == f"failed: {HIDDEN}"


def test_the_text_goes_when_the_hooks_are_back() -> None:
    assert text(f"failed: {HIDDEN}") == ""


def test_an_instance_without_inx_has_no_status() -> None:
    assert text("failed: it has another system", has_hooks=False, by_itself=True) == ""


@pytest.mark.parametrize("present", ["", "ready", "ready (x)", "building"])
def test_an_end_of_pid_1_is_told_with_the_place_of_the_reason(present: str) -> None:
    told = text(present, by_itself=True)
    assert told.startswith("stopped: ") and "'incus console web --show-log'" in told
    assert text(told, by_itself=True) == told
    assert text(present, by_itself=True, starts=True) == present
    assert text(present, starts=True) == present


def test_no_build_runs_for_an_instance_that_is_stopped() -> None:
    """As in a copy, or after a new name that came before the status was written."""
    assert text("building") == INTERRUPTED and text(INTERRUPTED) == INTERRUPTED
    assert text("building (a note)") == text("building 1/2, x") == INTERRUPTED
    assert text("queued: builds of a run") == INTERRUPTED and text("starting") == ""
    assert text("ready") == "ready"


def test_a_reason_goes_when_the_configuration_is_another() -> None:
    told = text("failed: no flake.nix", changed=True)
    assert told.startswith("stopped: its configuration was changed")
    assert text(told, changed=True) == told, "said once"
    assert text("failed: x", "y", changed=True) == "failed: y"
    for present in "", "ready", "stopped: PID 1 ended by itself":
        assert text(present, changed=True) == present
    assert text("failed: x", has_hooks=False, changed=True) == ""


@pytest.mark.parametrize(
    ("config", "begin"),
    [
        ({"user.inx.flake": "/etc/nixos#web"}, "$"),
        ({"user.inx.flke": "/etc/nixos#web"}, "unknown key 'user.inx.flke'"),
        ({"user.inx.keep": "0"}, "user.inx.keep is '0'; allowed"),
    ],
)
def test_a_key_that_is_wrong_is_told_before_the_start(config: dict[str, str], begin: str) -> None:
    instance = Instance("web", "default", "", LxcFacts("web", "", ""), False, config)
    assert re.match(begin, refusal_of(instance))


def test_what_incus_and_inx_write_is_no_change() -> None:
    def configuration(**config: str) -> object:
        keys = {key.replace("_", "."): value for key, value in config.items()}
        return configuration_of(Instance("w", "default", "", LxcFacts("w", "", ""), False, keys))

    before = configuration(user_inx_flake="/a", user_inx_status="failed: x")
    assert before == configuration(user_inx_flake="/a", volatile_x="y", user_inx_sealed="z")
    assert before != configuration(user_inx_flake="/b")


def test_a_reason_that_is_known_stays() -> None:
    assert text("failed: no flake.nix", by_itself=True) == "failed: no flake.nix"
