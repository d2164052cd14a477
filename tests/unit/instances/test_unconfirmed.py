"""What an update that has to be confirmed needs, and when the system from before comes back."""

from dataclasses import replace

import pytest

from inx_sidecar.config.sources import Flake
from inx_sidecar.config.spec import InstanceSpec
from inx_sidecar.incus.update_wait import End, end_of
from inx_sidecar.instances.plan import Boot, Build
from inx_sidecar.instances.unconfirmed import (
    CONFIRMED,
    Clock,
    Step,
    Unconfirmed,
    as_before,
    back_at_start,
    decide,
    not_returned_text,
    of_update,
    plan_of_return,
    returned_text,
    waiting_text,
    with_value_seen,
)
from inx_sidecar.nix.generation_changes import Append, Select
from inx_sidecar.nix.generations import Generations

pytestmark = pytest.mark.life

OLD, NEW, NEWER = (f"/nix/store/{letter * 32}-nixos-system-web-1" for letter in "abc")
NOW = Clock(wall=1000.0, up=50.0, boot="this")
SPEC = InstanceSpec(Flake("/etc/nixos", "web", attr_given=False), confirm=60)
BEFORE = Generations({6: OLD}, current=6, fingerprint="old")
AFTER = Generations({6: OLD, 7: NEW}, current=7, fingerprint="new")
PLAN = Build("new")
UPDATE = Unconfirmed(
    "digest", "new", NEW, OLD, 6, 60, 5,
    confirm=True, generation=7, until=Clock(1060.0, 110.0, "this"),
)  # fmt: skip
CHECKED = replace(UPDATE, confirm=False, check="/run/current-system/sw/bin/curl -u a:b http://x")


def at(seconds: float, jump: float = 0.0, boot: str = "this") -> Clock:
    return Clock(NOW.wall + seconds + jump, NOW.up + seconds if boot == "this" else 1.0, boot)


@pytest.mark.parametrize(
    ("now", "left"),
    [
        (at(0), 60), (at(59), 1), (at(60), 0), (at(5000), 0),
        # The wall clock is set while the host is up.
        (at(10, jump=9999), 50), (at(10, jump=-9999), 50),
        # The host was restarted: only the wall clock goes on. It gives no more than the whole time.
        (at(10, boot="next"), 50), (at(60, boot="next"), 0), (at(10, jump=-9999, boot="next"), 60),
    ],
)  # fmt: skip
def test_the_time_that_is_left(now: Clock, left: float) -> None:
    assert UPDATE.left(now) == left


def test_a_restarted_host_gives_the_time_once() -> None:
    again = UPDATE.in_this_boot(at(20, jump=-9999, boot="next"))
    assert again.left(Clock(0.0, 31.0, "next")) == 30
    assert UPDATE.in_this_boot(NOW) == UPDATE


@pytest.mark.parametrize(
    ("update", "value", "left", "step"),
    [
        (UPDATE, "", 1.0, Step.WAIT),
        (UPDATE, "", 0.0, Step.GO_BACK),
        (UPDATE, "6", 0.0, Step.GO_BACK),
        (UPDATE, "7", 1.0, Step.CONFIRMED),
        (UPDATE, NEW, 1.0, Step.CONFIRMED),
        (UPDATE, OLD, 1.0, Step.WAIT),
        # No sidecar ran when it was set, perhaps in time.
        (UPDATE, "7", 0.0, Step.CONFIRMED),
        # It was set before there was anything to confirm.
        (replace(UPDATE, stale="7"), "7", 1.0, Step.WAIT),
        (replace(UPDATE, stale="7"), NEW, 1.0, Step.CONFIRMED),
        (replace(UPDATE, goes_back=True), "7", 1.0, Step.GO_BACK),
        (replace(UPDATE, until=None), "7", 60.0, Step.WAIT),
        (replace(UPDATE, generation=None, is_test=True), "7", 1.0, Step.WAIT),
        (replace(UPDATE, generation=None, is_test=True), NEW, 1.0, Step.CONFIRMED),
        (CHECKED, "", 1.0, Step.WAIT),
        (CHECKED, "7", 0.0, Step.GO_BACK),
        (replace(CHECKED, passed=True), "", 0.0, Step.CONFIRMED),
        (replace(CHECKED, confirm=True, passed=True), "", 1.0, Step.WAIT),
        (replace(CHECKED, confirm=True, passed=True), "", 0.0, Step.GO_BACK),
        (replace(CHECKED, confirm=True), "7", 0.0, Step.GO_BACK),
        (replace(CHECKED, confirm=True, passed=True), "7", 1.0, Step.CONFIRMED),
    ],
)
def test_what_is_done(update: Unconfirmed, value: str, left: float, step: Step) -> None:
    assert decide(update, {CONFIRMED: value}, left) is step


@pytest.mark.parametrize(
    "plan",
    [Build("new"), Boot(NEW, Append(NEW, "new", None)), Boot(NEW, Select(7, pinned=False))],
)
def test_the_wish_is_known(plan: Boot | Build) -> None:
    given = of_update(SPEC, {}, replace(BEFORE, fingerprint="new"), plan, NEW, "d", None)
    assert given is not None and given.fingerprint == "new"


def test_a_value_counts_again_once_it_was_another() -> None:
    stale = replace(UPDATE, stale="7")
    assert with_value_seen(stale, {CONFIRMED: "7"}) == stale
    assert with_value_seen(stale, {}) == UPDATE


