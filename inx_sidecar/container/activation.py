"""Activate a system inside a running instance, with NixOS' switch-to-configuration."""

import re
from collections.abc import Sequence
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import ActivationError
from inx_sidecar.incus import api as incus
from inx_sidecar.incus.instance import Instance
from inx_sidecar.nix.store_paths import is_in

# Exit statuses of switch-to-configuration with which the system is active, in part at least.
_TOLERATED: Final = {
    2: "parts of the activation failed",
    3: "some units could not be reloaded",
    4: "some units failed",
    100: "it takes a restart of the instance to switch",
}
_NEEDS_RESTART: Final = 100
# What switch-to-configuration, in Perl or Rust, and the activation script print of failures
# (nixpkgs, nixos/modules/system/activation).
_FAILED: Final = (
    re.compile(r"(?:warning: )?(the following (?:user )?units failed: .+)"),
    re.compile(r"(Activation script snippet '.+' failed.*)"),
    re.compile(r"(?:warning: )?(user activation for .+ failed)"),
)
# They print these too; a reason only if there is none of the above.
_LESS: Final = (
    re.compile(r"(Failed to (?:start|stop|restart|reload) .+)"),
    re.compile(r"(Failed to run activate script|Failed to install bootloader)"),
    re.compile(r"(Pre-switch checks failed|Could not acquire lock|Unable to list users .+)"),
)
# What they do with units, and would do with dry-activate.
_UNITS: Final = (
    re.compile(r"((?:would )?(?:NOT )?[a-z]+) the following (?:changed |user )*units: (.+)"),
    re.compile(r"the following new units were (started): (.+)"),
    re.compile(r"(would restart|restarting) (systemd)(?:\.\.\.)?"),
)
_UNIT_LINES_MAX: Final = 50
# The exit status of a program that SIGKILL has ended, as the shell gives it.
_KILLED: Final = 137
# Codes of IncusError: Incus is not reachable, or shuts down.
_UNAVAILABLE: Final = (0, 503)
# The log is inside, where the container's own limits apply to what the container prints.
LOG: Final = "run/inx-activation.log"
# The script first waits, two minutes at most, for a system that still boots: that system activates
# itself, and its jobs in systemd would delay those of this activation. NixOS makes booted-system
# right before it starts systemd. The script also waits for an activation that a previous sidecar
# began, which would otherwise end after this one. Inside, no event tells the end of either, so the
# script polls.
_SCRIPT: Final = f"""
    busybox=/{paths.BOOT_INSIDE}/busybox waits=0
    wait_more() {{ [ $((waits += 1)) -lt 300 ] && $busybox sleep 0.2; }}
    while [ ! -e /run/booted-system ] && wait_more; do :; done
    systemctl=/run/booted-system/sw/bin/systemctl
    if [ -x $systemctl ]; then
        while [ ! -S /run/systemd/private ] && wait_more; do :; done
        $busybox timeout 60 $systemctl is-system-running --wait >/dev/null 2>&1
    fi
    pid_file=/run/inx-activation.pid
    runs() {{ $busybox grep -qs inx-activation "/proc/$($busybox cat $pid_file)/cmdline"; }}
    while [ -e $pid_file ] && runs && wait_more; do :; done
    $busybox rm -f /{LOG} $pid_file
    echo $$ >$pid_file
    # A program that goes on would keep the lock that the next activation needs.
    ${{2:+$busybox timeout -s KILL $2}} "$0" "$1" >/{LOG} 2>&1 </dev/null
    status=$?
    $busybox rm -f $pid_file
    exit $status
"""
_COMMAND: Final = (f"/{paths.BOOT_INSIDE}/busybox", "sh", "-c", _SCRIPT)
_PROGRAM: Final = "bin/switch-to-configuration"


def check_can_switch(instance: Instance, system: str) -> None:
    """ActivationError if `system` can only be booted, as it has no switch-to-configuration."""
    if not is_in(system, _PROGRAM):
        raise ActivationError(
            f"{system} has no {_PROGRAM}, so {instance.name!r} cannot switch to it while it runs; "
            "restart it"
        )


async def switch(instance: Instance, system: str, verb: str, seconds: float) -> int:
    """Run `switch-to-configuration VERB` of `system` inside; returns its exit status.

    Its output goes to LOG inside. ActivationError if it cannot be started, or does not end within
    `seconds`. IncusError if Incus is not available, which says nothing about the system.
    """
    return await _execute(instance, system, [*_COMMAND, f"{system}/{_PROGRAM}", verb], seconds)


async def _execute(instance: Instance, system: str, command: Sequence[str], seconds: float) -> int:
    name = instance.name
    try:
        return await incus.execute(instance.project, name, command, seconds)
    except TimeoutError:
        raise ActivationError(
            f"activating {system} in {name!r} took over {seconds:.0f} s (build_timeout)"
        ) from None
    except incus.IncusError as error:
        if error.code in _UNAVAILABLE:
            raise
        raise ActivationError(f"cannot activate {system} in {name!r}: {error}") from None


async def dry_activate(instance: Instance, system: str, seconds: int, limit: float) -> int:
    """As `switch` with the verb dry-activate, which changes nothing. After `seconds`, the program
    is ended; `limit` is that of `switch`."""
    command = [*_COMMAND, f"{system}/{_PROGRAM}", "dry-activate", str(seconds)]
    return await _execute(instance, system, command, limit)


def describe_result(status: int, lines: Sequence[str], system: str, name: str) -> str:
    """What the operator has to look at after an activation; "" if it succeeded completely.

    `status` is the exit status of switch-to-configuration, `lines` is its output. ActivationError
    if `system` is not active.
    """
    if status == 0:
        return ""
    reason = _reason(lines)
    reason = f": {reason}" if reason else ""
    if status in _TOLERATED:
        return f"{_TOLERATED[status]}{reason}"
    raise ActivationError(f"activating {system} in {name!r} ended with status {status}{reason}")


def describe_dry_run(
    status: int, lines: Sequence[str], system: str, name: str, seconds: int
) -> str:
    """What switch-to-configuration would do with units, by its exit status and its output.

    ActivationError if it does not say: it failed, or was ended after `seconds`.
    """
    if status == 0:
        return "; ".join(units_of(lines)) or "no unit would change"
    if status == _NEEDS_RESTART:
        return _TOLERATED[status]
    if status == _KILLED:
        raise ActivationError(
            f"dry-activate of {system} in {name!r} took over {seconds} s, or was killed"
        )
    reason = _reason(lines)
    reason = f": {reason}" if reason else ""
    raise ActivationError(
        f"dry-activate of {system} in {name!r} ended with status {status}{reason}"
    )


def units_of(lines: Sequence[str]) -> list[str]:
    """What the output of switch-to-configuration names as done, or to be done, with which units."""
    found = (match for line in lines for says in _UNITS if (match := says.fullmatch(line)))
    return [f"{match[1]} {match[2]}" for match in found][:_UNIT_LINES_MAX]


def _reason(lines: Sequence[str]) -> str:
    """What the output names as failed; else its last line. After the names of units that failed,
    switch-to-configuration prints the status and the journal of each."""
    for patterns in _FAILED, _LESS:
        found = (match[1] for line in lines for says in patterns if (match := says.match(line)))
        if failed := "; ".join(dict.fromkeys(found)):
            return failed
    return lines[-1] if lines else ""
