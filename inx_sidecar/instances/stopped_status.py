"""The status of an instance that does not run: it must not say that all is well if it is not."""

from typing import Final

from inx_sidecar.incus.status import BUILDING, INTERRUPTED
from inx_sidecar.instances.missing_hooks import BEGIN

_FAILED: Final = "failed: "


def stopped_text(
    present: str, problem: str, name: str, *, has_hooks: bool, by_itself: bool, starts: bool
) -> str:
    """The status of instance `name`, which does not run and has the status `present`.

    `problem`: why its next start fails. Without a problem and without hooks, inx has no part in the
    instance. `by_itself`: it has just stopped, and nobody had asked Incus for that. A status that
    says why something failed stays. `starts`: a start has begun. A copy, or an instance that got
    another name as it stopped, may have the status of a build that ended.
    """
    if problem:
        return _FAILED + problem
    if not has_hooks or present.startswith(_FAILED + BEGIN):
        return ""
    if present.startswith(BUILDING) and not starts and not by_itself:
        return INTERRUPTED
    if not by_itself or starts or present.startswith(_FAILED):
        return present
    return (
        "stopped: PID 1 ended by itself, as after a shutdown inside, or LXC failed; see "
        f"'incus console {name} --show-log' and 'incus info {name} --show-log'"
    )