def test_what_has_to_be_confirmed() -> None:
    given = of_update(SPEC, {CONFIRMED: "3"}, BEFORE, PLAN, NEW, "digest", None)
    assert given == replace(UPDATE, generation=None, until=None, stale="3")
    spec = replace(SPEC, confirm=0, check="a.service")
    checked = of_update(spec, {}, BEFORE, PLAN, NEW, "d", None)
    assert checked is not None and (checked.confirm, checked.seconds) == (False, 60)
    # What comes back is the last one that was confirmed.
    newer = of_update(SPEC, {}, AFTER, PLAN, NEWER, "d", UPDATE)
    assert newer is not None and (newer.before, newer.before_system) == (6, OLD)


@pytest.mark.parametrize(
    ("spec", "present", "system", "earlier"),
    [
        (replace(SPEC, confirm=0), BEFORE, NEW, None),
        (replace(SPEC, activate="boot"), BEFORE, NEW, None),
        (replace(SPEC, activate="none"), BEFORE, NEW, None),
        (replace(SPEC, generation=6), AFTER, OLD, None),
        (SPEC, Generations(), NEW, None),
        (SPEC, BEFORE, OLD, None),
        (SPEC, AFTER, OLD, UPDATE),
    ],
)
def test_what_needs_no_confirmation(
    spec: InstanceSpec, present: Generations, system: str, earlier: Unconfirmed | None
) -> None:
    assert of_update(spec, {}, present, PLAN, system, "digest", earlier) is None


@pytest.mark.parametrize(
    ("update", "present", "now", "back"),
    [
        (UPDATE, AFTER, at(30), False),
        (UPDATE, AFTER, at(60), True),
        (UPDATE, AFTER, at(60, boot="next"), True),
        (replace(UPDATE, goes_back=True), AFTER, at(1), True),
        # The way back was cut short, or the activation had failed.
        (replace(UPDATE, goes_back=True), BEFORE, at(1), True),
        (replace(UPDATE, until=None), AFTER, at(5000), False),
        (replace(UPDATE, is_test=True), AFTER, at(60), False),
        # Something else boots anyway.
        (UPDATE, BEFORE, at(60), False),
        (UPDATE, replace(AFTER, links={8: NEWER, **AFTER.links}, current=8), at(60), False),
    ],
)
def test_what_a_start_boots(
    update: Unconfirmed, present: Generations, now: Clock, back: bool
) -> None:
    assert back_at_start(update, {}, present, now) == (update if back else None)
    assert back_at_start(replace(update, goes_back=False), {CONFIRMED: "7"}, present, now) is None


def test_the_plan_of_a_start() -> None:
    assert as_before(UPDATE, AFTER).system == OLD
    given = plan_of_return(UPDATE, Boot(OLD), AFTER)
    reason = "generation 7 was not confirmed within 60 s"
    assert given == Boot(OLD, Select(6, pinned=False), fallback_reason=reason)
    # Root inside has deleted the generation.
    deleted = replace(AFTER, links={7: NEW})
    assert as_before(UPDATE, deleted).system == OLD
    given = plan_of_return(UPDATE, Boot(OLD), deleted)
    assert given == Boot(OLD, Append(OLD, "new", None), fallback_reason=reason)
    # After a failed activation, the profile does not know the wish.
    failed = replace(UPDATE, goes_back=True, failure="no luck")
    assert as_before(failed, BEFORE).fingerprint == "new"
    given = plan_of_return(failed, Boot(OLD), BEFORE)
    assert given == Boot(OLD, Append(OLD, "new", None), fallback_reason="no luck")
    assert as_before(failed, AFTER).fingerprint == "new"
    # A newer wish is tried.
    for plan in Build("newer"), Boot(NEWER, Append(NEWER, "newer", 5)):
        assert plan_of_return(UPDATE, plan, AFTER) == plan


def test_the_texts() -> None:
    assert waiting_text(UPDATE) == (
        "unconfirmed: set user.inx.confirmed=7 within 60 s, or generation 6 comes back"
    )
    assert returned_text(UPDATE) == (
        "failed: generation 7 was not confirmed within 60 s; generation 6 runs again"
    )
    assert waiting_text(CHECKED) == (
        "unconfirmed: the check /run/current-system/sw/bin/curl has to succeed within 60 s, or "
        "generation 6 comes back"
    )
    how = "set user.inx.confirmed to what user.inx.status.system says"
    assert how in waiting_text(replace(UPDATE, stale="7"))
    assert f": unset user.inx.confirmed, then {how}" in waiting_text(
        replace(UPDATE, is_test=True, generation=None, stale=NEW)
    )


def test_the_wait_for_an_update_knows_the_texts() -> None:
    def end(update: Unconfirmed) -> End | None:
        config = {"user.inx.status": waiting_text(update), "user.inx.status.update": ""}
        return end_of("Running", config, None, "")

    assert end(UPDATE) == End(True, waiting_text(UPDATE))
    assert end(CHECKED) is None, "it ends without the operator"


def test_texts_are_bounded_and_name_the_end() -> None:
    update = replace(CHECKED, problem="x\n\x1b" * 1000, check="/" + "a" * 1000)
    assert returned_text(update).endswith("; generation 6 runs again")
    text = not_returned_text(update, "word " * 500)
    assert text.endswith("the next start boots generation 6") and len(text) < 800
    assert text.isprintable()
