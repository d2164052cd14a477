"""Activate a system inside an instance that runs, and say what came of it.

The statuses are those of NixOS' switch-to-configuration.
"""

import os
from collections.abc import Sequence
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import ActivationError
from inx_sidecar.incus import api as incus
from inx_sidecar.incus.instance import Instance

# The system is active; what did not go well is for the operator to look at.
_TOLERATED: Final = {
    2: "parts of the activation failed",
    3: "some units could not be reloaded",
    4: "some units failed",
    100: "it takes a restart of the instance to switch",
}
# Of Incus: not reachable, shutting down.
_NOT_THERE: Final = (0, 503)
# Inside: what a container prints is kept where its own limits count.
LOG: Final = "run/inx-activation.log"
# A system that still boots is waited for, two minutes at most: it activates itself first, and an
# activation asks systemd for jobs that would wait for those of the boot. NixOS makes booted-system
# right before it starts systemd. Likewise an activation that a sidecar has left behind: it would
# end after this one. Inside there is nothing to be told by, so it is looked again.
_SCRIPT: Final = f"""
    busybox=/{paths.BOOT_INSIDE}/busybox looks=0
    later() {{ [ $((looks += 1)) -lt 300 ] && $busybox sleep 0.2; }}
    while [ ! -e /run/booted-system ] && later; do :; done
    systemctl=/run/booted-system/sw/bin/systemctl
    if [ -x $systemctl ]; then
        while [ ! -S /run/systemd/private ] && later; do :; done
        $busybox timeout 60 $systemctl is-system-running --wait >/dev/null 2>&1
    fi
    mark=/run/inx-activation.pid
    runs() {{ $busybox grep -qs inx-activation "/proc/$($busybox cat $mark)/cmdline"; }}
    while [ -e $mark ] && runs && later; do :; done
    $busybox rm -f /{LOG} $mark
    echo $$ >$mark
    "$0" "$1" >/{LOG} 2>&1 </dev/null
    status=$?
    $busybox rm -f $mark
    exit $status
"""
_COMMAND: Final = (f"/{paths.BOOT_INSIDE}/busybox", "sh", "-c", _SCRIPT)
_PROGRAM: Final = "bin/switch-to-configuration"


def check(instance: Instance, system: str) -> None:
    """ActivationError if `system` is made to be booted only."""
    if not os.path.lexists(f"{system}/{_PROGRAM}"):
        raise ActivationError(
            f"{system} has no {_PROGRAM}, so {instance.name!r} cannot switch to it while it runs; "
            "restart it"
        )


async def run(instance: Instance, system: str, verb: str, seconds: float) -> int:
    """The exit status of `switch-to-configuration VERB` of `system` inside; it writes to LOG.

    ActivationError if it cannot be started, or does not end in time; IncusError if Incus is not
    there, which says nothing about the system.
    """
    name = instance.name
    command = [*_COMMAND, f"{system}/{_PROGRAM}", verb]
    try:
        return await incus.execute(instance.project, name, command, seconds)
    except TimeoutError:
        raise ActivationError(
            f"activating {system} in {name!r} took over {seconds:.0f} s (build_timeout)"
        ) from None
    except incus.IncusError as error:
        if error.code in _NOT_THERE:
            raise
        raise ActivationError(f"cannot activate {system} in {name!r}: {error}") from None


def note(status: int, lines: Sequence[str], system: str, name: str) -> str:
    """What did not go well in an activation that ended so and printed `lines`, empty if all did.

    ActivationError if the system is not active.
    """
    if status == 0:
        return ""
    last = f": {lines[-1]}" if lines else ""
    if status in _TOLERATED:
        return f"{_TOLERATED[status]}{last}"
    raise ActivationError(f"activating {system} in {name!r} ended with status {status}{last}")
