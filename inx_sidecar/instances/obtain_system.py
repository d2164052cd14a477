"""Get the system that a plan needs and the store lacks: fetched, or built from its source."""

from collections.abc import Callable, Mapping

from inx_sidecar.base.errors import BuildError, SystemMissingError
from inx_sidecar.builds.build import build_in_slot
from inx_sidecar.builds.build_request import BuildRequest, Listener
from inx_sidecar.builds.build_slots import BuildSlots
from inx_sidecar.config.sources import System
from inx_sidecar.instances.build_status import BuildStatus
from inx_sidecar.instances.deployment import Deployment
from inx_sidecar.instances.plan import Build
from inx_sidecar.nix.generation_changes import Append, Select


async def obtain_system(
    slots: BuildSlots, deployment: Deployment, plan: Build,
    say: Callable[[str], None], publish: Callable[[str], None], shown: str,
    keep: Callable[[Mapping[str, str]], None],
) -> str:  # fmt: skip
    """The store path of the system, once a slot is free; `say` receives the lines of Nix, and
    `publish` the texts of the status, which says `shown` already. `keep` receives the keys that the
    instance keeps of a build.

    BuildError if it cannot be built; SystemMissingError if a generation was chosen, and its system
    cannot be fetched: its source may give another system by now.
    """
    instance, source = deployment.instance, deployment.spec.source
    if plan.choice is not None and plan.missing is not None:
        source = System(plan.missing)
    request = BuildRequest(
        instance.uuid, instance.name, source, plan.missing, deployment.settings,
        instance.project, not instance.isolated, deployment.spec.update,
    )  # fmt: skip
    status = BuildStatus(publish, shown)
    try:
        return await build_in_slot(slots, request, Listener(say, status.report, keep))
    except BuildError as error:
        if plan.choice is None:
            raise
        raise SystemMissingError(
            f"generation {plan.choice.number} of {instance.name!r} is {plan.missing}, which is not "
            f"in the store; copy it to this host, or unset user.inx.generation ({error})"
        ) from None
    finally:
        status.close()


def change_of(plan: Build, system: str, keep: int | None) -> Select | Append:
    """What makes `system` the current generation. With `keep`, the oldest ones are removed."""
    return plan.choice or Append(system, plan.fingerprint, keep)
