"""Try a system for an instance that runs: nothing that runs changes, and nothing is made current.

What was tried is kept, and is what a later `user.inx.activate=switch` takes.
"""

from typing import Final

from inx_sidecar.base.errors import RootError, one_line
from inx_sidecar.base.journal import instance_log
from inx_sidecar.builds import build
from inx_sidecar.container import activation
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances.activate_update import last_output, show_and_write
from inx_sidecar.instances.change_report import ChangeReport
from inx_sidecar.instances.deployment import Deployment
from inx_sidecar.instances.instance_state import InstanceState
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import tried_system
from inx_sidecar.roots.tried_system import Tried

# For as long, the next activation waits for a program that an earlier sidecar began.
_DRY_RUN_SECONDS: Final = 60
_TOLD_MAX: Final = 250


async def try_system(
    gc: GcClient, state: InstanceState, deployment: Deployment, report: ChangeReport
) -> str:
    """Keep the system of `report`; the status text, with what switch-to-configuration would do if
    that is asked for. ActivationError if that program fails."""
    instance, spec, system = deployment.instance, deployment.spec, report.after
    await tried_system.keep(gc, instance.lxc_name, instance.uuid, Tried(spec.wish, system))
    await build.remove_build_directory(instance.uuid)
    told = system
    if spec.activate == "dry-activate":
        activation.check_can_switch(instance, system)
        await show_and_write(gc, state, deployment, system, None)
        limit = deployment.settings.build_timeout
        seconds = min(_DRY_RUN_SECONDS, limit)
        status = await activation.dry_activate(instance, system, seconds, limit)
        lines = await last_output(instance)
        report.units = activation.units_of(lines)
        told = activation.describe_dry_run(status, lines, system, instance.name, seconds)
    return f"ready (tried: {one_line(told, _TOLD_MAX)}; user.inx.activate=switch takes it)"


def forget_other_try(deployment: Deployment) -> bool:
    """Let go what was tried for another spec than that of `deployment`; True if anything was."""
    instance = deployment.instance
    tried = tried_system.read(instance.uuid)
    if tried is not None and tried.wish == deployment.spec.wish:
        return False
    try:
        tried_system.forget(instance.lxc_name, instance.uuid)
    except RootError as error:
        instance_log(instance.lxc_name).error("%s", error)
    if tried is not None:
        _show_no_more(instance, tried.system)
    return tried is not None


def _show_no_more(instance: Instance, system: str) -> None:
    """An isolated container may see `system` still, but it may be collected now: if it is built
    again, it gets a view of its own. Names that were looked up in a view before they were made stay
    absent there (overlayfs)."""
    running = Running.load(instance.uuid)
    if running is not None and system not in (running.booted, running.system):
        visible = tuple(shown for shown in running.visible_systems if shown != system)
        if visible != running.visible_systems:
            Running.amend(instance.uuid, visible_systems=visible)
