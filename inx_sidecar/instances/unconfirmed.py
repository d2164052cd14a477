"""An update that has to be confirmed: what is known of it, and pure decisions.

`user.inx.confirm` and `user.inx.check` say what is needed.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Self

from inx_sidecar.base.errors import one_line
from inx_sidecar.config.spec import InstanceSpec
from inx_sidecar.config.system_check import name_of
from inx_sidecar.instances.plan import Boot, Plan
from inx_sidecar.kernel.process_times import boot_id
from inx_sidecar.nix.generation_changes import Append, Select
from inx_sidecar.nix.generations import Generations

CONFIRMED: Final = "user.inx.confirmed"
# How the status begins as long as an update waits to be confirmed.
UNCONFIRMED: Final = "unconfirmed"
# With a check alone, it has to succeed within this time.
_CHECK_SECONDS: Final = 60
_REASON_MAX: Final = 200


@dataclass(frozen=True)
class Clock:
    """The time: `wall` in seconds since the epoch, and `up` in seconds since the host booted, in
    the boot with the id `boot`. The wall clock may jump."""

    wall: float
    up: float
    boot: str

    @classmethod
    def now(cls) -> Self:
        return cls(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot_id())


@dataclass(frozen=True)
class Unconfirmed:
    """An update that waits.

    `digest`: that of the deployment; `fingerprint`: that of its source.
    `system`: what is tried; `generation`: its number, None for a test, or while the activation
    runs. `before_system` and `before`: what comes back.
    `seconds`: how long it may take. `until`: when it ends; None while the activation runs.
    `confirm`: the operator has to confirm; `check`: what has to succeed inside, or "".
    `stale`: the value that CONFIRMED had when the activation began, which confirms nothing.
    `passed`: the check has succeeded; `problem`: what the last check said that did not.
    `is_test`: no generation was made. `note`: what the status says once all is well; "" is plain.
    `failure`: why its activation failed, which has changed parts of what runs; or "".
    `goes_back`: the way back has begun, so nothing confirms any more.
    """

    digest: str
    fingerprint: str
    system: str
    before_system: str
    before: int
    seconds: float
    keep: int
    confirm: bool = False
    check: str = ""
    stale: str = ""
    is_test: bool = False
    generation: int | None = None
    until: Clock | None = None
    passed: bool = False
    problem: str = ""
    note: str = ""
    failure: str = ""
    goes_back: bool = False

    def begun(self, now: Clock) -> "Unconfirmed":
        """The same, with its time beginning now."""
        return replace(self, until=_later(now, self.seconds))

    def left(self, now: Clock) -> float:
        """The seconds that are left: by the clock that cannot jump, as long as the host is up."""
        if self.until is None:
            return self.seconds
        until = self.until
        left = until.up - now.up if until.boot == now.boot else until.wall - now.wall
        return max(0.0, min(left, self.seconds))

    def in_this_boot(self, now: Clock) -> "Unconfirmed":
        """The same, with its end by the clock of this boot of the host."""
        return replace(self, until=_later(now, self.left(now)))


class Step(Enum):
    WAIT = "wait"
    CONFIRMED = "confirmed"
    GO_BACK = "go back"


def decide(update: Unconfirmed, config: Mapping[str, str], left: float) -> Step:
    """What has to be done about `update`, if `left` seconds are left; `config` is that of the
    instance."""
    if update.goes_back:
        return Step.GO_BACK
    if update.until is None:
        return Step.WAIT
    if _is_confirmed(update, config) and (update.passed or not update.check):
        return Step.CONFIRMED
    return Step.WAIT if left > 0 else Step.GO_BACK


def _is_confirmed(update: Unconfirmed, config: Mapping[str, str]) -> bool:
    value = config.get(CONFIRMED, "")
    return not update.confirm or value in {*_names(update)} - {update.stale}


def _names(update: Unconfirmed) -> tuple[str, ...]:
    """What confirms the update, the better to read first."""
    number = () if update.generation is None else (str(update.generation),)
    return *number, update.system


def with_value_seen(update: Unconfirmed, config: Mapping[str, str]) -> Unconfirmed:
    """The same; a stale value of CONFIRMED counts again once the key has had another one."""
    stale = update.stale and config.get(CONFIRMED, "") != update.stale
    return replace(update, stale="") if stale else update


def of_update(
    spec: InstanceSpec, config: Mapping[str, str], present: Generations, plan: Plan,
    system: str, digest: str, earlier: Unconfirmed | None,
) -> Unconfirmed | None:  # fmt: skip
    """What has to be recorded before `system` is activated; None if nothing has to be confirmed.

    `present` are the generations before. `earlier` is an update that still waits: then the system
    from before is the one from before that update, the last that was confirmed.
    """
    needed = bool(spec.confirm or spec.check)
    if not needed or spec.activate not in ("switch", "test") or spec.generation is not None:
        return None
    before, before_system = present.current, present.system
    if earlier is not None:
        before, before_system = earlier.before, earlier.before_system
    if before is None or before_system is None or before_system == system:
        return None  # nothing to go back to
    return Unconfirmed(
        digest, _fingerprint(plan, present), system, before_system, before,
        spec.confirm or _CHECK_SECONDS, spec.keep,
        bool(spec.confirm), spec.check, config.get(CONFIRMED, ""), spec.activate == "test",
    )  # fmt: skip


def back_at_start(
    update: Unconfirmed, config: Mapping[str, str], present: Generations, now: Clock
) -> Unconfirmed | None:
    """`update` if a start has to boot the generation from before instead of what was tried.

    If another generation was selected inside, or by a restored snapshot, what was tried does not
    boot anyway. The way back may have begun.
    """
    begun = update.goes_back and present.system == update.before_system
    if update.is_test or (present.system != update.system and not begun):
        return None
    return update if decide(update, config, update.left(now)) is Step.GO_BACK else None


def change_back(update: Unconfirmed, present: Generations) -> Select | Append:
    """What makes the system from before current again: its generation, or, if that was deleted
    inside, another one. The fingerprint is that of the update: neither a look nor a start tries the
    same wish again. After a failed activation, it has to be written."""
    known = present.fingerprint == update.fingerprint or present.current != update.before
    if known and present.links.get(update.before) == update.before_system:
        return Select(update.before, pinned=False)
    return Append(update.before_system, update.fingerprint, keep=None)


def as_before(update: Unconfirmed, present: Generations) -> Generations:
    """`present`, as if the generation from before were current, and had been made for the wish that
    was tried; a newer wish still shows."""
    links = {**present.links, update.before: update.before_system}
    fingerprint = present.fingerprint
    if present.system == update.before_system:
        fingerprint = update.fingerprint
    return replace(present, links=links, current=update.before, fingerprint=fingerprint)


def plan_of_return(update: Unconfirmed, plan: Plan, present: Generations) -> Plan:
    """What a start has to do that gives the generation from before, if `plan` is what `as_before`
    leads to: that of a newer wish is not changed."""
    if not isinstance(plan, Boot) or plan.change is not None:
        return plan
    change = change_back(update, present)
    return replace(plan, change=change, fallback_reason=reason_of_return(update))


def waiting_text(update: Unconfirmed) -> str:
    """The status as long as the update waits."""
    within = f"within {update.seconds:.0f} s, or generation {update.before} comes back"
    checked = f"the check {name_of(update.check)} has to succeed"
    if not update.confirm:
        return f"{UNCONFIRMED}: {checked} {within}"
    also = f", and {checked}," if update.check else ""
    name = _names(update)[0]
    if name == update.stale or name == update.system:
        # An isolated container must not learn the path.
        how = f"set {CONFIRMED} to what user.inx.status.system says"
        how = f"unset {CONFIRMED}, then {how}" if update.stale == update.system else how
    else:
        how = f"set {CONFIRMED}={name}"
    return f"{UNCONFIRMED}: {how}{also} {within}"


def reason_of_return(update: Unconfirmed) -> str:
    """Why the update was not kept."""
    if update.failure:
        return one_line(update.failure, _REASON_MAX)
    tried = "the system that was tried" if update.is_test else "the new generation"
    if update.generation is not None:
        tried = f"generation {update.generation}"
    if not update.check or update.passed:
        return f"{tried} was not confirmed within {update.seconds:.0f} s"
    said = f": {one_line(update.problem, _REASON_MAX)}" if update.problem else ""
    return f"the check {name_of(update.check)} did not succeed within {update.seconds:.0f} s{said}"


def returned_text(update: Unconfirmed) -> str:
    return f"failed: {reason_of_return(update)}; generation {update.before} runs again"


def returning_text(update: Unconfirmed) -> str:
    return f"failed: {reason_of_return(update)}; going back to generation {update.before}"


def not_returned_text(update: Unconfirmed, reason: str) -> str:
    """The status if the generation from before could not be activated, for `reason`."""
    reason = one_line(reason, _REASON_MAX)
    return (
        f"failed: {reason_of_return(update)}; going back to generation {update.before} failed: "
        f"{reason}; it is tried again, and the next start boots generation {update.before}"
    )


def _fingerprint(plan: Plan, present: Generations) -> str:
    """The fingerprint that the profile has once `plan` is carried out."""
    if isinstance(plan, Boot):
        change = plan.change
        return change.fingerprint if isinstance(change, Append) else present.fingerprint or ""
    return plan.fingerprint


def _later(now: Clock, seconds: float) -> Clock:
    return Clock(now.wall + seconds, now.up + seconds, now.boot)
