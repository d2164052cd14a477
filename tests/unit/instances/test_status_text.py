"""The text of `user.inx.status`, and the system and the generation that the status names."""

from dataclasses import replace
from typing import Final

import pytest

from inx_sidecar.incus.instance import LxcFacts
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status_keys import Status
from inx_sidecar.instances.plan import Boot
from inx_sidecar.instances.status_text import (
    UNMAPPED,
    building_text,
    failed_update_text,
    fallback_text,
    former_text,
    generation_of,
    incomplete_text,
    late_text,
    ready_text,
    running_status,
    shown_text,
)
from inx_sidecar.nix.generation_changes import Append, Select
from inx_sidecar.nix.generations import Generations

pytestmark = pytest.mark.life

ONE, TWO, TRIAL = (f"/nix/store/{digit * 32}-system" for digit in "012")
PRESENT: Final = Generations({1: ONE, 2: TWO}, current=2)
# The instance booted generation 2, the current generation at that time.
RUNNING: Final = Running(
    LxcFacts("web", "/rootfs", "/lxc.conf"), 1, 1, True, booted=TWO, profile_system=TWO
)


def test_many_former_systems_are_told() -> None:
    assert former_text(0) == former_text(100) == ""
    assert former_text(101) == (
        "keeps 101 former systems; run 'nix-collect-garbage -d' inside and restart"
    )


def test_the_status_reports_a_store_without_mapped_owners() -> None:
    assert ready_text(mapped=True) == "ready"
    assert ready_text(mapped=False) == f"ready ({UNMAPPED})"


def test_the_status_names_the_generation_that_runs() -> None:
    assert running_status("ready", PRESENT, RUNNING) == Status("ready", TWO, 2)


def test_a_system_on_trial_has_no_generation() -> None:
    trial = replace(RUNNING, active=TRIAL)
    assert running_status("ready", PRESENT, trial) == Status("ready", TRIAL, None)


def test_a_generation_that_was_selected_inside_is_named() -> None:
    selected = replace(PRESENT, current=1)
    assert running_status("ready", selected, RUNNING) == Status("ready", ONE, 1)
    assert running_status("ready", selected, replace(RUNNING, active=TRIAL)).system == ONE


def test_the_system_that_was_activated_inside_is_named() -> None:
    """A user inside has activated generation 1, or a specialisation, and may have selected it."""
    inside = replace(RUNNING, current=ONE)
    for current in (1, 2):
        selected = replace(PRESENT, current=current)
        assert running_status("ready", selected, inside) == Status("ready", ONE, 1)
    trial = replace(RUNNING, current=TRIAL)
    assert running_status("ready", PRESENT, trial) == Status("ready", TRIAL, None)
    selected_only = replace(RUNNING, current=TWO)
    assert running_status("ready", replace(PRESENT, current=1), selected_only).system == TWO


def test_without_a_current_generation_the_system_that_runs_is_named() -> None:
    assert running_status("ready", Generations(), RUNNING) == Status("ready", TWO, None)


def test_of_two_generations_with_one_system_the_current_or_else_the_newest_is_named() -> None:
    twice = Generations({1: ONE, 2: TWO, 3: ONE}, current=1)
    assert generation_of(ONE, twice) == 1
    assert generation_of(ONE, replace(twice, current=2)) == 3
    assert generation_of(TRIAL, twice) is None


def test_a_failed_update_names_the_generation_that_still_runs() -> None:
    assert failed_update_text("no", PRESENT, RUNNING) == "failed: no; generation 2 runs on"
    assert failed_update_text("no", PRESENT, None) == "failed: no"
    trial = replace(RUNNING, active=TRIAL)
    assert failed_update_text("no", PRESENT, trial) == "failed: no"


def test_a_start_that_falls_back_names_the_generation_that_it_boots() -> None:
    assert fallback_text(Boot(ONE, Select(1, pinned=False)), PRESENT) == ""
    fallen = Boot(ONE, Select(1, pinned=False), "no flake")
    assert fallback_text(fallen, PRESENT) == "failed: no flake; started generation 1"
    assert fallback_text(Boot(TWO, None, "no"), PRESENT) == "failed: no; started generation 2"
    appended = Boot(TRIAL, Append(TRIAL, "x", 5), "no")
    assert fallback_text(appended, PRESENT) == "failed: no; started generation 2"


def test_a_system_that_boots_is_starting_and_a_failure_is_told_at_once() -> None:
    boots = replace(RUNNING, boot_text="starting", status_text="ready")
    assert shown_text(boots) == "starting"
    assert shown_text(replace(boots, boot_text="")) == "ready"
    failed = "failed: no luck; started generation 1"
    assert shown_text(replace(boots, status_text=failed)) == failed
    assert "web" in late_text("web", 120) and late_text("web", 120).startswith("failed: ")


def test_only_the_end_of_an_update_says_which_one_was_dealt_with() -> None:
    second = replace(RUNNING, update="2")
    assert running_status("ready", PRESENT, second).update == "2"
    assert running_status("failed: no luck", PRESENT, second).update == "2"
    for text in "building", "building 1/2", "queued: builds of a run", "starting":
        assert running_status(text, PRESENT, second).update is None


def test_a_long_reason_hides_nothing_that_follows() -> None:
    """Others may have written any part of it, and Status cuts a text at its end."""
    reason = "word " * 500
    boot = Boot(ONE, Select(1, pinned=False), fallback_reason=reason)
    texts = {
        failed_update_text(reason, PRESENT, RUNNING): "; generation 2 runs on",
        fallback_text(boot, PRESENT): "; started generation 1",
        building_text(4.0, reason): " if user.inx.update is another text",
    }
    for text, end in texts.items():
        assert Status(text).config()["user.inx.status"].endswith(end)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (1, "1 store path that was built inside lacks what it needs; build it again"),
        (2, "2 store paths that were built inside lack what they need; build them again"),
    ],
)
def test_the_note_on_paths_that_are_not_valid_any_more_fits_their_number(
    count: int, text: str
) -> None:
    assert incomplete_text(count) == text
