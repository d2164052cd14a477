"""Look which system an instance has activated, and which generations it has.

The status names that system, and a GC root keeps it, as /run/current-system does on a NixOS host.
What is found here is what the container's root wrote. It decides nothing else: an isolated
container sees and boots only what inx gave to it.
"""

from dataclasses import dataclass

from inotify_simple import INotify

from inx_sidecar.base.errors import InxError
from inx_sidecar.container.current_system import read_current_system
from inx_sidecar.container.files import write_generation
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.instances.activate_update import open_container
from inx_sidecar.instances.sealing import trusted_generations
from inx_sidecar.instances.status_text import running_status
from inx_sidecar.nix import generations
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generation_changes import DropSeals
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.system_roots import CURRENT


@dataclass(frozen=True)
class Look:
    """`changed`: the status or the profile had to be changed. `booted`: the instance has activated
    a system. `watch`: the watch for the directory of /run/current-system, if there is one."""

    changed: bool
    booted: bool
    watch: int | None = None


async def look_at_system(
    gc: GcClient,
    statuses: StatusWriter,
    instance: Instance,
    inotify: INotify | None,
    *,
    tell: bool,
) -> Look:
    """Root and, if asked, tell the system that runs; remove seals of generations that were deleted.

    InxError if the profile or the link cannot be looked at. Then the status says what is known.
    """
    current, watch, left = "", None, False
    try:
        with open_container(instance) as (container, _):
            current, watch = await read_current_system(container, inotify)
            if current:
                await _root(gc, instance, current)
            present = generations.read(instance.rootfs, instance.name)
            if left := bool(present.left_seals):
                await write_generation(container, DropSeals(present.left_seals))
    finally:
        told = tell and _tell(statuses, instance, current)
    return Look(left or told, bool(current), watch)


async def _root(gc: GcClient, instance: Instance, current: str) -> None:
    """Keep the system that was activated inside: it need not be a generation, nor linked at all."""
    owner = instance.lxc_name, instance.uuid
    running = Running.load(instance.uuid)
    if running is None or instance.isolated:
        return  # an isolated container sees only what has roots already
    kept = current in (running.booted, running.active)
    # A path that this root held gets another root until a comparison drops that (direct_roots.add).
    if (not kept or direct_roots.path_of(*owner, CURRENT)) and valid_paths({current}):
        await direct_roots.add(gc, *owner, {CURRENT: current})


def _tell(statuses: StatusWriter, instance: Instance, current: str) -> bool:
    """True if the status changes."""
    running = Running.load(instance.uuid)
    if running is None:
        return False
    if running.current != current:
        Running.amend(instance.uuid, current=current)
        running = Running.load(instance.uuid) or running
    try:
        present = generations.read(instance.rootfs, instance.name)
    except InxError:
        return False
    status = running_status("", trusted_generations(present, instance), running)
    return statuses.set_system(instance, status)
