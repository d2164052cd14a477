"""Activate a system inside an instance that runs, and say what came of it.

The statuses are those of NixOS' switch-to-configuration.
"""

from dataclasses import dataclass
from typing import Final

from inx_sidecar import incus
from inx_sidecar.errors import ActivationError
from inx_sidecar.instance import Instance

# The system is active; what did not go well is for the operator to look at.
_TOLERATED: Final = {
    2: "parts of the activation failed",
    3: "some units could not be reloaded",
    4: "some units failed",
    100: "it takes a restart of the instance to switch",
}


@dataclass(frozen=True)
class Activated:
    """The system is active; `note` says what did not go well, `output` is all that was printed."""

    note: str
    output: str


async def activate(instance: Instance, system: str, verb: str, seconds: float) -> Activated:
    """Run `switch-to-configuration VERB` of `system` inside; ActivationError if that fails."""
    command = f"{system}/bin/switch-to-configuration"
    name = instance.name
    try:
        ended = await incus.execute(instance.project, name, [command, verb], seconds)
    except TimeoutError:
        raise ActivationError(
            f"activating {system} in {name!r} took over {seconds:.0f} s (build_timeout)"
        ) from None
    except incus.IncusError as error:
        raise ActivationError(f"cannot activate {system} in {name!r}: {error}") from None
    if ended.status == 0:
        return Activated("", ended.output)
    said = [line for line in ended.output.splitlines() if line.strip()]
    last = f": {said[-1].strip()}" if said else ""
    if ended.status in _TOLERATED:
        return Activated(f"{_TOLERATED[ended.status]}{last}", ended.output)
    raise ActivationError(f"activating {system} in {name!r} ended with status {ended.status}{last}")
