"""Refuse a start that conflicts with another instance that runs: by its uuid or by an address."""

from collections.abc import Iterable, Mapping

from inx_sidecar.base.errors import InstanceError, NetworkError
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances.instance_state import InstanceState


def other_with_uuid(instance: Instance) -> str | None:
    """The name of another instance that runs with the uuid of `instance`, as after an import."""
    running = Running.load(instance.uuid)
    if running is None or running.facts.rootfs == instance.rootfs:
        return None
    return running.facts.lxc_name


def check_uuid(instance: Instance) -> None:
    """InstanceError if another instance runs with the uuid of `instance`."""
    other = other_with_uuid(instance)
    if other is not None:
        raise InstanceError(
            f"{instance.lxc_name!r} has the volatile.uuid of {other!r}, which runs: set it to a "
            f"new one, as by 'incus config set {instance.name} volatile.uuid=$(uuidgen)'"
        )


def check_addresses(
    instance: Instance, wanted: Iterable[str], states: Mapping[str, InstanceState]
) -> None:
    """NetworkError if another instance that runs, or is being started, claims one of `wanted`.

    `states` are those of all instances, by uuid.
    """
    addresses = frozenset(wanted)
    for uuid, state in states.items():
        taken = sorted(addresses & state.claims.keys()) if uuid != instance.uuid else []
        if taken and (Running.load(uuid) is not None or not state.mounted.is_set()):
            raise NetworkError(
                f"{taken[0].split()[0]} of {instance.lxc_name!r} is a static address of "
                f"{state.claims[taken[0]]!r}, which runs; change one of the two"
            )
