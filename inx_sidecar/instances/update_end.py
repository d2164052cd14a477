"""The end of an update that waited to be confirmed: its status and its generations."""

from dataclasses import replace

from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.container.files import write_generation
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.instances.activate_update import open_container
from inx_sidecar.instances.sealing import present_generations
from inx_sidecar.instances.status_text import running_status, shown_text
from inx_sidecar.nix.generation_changes import Prune


def tell(statuses: StatusWriter, instance: Instance, text: str, changes: str | None = None) -> None:
    """Let the status say `text`, and which system runs by now. `changes` as in `Status`."""
    present = present_generations(instance)
    Running.amend(instance.uuid, status_text=text, profile_system=present.system or "")
    running = Running.load(instance.uuid)
    if running is not None:
        status = running_status(shown_text(running), present, running)
        status = replace(status, changes=changes)
        statuses.publish(instance, status, delayed=True)


async def prune(instance: Instance, keep: int) -> None:
    """Remove old generations: they had to stay as long as one of them could come back."""
    try:
        with open_container(instance) as (container, _):
            await write_generation(container, Prune(keep))
    except InxError as error:
        instance_log(instance.lxc_name).warning("%s", error)


def current_number(instance: Instance, system: str) -> int | None:
    """The number of the current generation, if that has `system`."""
    present = present_generations(instance)
    return present.current if present.system == system else None
