"""Which step an update of a running instance needs."""

from dataclasses import replace
from typing import Final

import pytest

from inx_sidecar.incus.instance import LxcFacts
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances.plan import Boot, Build, Plan
from inx_sidecar.instances.update_decision import UpdateStep, update_needed
from inx_sidecar.nix.generation_changes import Select

pytestmark = pytest.mark.life

NOW, BEFORE, OTHER = "digest now", "digest before", "another digest"
SYSTEM: Final = f"/nix/store/{'0' * 32}-system"
BUILD: Final = Build("fingerprint")
UNCHANGED: Final = Boot(SYSTEM)
CHANGED: Final = Boot(SYSTEM, Select(2, pinned=False))
# The spec BEFORE was deployed, and no other spec was tried after it.
DONE: Final = Running(LxcFacts("web", "/rootfs", "/lxc.conf"), 1, 1, True, spec_digest=BEFORE)


def step(
    plan: Plan, running: Running = DONE, *, activate: str = "switch", building: str | None = None
) -> UpdateStep:
    return update_needed(NOW, activate, plan, running, building)


@pytest.mark.parametrize("plan", [BUILD, CHANGED])
def test_a_new_spec_is_deployed(plan: Plan) -> None:
    assert step(plan) is UpdateStep.DEPLOY


@pytest.mark.parametrize("plan", [BUILD, CHANGED, UNCHANGED])
def test_a_spec_that_was_deployed_or_has_failed_needs_no_step(plan: Plan) -> None:
    assert step(plan, replace(DONE, spec_digest=NOW)) is UpdateStep.NOTHING


def test_a_spec_whose_system_is_current_is_only_recorded() -> None:
    assert step(UNCHANGED) is UpdateStep.RECORD


@pytest.mark.parametrize("plan", [BUILD, CHANGED, UNCHANGED])
def test_nothing_is_activated_with_the_mode_none(plan: Plan) -> None:
    assert step(plan, activate="none") is UpdateStep.RECORD


@pytest.mark.parametrize("mode", ["build", "dry-activate"])
def test_a_try_activates_nothing_whatever_was_half_done(mode: str) -> None:
    half_done = replace(DONE, attempted_digest=OTHER)
    for running in (DONE, half_done):
        assert step(BUILD, running, activate=mode) is UpdateStep.DEPLOY
        assert step(CHANGED, running, activate=mode) is UpdateStep.DEPLOY
        assert step(UNCHANGED, running, activate=mode) is UpdateStep.RECORD
        for plan in (BUILD, CHANGED, UNCHANGED):
            done = replace(running, spec_digest=NOW)
            assert step(plan, done, activate=mode) is UpdateStep.NOTHING


@pytest.mark.parametrize("mode", ["switch", "boot", "test"])
def test_the_other_modes_deploy(mode: str) -> None:
    assert step(BUILD, activate=mode) is UpdateStep.DEPLOY


@pytest.mark.parametrize("plan", [BUILD, CHANGED, UNCHANGED])
def test_after_an_interrupted_activation_of_another_spec_this_spec_is_deployed(
    plan: Plan,
) -> None:
    half_done = replace(DONE, attempted_digest=OTHER)
    assert step(plan, half_done) is UpdateStep.DEPLOY
    assert step(plan, replace(half_done, spec_digest=NOW)) is UpdateStep.DEPLOY


def test_the_activation_of_the_same_spec_is_not_tried_again() -> None:
    failed = replace(DONE, spec_digest=NOW, attempted_digest=NOW)
    assert step(BUILD, failed) is UpdateStep.NOTHING


def test_a_build_for_this_spec_goes_on() -> None:
    assert step(BUILD, building=NOW) is UpdateStep.CONTINUE
    assert step(BUILD, replace(DONE, attempted_digest=OTHER), building=NOW) is UpdateStep.CONTINUE


def test_a_build_for_another_spec_is_replaced() -> None:
    assert step(BUILD, building=OTHER) is UpdateStep.DEPLOY
    # The operator has set the spec back.
    assert step(UNCHANGED, replace(DONE, spec_digest=NOW), building=OTHER) is UpdateStep.NOTHING
