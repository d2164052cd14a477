"""The texts of `user.inx.status`, and the system and generation that a status names."""

from typing import Final

from inx_sidecar.base.errors import one_line
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status_keys import Status
from inx_sidecar.incus.update_key import PENDING
from inx_sidecar.instances.plan import Boot
from inx_sidecar.nix.generation_changes import Select
from inx_sidecar.nix.generations import Generations

UNMAPPED: Final = "store owned by nobody: its file system cannot map owners"
# A start looks at the closures of all of them.
_FORMER_MAX: Final = 100
# What follows a reason in a status has to be read, too.
_REASON_MAX: Final = 700
BUG: Final = "inx failed; see 'journalctl -u inx-sidecar' on the host"


def building_text(pause: float = 0.0, reason: str = "") -> str:
    """The text of a build that begins after `pause` seconds, since it has just failed by
    `reason`."""
    if not pause:
        return "building"
    return (
        f"failed: {_bounded(reason)}; it is built again in {pause:.0f} s, or at once if "
        "user.inx.update is another text"
    )


def ready_text(*, mapped: bool) -> str:
    """The text of an instance that runs as it should; `mapped` as in `Running`."""
    return "ready" if mapped else f"ready ({UNMAPPED})"


def former_text(kept: int) -> str:
    """The note on an instance whose store of its own still shows `kept` systems or paths that its
    start did not need; empty for a few."""
    if kept <= _FORMER_MAX:
        return ""
    return f"keeps {kept} former systems; run 'nix-collect-garbage -d' inside and restart"


def incomplete_text(count: int) -> str:
    """The note on an instance whose start has made `count` paths of its own invalid; empty for
    none."""
    if count == 0:
        return ""
    if count == 1:
        return "1 store path that was built inside lacks what it needs; build it again"
    return f"{count} store paths that were built inside lack what they need; build them again"


def fallback_text(boot: Boot, present: Generations) -> str:
    """The text of a start that boots another system than the spec asks for; else empty."""
    if not boot.fallback_reason:
        return ""
    number = boot.change.number if isinstance(boot.change, Select) else present.current
    return f"failed: {_bounded(boot.fallback_reason)}; started generation {number}"


def late_text(name: str, seconds: float) -> str:
    """The text of instance `name`, whose system is not up after `seconds`."""
    return (
        f"failed: its system is not up after {seconds:.0f} s, as /run/current-system is not there; "
        f"see 'incus console {name} --show-log'"
    )


def shown_text(running: Running) -> str:
    """What the last spec left, once the system is up; a failure is told at once."""
    failed = running.status_text.startswith("failed")
    return running.status_text if failed else running.boot_text or running.status_text


def failed_update_text(reason: str, present: Generations, running: Running | None) -> str:
    """The text of an update that failed; it names the generation that still runs, if any."""
    number = None if running is None else running_status("", present, running).generation
    return f"failed: {_bounded(reason)}" + (f"; generation {number} runs on" if number else "")


def running_status(text: str, present: Generations, running: Running) -> Status:
    """The status of an instance that runs: its system is the one that /run/current-system names. As
    long as that is not known, it is the one that was activated last, unless a user inside has
    selected another generation since."""
    unchanged = present.system in (None, running.profile_system)
    system = running.current or (running.system if unchanged else present.system)
    update = None if text.startswith(PENDING) else running.update
    return Status(text, system or "", generation_of(system, present), running.sealed, update)


def generation_of(system: str | None, present: Generations) -> int | None:
    """The number of the generation that holds `system`: the current one, else the newest."""
    if system == present.system:
        return present.current
    return max((n for n, path in present.links.items() if path == system), default=None)


def _bounded(reason: str) -> str:
    return one_line(reason, _REASON_MAX)
