"""One deployment of a system to an instance: the spec, what exists, and what has to be done.

A start of an instance is a deployment, and so is an update while the instance runs.
"""

import contextlib
import os
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import SystemMissingError
from inx_sidecar.config.disk_paths import check_disks
from inx_sidecar.config.keys import parse_spec
from inx_sidecar.config.nic_setup import NicSetup, plan_nic_setups
from inx_sidecar.config.settings import Settings, load_settings
from inx_sidecar.config.sources import System
from inx_sidecar.config.spec import InstanceSpec
from inx_sidecar.container.locked_mounts import HostDirectory
from inx_sidecar.incus.instance import Instance
from inx_sidecar.instances import unconfirmed_record as record
from inx_sidecar.instances.plan import Boot, Build, Plan, choose_plan
from inx_sidecar.instances.sealing import trusted_generations
from inx_sidecar.instances.unconfirmed import Clock, as_before, back_at_start, plan_of_return
from inx_sidecar.nix import generations
from inx_sidecar.nix.closure import closure_of
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generations import Generations
from inx_sidecar.nix.store_paths import check_toplevel, resolve_toplevel, valid_paths
from inx_sidecar.roots import tried_system
from inx_sidecar.roots.system_roots import add_system_roots
from inx_sidecar.roots.tried_system import Tried

_INCLUDE: Final = "user.inx.store.include"
_NOT_SEALED: Final = "an isolated instance has only the generations that this host has given to it"


@dataclass(frozen=True)
class Deployment:
    """`present` are the generations that may be booted, `all_generations` also the others.

    `digest` identifies the whole spec: a deployment with another digest is another request.
    `running` is true for an update of an instance that runs: its PID 1 stays.
    `tried` is the system that was tried last, for whatever spec.
    """

    instance: Instance
    spec: InstanceSpec
    present: Generations
    all_generations: Generations
    plan: Plan
    settings: Settings
    digest: str
    running: bool = False
    tried: Tried | None = None

    @property
    def has_daemon(self) -> bool:
        """A privileged container's root is the host's root: it gets a daemon only on request."""
        if self.spec.isolated:
            return False
        return not self.instance.privileged if self.spec.daemon is None else self.spec.daemon

    async def store(self, *systems: str) -> HostDirectory:
        """The host's store; for an isolated container only the closures of `systems` and of the
        included paths."""
        if not self.spec.isolated:
            return HostDirectory(paths.STORE, paths.STORE_INSIDE)
        visible = await closure_of([*systems, *self.spec.included])
        names = frozenset(os.path.basename(path) for path in visible)
        return HostDirectory(paths.STORE, paths.STORE_INSIDE, entries=names)


async def deploy(gc: GcClient, instance: Instance, *, running: bool = False) -> Deployment:
    """The deployment that `instance` needs now, with all that it names rooted.

    InxError if the spec is not allowed, or the instance cannot start.
    """
    deployment = plan_deployment(instance, running=running)
    await root_deployment(gc, deployment)
    check_deployment(deployment)
    return deployment


def plan_deployment(instance: Instance, *, running: bool = False) -> Deployment:
    """Parse the spec of `instance`, look at its generations and decide; nothing is written."""
    settings = load_settings()
    check_disks(instance.devices, instance.name, own=instance.own)
    spec = parse_spec(instance.config, instance.name, settings.default_flake)
    static_nic_setups(instance, spec)
    every = generations.read(instance.rootfs, instance.name)
    # An isolated container sees what it boots, so it must not choose a system by itself.
    present = trusted_generations(every, instance)
    update = None if running or spec.generation is not None else record.load(instance.uuid)
    back = update and back_at_start(update, instance.config, present, Clock.now())
    before = as_before(back, present) if back is not None else present
    # With `activate=test`, and while systems are only tried, a restart boots the one that is
    # current.
    keep_current = not running and (spec.activate == "test" or spec.only_tries)
    tried = tried_system.read(instance.uuid)
    try:
        plan = choose_plan(
            spec, before, instance.name, valid_paths, resolve_toplevel, keep_current=keep_current,
            tried=tried.system if tried and tried.wish == spec.wish else None,
        )  # fmt: skip
    except SystemMissingError as error:
        if spec.generation in every.links.keys() - present.links.keys():
            raise SystemMissingError(f"{error}; {_NOT_SEALED}") from None
        raise
    if back is not None:
        plan = plan_of_return(back, plan, present)
    digest = _digest(spec, instance.name)
    return Deployment(instance, spec, before, every, plan, settings, digest, running, tried)


async def root_deployment(gc: GcClient, deployment: Deployment) -> None:
    """Root every generation, every included path and the system that is about to boot."""
    plan, spec = deployment.plan, deployment.spec
    booted = plan.system if isinstance(plan, Boot) and not deployment.running else None
    await add_system_roots(
        gc, deployment.instance, deployment.all_generations, booted, spec.included
    )


def check_deployment(deployment: Deployment) -> None:
    """InxError if the deployment is not possible. Its paths are rooted by now: what is valid here
    stays valid."""
    plan, spec, name = deployment.plan, deployment.spec, deployment.instance.name
    for path in set(spec.included) - valid_paths(spec.included):
        command = f"nix-store --realise $({deployment.instance.command_to_get(_INCLUDE)})"
        raise SystemMissingError(
            f"{_INCLUDE} of {name!r} names {path}, which is not in the store; fetch it by "
            f"'{command}', or take it from the key"
        )
    if isinstance(plan, Build) and plan.fallback is None and plan.choice is None:
        deployment.settings.check_allowed(spec.source)
    if isinstance(plan, Boot):
        check_toplevel(plan.system, f"the system of {name!r}")
        if not valid_paths({plan.system}):
            raise SystemMissingError(
                f"{plan.system} of {name!r} was collected while it started; try again"
            )


def static_nic_setups(instance: Instance, spec: InstanceSpec) -> tuple[NicSetup, ...]:
    """The NICs with static addresses. The names of their interfaces are known once LXC starts."""
    return plan_nic_setups(spec.nics, instance.nics, instance.name)


def _digest(spec: InstanceSpec, instance: str) -> str:
    target: str | None = None
    if isinstance(spec.source, System):
        with contextlib.suppress(SystemMissingError):
            target = resolve_toplevel(spec.source.path, instance)
    return f"{spec.fingerprint(target)} {spec.generation} {spec.activate}"
