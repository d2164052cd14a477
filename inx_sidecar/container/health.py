"""Run inside a running instance what `user.inx.check` names, as `incus exec` would."""

import math
from collections.abc import Sequence
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.incus import api as incus
from inx_sidecar.incus.instance import Instance

# What the last check printed. It is inside, where the container's own limits apply.
LOG: Final = "run/inx-check.log"
# LXC adds to its own log what is printed elsewhere: then that is dropped.
_SCRIPT: Final = f"""
    exec </dev/null >/dev/null 2>&1
    busybox=/{paths.BOOT_INSIDE}/busybox log=/{LOG}
    $busybox rm -f $log
    (: >$log) || log=/dev/null
    exec $busybox timeout -s KILL "$0" "$@" >$log 2>&1
"""
_COMMAND: Final = (f"/{paths.BOOT_INSIDE}/busybox", "sh", "-c", _SCRIPT)
# timeout(1) of busybox ends the program first.
_LATER_SECONDS: Final = 1
_KILLED: Final = 137


async def run(instance: Instance, command: Sequence[str], seconds: float) -> str:
    """Run `command`, which may take `seconds`; "" if it succeeds, else what became of it.

    Its output goes to LOG inside. IncusError if Incus cannot run it.
    """
    limit = max(1, math.ceil(seconds))
    argv = [*_COMMAND, str(limit), *command]
    try:
        status = await incus.execute(instance.project, instance.name, argv, limit + _LATER_SECONDS)
    except TimeoutError:
        status = _KILLED
    if status == _KILLED:
        return f"it did not end within {limit} s"
    return f"it ended with status {status}" if status else ""
