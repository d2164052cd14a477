"""Give an instance that runs the system back that it had before an update."""

from dataclasses import replace

from inx_sidecar.base.errors import ConfigError, InstanceError, InxError
from inx_sidecar.config.keys import parse_spec
from inx_sidecar.config.settings import Settings, load_settings
from inx_sidecar.incus import api as incus
from inx_sidecar.incus.instance import Instance, parse_instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances.activate_update import activate_update
from inx_sidecar.instances.change_report import begin_report
from inx_sidecar.instances.deployment import Deployment
from inx_sidecar.instances.instance_state import InstanceState
from inx_sidecar.instances.plan import Boot
from inx_sidecar.instances.sealing import trusted_generations
from inx_sidecar.instances.unconfirmed import Unconfirmed, change_back
from inx_sidecar.nix import generations
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots, system_roots

# What holds from the start to the stop of an instance. All else may be wrong by now.
_KEPT_KEYS = ("user.inx.store", "user.inx.store.include")


async def roll_back(
    gc: GcClient, state: InstanceState, instance: Instance, update: Unconfirmed
) -> None:
    """Activate the system from before `update`, and make it current as if it had been selected
    inside: the source is not built again for the same wish.

    InxError if that system is not active.
    """
    running = Running.load(instance.uuid)
    if running is None:
        raise InstanceError(f"{instance.name!r} has ended")
    settings = _settings()
    config = {key: instance.config[key] for key in _KEPT_KEYS if key in instance.config}
    mode = "test" if update.is_test else "switch"
    spec = replace(parse_spec(config, instance.name, settings.default_flake), activate=mode)
    every = generations.read(instance.rootfs, instance.name)
    present = trusted_generations(every, instance)
    change = change_back(update, present)
    plan = Boot(update.before_system, change)
    deployment = Deployment(
        instance, spec, present, every, plan, settings, running.spec_digest, running=True
    )
    owner = instance.lxc_name, instance.uuid
    await direct_roots.add(gc, *owner, {system_roots.NEXT: update.before_system})
    report = await begin_report(instance, mode, update.system, update.before_system)
    try:
        await activate_update(gc, state, deployment, report, change)
    except InxError:
        report.write("failed")
        raise
    report.write("taken back")
    after = generations.read(instance.rootfs, instance.name)
    await system_roots.add_system_roots(gc, instance, after, None)
    direct_roots.drop_if_there(*owner, system_roots.NEXT)


async def as_configured(instance: Instance) -> Instance:
    """`instance` with its present configuration; InstanceError or IncusError if it is gone."""
    running = Running.load(instance.uuid)
    api = await incus.get_instance(instance.project, instance.name)
    if running is None or api["expanded_config"].get("volatile.uuid") != instance.uuid:
        raise incus.IncusError(f"{instance.name!r} is another instance by now", 404)
    return running.as_started(parse_instance(api, running.facts))


def _settings() -> Settings:
    """The way back needs no setting that may be wrong."""
    try:
        return load_settings()
    except ConfigError:
        return Settings()
