"""When a wait for an update ends, and whether all went well."""

from typing import Final

import pytest

from inx_sidecar.incus.update_key import DEALT_WITH, asked_now, shown
from inx_sidecar.incus.update_wait import End, end_of

pytestmark = pytest.mark.life

TEXT, ASKED, DONE = "user.inx.status", "user.inx.update", "user.inx.status.update"
OLD: Final = {TEXT: "ready", ASKED: "2", DONE: "1"}


@pytest.mark.parametrize("text", ["", "building", "building 1/2, x", "queued: builds of a run",
                                  "starting", "stopped: it was stopped before",
                                  "unconfirmed: the check x has to succeed"])  # fmt: skip
def test_a_status_that_will_change_is_waited_for(text: str) -> None:
    assert end_of("Running", OLD | {TEXT: text, DONE: "2"}, None, "2") is None


@pytest.mark.parametrize("text", ["ready", "failed: of the update before"])
def test_the_status_of_the_update_before_is_not_taken(text: str) -> None:
    assert end_of("Running", OLD | {TEXT: text}, None, "2") is None


def test_the_status_says_how_it_ended() -> None:
    assert end_of("Running", OLD | {DONE: "2"}, None, "2") == End(True, "ready")
    noted = OLD | {DONE: "2", TEXT: "ready (some units failed)"}
    assert end_of("Running", noted, None, "2") == End(True, "ready (some units failed)")
    waits = OLD | {DONE: "2", TEXT: "unconfirmed: set user.inx.confirmed=7 within 60 s"}
    assert end_of("Running", waits, None, "2") == End(True, waits[TEXT])
    failed = OLD | {DONE: "2", TEXT: "failed: no such luck; generation 1 runs on"}
    assert end_of("Running", failed, None, "2") == End(False, failed[TEXT])


def test_an_instance_that_never_had_an_update_is_waited_for() -> None:
    assert end_of("Running", {}, None, "") is None
    assert end_of("Running", {TEXT: "ready"}, None, "") == End(True, "ready")


def test_an_update_that_was_overtaken_did_not_go_well() -> None:
    end = end_of("Running", OLD, None, "1")
    assert end == End(False, "user.inx.update is '2' by now, and not '1'")


def test_an_instance_that_is_stopped_is_not_waited_for() -> None:
    end = end_of("Stopped", OLD, None, "2")
    assert end == End(False, "it does not run; its next start deals with user.inx.update")
    failed = end_of("Stopped", OLD | {TEXT: "failed: no luck"}, None, "2")
    assert failed == End(False, "failed: no luck; its next start deals with user.inx.update")


def test_what_the_sidecar_has_not_written_yet_counts() -> None:
    """Right after a start, Incus has the status from before."""
    ready = OLD | {DONE: "2"}
    assert end_of("Running", ready, {TEXT: "starting"}, "2") is None
    assert end_of("Running", ready, ready, "2") == End(True, "ready")


@pytest.mark.parametrize("value", ["", "Fri Nov 27 17:35:06 UTC 2026", "x" * 200, "ä"])
def test_a_short_line_is_shown_as_it_is(value: str) -> None:
    assert shown(value) == value == asked_now({ASKED: value})


@pytest.mark.parametrize(
    "value", ["x" * 201, "two\nlines", " ", "\x1b[31m", "\udcff", "x" * 9999999]
)
def test_other_values_are_shown_as_their_digest(value: str) -> None:
    assert shown(value).startswith("sha256:") and len(shown(value)) == 71
    assert shown(value) != shown(value + "x")


def test_what_others_wrote_into_the_status_is_one_plain_line() -> None:
    text = "failed: \x1b]0;title\x07\x1b[2Jx\nweb: ready"
    for state in "Running", "Stopped":
        end = end_of(state, {"user.inx.status": text, DEALT_WITH: ""}, None, "")
        assert end is not None and not end.is_ready and end.sentence.isprintable()
