"""What an update of an instance that runs has to do: a pure function."""

from enum import Enum

from inx_sidecar.config.spec import TRIES
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances.plan import Boot, Plan


class UpdateStep(Enum):
    """CONTINUE: let the running build go on, it is for this spec.
    NOTHING: this spec was dealt with before, with success or not.
    RECORD: note that the spec was dealt with; there is nothing to activate.
    DEPLOY: build if needed, then make a generation and activate it, or only try it."""

    CONTINUE = "continue"
    NOTHING = "nothing"
    RECORD = "record"
    DEPLOY = "deploy"


def update_needed(
    digest: str, activate: str, plan: Plan, running: Running, building: str | None
) -> UpdateStep:
    """What has to be done for the spec with `digest`, whose key `activate` and `plan` are given.

    `running` says what was done before; `building` is the digest of the spec that is being built
    now, None if no build runs.
    """
    if building == digest:
        return UpdateStep.CONTINUE
    # An activation that failed or was cut short has changed the instance: only another activation
    # brings it to a known state. A try does not activate.
    half_done = activate not in TRIES and running.attempted_digest not in ("", digest)
    if digest == running.spec_digest and not half_done:
        return UpdateStep.NOTHING
    unchanged = isinstance(plan, Boot) and plan.change is None
    if activate == "none" or (unchanged and not half_done):
        return UpdateStep.RECORD
    return UpdateStep.DEPLOY
