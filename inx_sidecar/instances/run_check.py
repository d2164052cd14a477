"""What `user.inx.check` says inside an instance that runs."""

import asyncio
from typing import Final

from inx_sidecar.base.errors import InxError, one_line
from inx_sidecar.config.system_check import command_of
from inx_sidecar.container import health
from inx_sidecar.container.files import read_tail
from inx_sidecar.incus.instance import Instance
from inx_sidecar.instances.activate_update import open_container

_OUTPUT_MAX_BYTES: Final = 4096
_LINE_MAX: Final = 200
# Incus may not answer, as for an instance that is paused.
_GRACE_SECONDS: Final = 5


async def problem_of(instance: Instance, check: str, seconds: float) -> str:
    """Empty if `check` succeeds within `seconds`; else the last line that it printed, or what
    became of it."""
    try:
        async with asyncio.timeout(seconds + _GRACE_SECONDS):
            problem = await health.run(instance, command_of(check), seconds)
        if not problem:
            return ""
        with open_container(instance) as (container, _):
            output = await read_tail(container, health.LOG, _OUTPUT_MAX_BYTES)
    except TimeoutError:
        return f"Incus did not say within {seconds + _GRACE_SECONDS:.0f} s how it ended"
    except InxError as error:
        return one_line(str(error), _LINE_MAX)
    lines = [line for line in output.splitlines() if line.strip()]
    return one_line(lines[-1], _LINE_MAX) if lines else problem
