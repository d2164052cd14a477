"""One start of an instance: what is asked for, what is there, and what follows from both."""

import contextlib
import os
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import SystemMissingError
from inx_sidecar.config.addresses import Wire, wires
from inx_sidecar.config.keys import InstanceSpec, System, parse
from inx_sidecar.config.settings import Settings, load
from inx_sidecar.container.mounts import HostDirectory
from inx_sidecar.incus.instance import Instance
from inx_sidecar.instances.plan import Boot, Build, Plan, decide
from inx_sidecar.nix import generations
from inx_sidecar.nix.closure import closure
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generations import Generations
from inx_sidecar.nix.seals import only_sealed
from inx_sidecar.nix.store import check_toplevel, resolve, valid_paths
from inx_sidecar.roots.system_roots import add_system_roots

UNMAPPED: Final = "store owned by nobody: its file system cannot map owners"
BUG: Final = "inx failed; see 'journalctl -u inx-sidecar' on the host"


def ready(*, mapped: bool) -> str:
    """The status of an instance that runs as it should."""
    return "ready" if mapped else f"ready ({UNMAPPED})"


@dataclass(frozen=True)
class Start:
    """One start of an instance: what it is, what is asked for and what will be done."""

    instance: Instance
    spec: InstanceSpec
    present: Generations
    plan: Plan
    settings: Settings
    # Of what is asked for, in full: another one is another spec.
    mark: str

    @property
    def daemon(self) -> bool:
        """A privileged container's root is the host's root: it gets no daemon unless asked for."""
        if self.spec.isolated:
            return False
        return not self.instance.privileged if self.spec.daemon is None else self.spec.daemon

    async def store(self, *shown: str) -> HostDirectory:
        """The store of the host, or what an isolated container sees of it with the systems
        `shown`."""
        if not self.spec.isolated:
            return HostDirectory(paths.STORE, paths.STORE_INSIDE)
        visible = await closure([*shown, *self.spec.include])
        names = frozenset(os.path.basename(path) for path in visible)
        return HostDirectory(paths.STORE, paths.STORE_INSIDE, only=names)


async def decide_start(gc: GcClient, instance: Instance, *, running: bool = False) -> Start:
    """Look at what `instance` is, asks for and has, decide what its start does, and root that.

    With `running`, what its update does: PID 1 stays.
    """
    settings = load()
    spec = parse(instance.config, instance.name, settings.default_flake)
    wires_of(instance, spec)
    present = generations.read(instance.rootfs, instance.name)
    # What an isolated container boots is what it sees: not what it chooses itself.
    usable = only_sealed(present, spec.isolated)
    # What was on trial until now is not started, and not tried again.
    keep = spec.activate == "test" and not running
    plan = decide(spec, usable, instance.name, valid_paths, resolve, keep=keep)
    start = Start(instance, spec, usable, plan, settings, _mark(spec, instance.name))
    booted = plan.system if isinstance(plan, Boot) and not running else None
    await add_system_roots(gc, instance, present, booted, spec.include)
    for path in set(spec.include) - valid_paths(spec.include):
        raise SystemMissingError(
            f"user.inx.store.include of {instance.name!r} names {path}, which is not in the "
            f"store; fetch it, as by 'nix-store --realise {path}', or take it from the key"
        )
    if isinstance(plan, Build) and plan.fallback is None:
        settings.check_allowed(spec.source)
    if isinstance(plan, Boot):
        check_toplevel(plan.system, f"the system of {instance.name!r}")
        if not valid_paths({plan.system}):
            raise SystemMissingError(
                f"{plan.system} of {instance.name!r} was collected while it started; try again"
            )
    return start


def wires_of(instance: Instance, spec: InstanceSpec) -> tuple[Wire, ...]:
    """The NICs with static addresses; their interfaces are known once LXC starts."""
    return wires(spec.nics, instance.nics, instance.name)


def _mark(spec: InstanceSpec, instance: str) -> str:
    leads_to: str | None = None
    if isinstance(spec.source, System):
        with contextlib.suppress(SystemMissingError):
            leads_to = resolve(spec.source.path, instance)
    return f"{spec.fingerprint(leads_to)} {spec.generation} {spec.activate}"
