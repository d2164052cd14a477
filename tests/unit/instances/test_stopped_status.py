"""The status of an instance that does not run follows what happened to it."""

import pytest

from inx_sidecar.incus.status import INTERRUPTED
from inx_sidecar.instances.missing_hooks import BEGIN
from inx_sidecar.instances.stopped_status import stopped_text

pytestmark = pytest.mark.life

HIDDEN = f"{BEGIN}raw.lxc"


def text(
    present: str,
    problem: str = "",
    *,
    has_hooks: bool = True,
    by_itself: bool = False,
    starts: bool = False,
) -> str:
    return stopped_text(
        present, problem, "web", has_hooks=has_hooks, by_itself=by_itself, starts=starts
    )


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
    assert text("building (a note)") == INTERRUPTED
    assert text("ready") == "ready"


def test_a_reason_that_is_known_stays() -> None:
    assert text("failed: no flake.nix", by_itself=True) == "failed: no flake.nix"
