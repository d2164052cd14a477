"""Make a system current in an instance that runs, and activate it; undo that if it fails.

The way back is saved before the generation is written, and removed once the system is active: a
sidecar that finds it restores the profile and begins again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

from inx_sidecar.base.errors import InstanceError, InxError, one_line
from inx_sidecar.base.journal import instance_log
from inx_sidecar.builds import build
from inx_sidecar.container import activation
from inx_sidecar.container.files import read_tail, write_generation
from inx_sidecar.container.mounts import attach_store_over
from inx_sidecar.container.namespaces import Container
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances import own_view
from inx_sidecar.instances import unconfirmed_record as record
from inx_sidecar.instances.change_report import ChangeReport
from inx_sidecar.instances.deployment import Deployment
from inx_sidecar.instances.instance_state import InstanceState
from inx_sidecar.instances.sealing import with_seal
from inx_sidecar.nix import generations
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generation_changes import Append, Change, Prune, Restore, Select
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots import direct_roots, system_roots

_OUTPUT_MAX_BYTES: Final = 64 << 10


async def activate_update(
    gc: GcClient,
    state: InstanceState,
    deployment: Deployment,
    report: ChangeReport,
    change: Select | Append,
) -> str:
    """Write the generation and activate the system of `report`, which has a root; `report` gets
    what is done with units. Returns the status text, empty if all went well.

    ActivationError if the system is not active; then the profile is as it was before.
    """
    instance, spec, system = deployment.instance, deployment.spec, report.after
    mode = spec.activate
    owner = instance.lxc_name, instance.uuid
    await build.remove_build_directory(instance.uuid)
    activation.check_can_switch(instance, system)
    written = None if mode == "test" else with_seal(change, instance)
    if written is not None:
        Running.amend(instance.uuid, undo=_profile_to_restore(deployment))
    try:
        await show_and_write(gc, state, deployment, system, written)
        if mode != "boot":
            Running.amend(instance.uuid, attempted_digest=deployment.digest)
        timeout = deployment.settings.build_timeout
        status = await activation.switch(instance, system, mode, timeout)
        lines = await last_output(instance)
        report.units = activation.units_of(lines)
        note = activation.describe_result(status, lines, system, instance.name)
    except Exception:
        try:
            await undo_generation(instance)
        except InxError as error:  # the next update tries it again before anything else
            instance_log(instance.lxc_name).error("%s", error)
        raise
    # The system is active now, or, with `boot`, the next start boots it.
    if mode != "boot":
        await direct_roots.add(gc, *owner, {system_roots.ACTIVE: system})
        Running.amend(instance.uuid, active=system, current="", attempted_digest="", undo=None)
    else:
        Running.amend(instance.uuid, undo=None)
    if isinstance(written, Append) and record.load(instance.uuid) is None:
        with open_container(instance) as (container, _):
            await write_generation(container, Prune(spec.keep))
    return f"ready ({note})" if note else ""


async def undo_generation(instance: Instance) -> None:
    """Restore the profile from before an activation that did not end well, if there was one."""
    running = Running.load(instance.uuid)
    if running is not None and running.undo is not None:
        back = Restore(**{**running.undo, "numbers": tuple(running.undo["numbers"])})
        with open_container(instance) as (container, _):
            await write_generation(container, back)
        Running.amend(instance.uuid, undo=None)


async def show_and_write(
    gc: GcClient,
    state: InstanceState,
    deployment: Deployment,
    system: str,
    change: Change | None,
) -> None:
    """Write the generation; before that, show an isolated container the closure of `system`."""
    instance, spec = deployment.instance, deployment.spec
    with open_container(instance) as (container, running):
        if spec.own:
            # Also if it was shown before: Nix inside may have deleted parts of it.
            async with own_view.shown(gc, container, deployment, running, system):
                if change is not None:
                    await write_generation(container, change)
        elif spec.isolated and system not in running.visible_systems:
            before = valid_paths({running.booted, running.system})
            visible = (system, *sorted(before - {system}))
            store = await deployment.store(*visible)
            state.mapped = await attach_store_over(container, store, change)
            Running.amend(instance.uuid, visible_systems=visible)
        elif change is not None:
            await write_generation(container, change)


def _profile_to_restore(deployment: Deployment) -> dict[str, Any] | None:
    """The present profile, for `Restore`; None if no generation that may be booted is current."""
    instance, present = deployment.instance, deployment.present
    if present.current is None:
        return None
    numbers = generations.read(instance.rootfs, instance.name).links
    return asdict(
        Restore(present.current, present.pinned, present.fingerprint, tuple(sorted(numbers)))
    )


async def last_output(instance: Instance) -> list[str]:
    """The last lines that an activation printed; they go to the journal too."""
    try:
        with open_container(instance) as (container, _):
            output = await read_tail(container, activation.LOG, _OUTPUT_MAX_BYTES)
    except InxError as error:
        instance_log(instance.lxc_name).warning("%s", error)
        return []
    lines = [one_line(line) for line in output.splitlines() if line.strip()]
    for line in lines:
        instance_log(instance.lxc_name).info("%s", line)
    return lines


@contextmanager
def open_container(instance: Instance) -> Iterator[tuple[Container, Running]]:
    """The container that runs. Held only briefly: open namespaces keep file systems busy."""
    running = Running.load(instance.uuid)
    if running is None:
        raise InstanceError(f"{instance.name!r} has ended")
    with Container(running.pid, instance.lxc_name) as container:
        if Running.load(instance.uuid) is None:
            raise InstanceError(f"{instance.name!r} has ended")
        yield container, running
