"""Which generations of an instance may be booted, and the seals that inx writes beside them."""

import contextlib
import os
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.incus.instance import Instance
from inx_sidecar.nix import generations
from inx_sidecar.nix.generation_changes import Append, DropSeals, Seal, Select
from inx_sidecar.nix.generations import Generations
from inx_sidecar.nix.seals import Sealer
from inx_sidecar.roots import direct_roots, system_roots

# In the directory of an instance whose seals were renewed at a start, while Incus may not have the
# key yet: another sidecar may be asked next.
_RENEWED: Final = "renewed"


def sealer_of(instance: Instance) -> Sealer:
    """What makes and checks the seals of `instance`.

    Seals without a uuid, as inx wrote them first, count for the systems that this instance ran last
    on this host: only host root can write these roots.
    """
    mark = _mark_of(instance)
    if instance.sealed_for == instance.uuid:
        with contextlib.suppress(OSError):
            os.unlink(mark)
        return Sealer(instance.uuid)
    if os.path.lexists(mark):
        return Sealer(instance.uuid)
    ran = (
        direct_roots.path_of(instance.lxc_name, instance.uuid, name)
        for name in (system_roots.BOOTED, system_roots.ACTIVE)
    )
    return Sealer(instance.uuid, instance.sealed_for, filter(None, ran))


def trusted_generations(present: Generations, instance: Instance) -> Generations:
    """The generations that may be booted: in an isolated container, those that inx gave to it."""
    return sealer_of(instance).trusted(present) if instance.isolated else present


def present_generations(instance: Instance) -> Generations:
    """The generations that may be booted; none, and an error in the journal, if they cannot be
    read."""
    try:
        present = generations.read(instance.rootfs, instance.name)
    except InxError as error:
        instance_log(instance.lxc_name).error("%s", error)
        return Generations()
    return trusted_generations(present, instance)


def with_seal(change: Select | Append | None, instance: Instance) -> Select | Append | None:
    """`change` with the seal of its system; only an Append has one."""
    return sealer_of(instance).add_seal(change) if isinstance(change, Append) else change


def with_all_seals(
    change: Select | Append | None, instance: Instance, present: Generations
) -> Select | Append | Seal | DropSeals | None:
    """What a start has to write: `change`, new seals if those in `present` were made for another
    instance, of which this one is a copy, and no seal of a generation that was deleted."""
    sealed = _with_new_seals(with_seal(change, instance), instance, present)
    return DropSeals(present.left_seals, sealed) if present.left_seals else sealed


def _with_new_seals(
    change: Select | Append | None, instance: Instance, present: Generations
) -> Select | Append | Seal | None:
    if instance.sealed_for == instance.uuid:
        return change
    missing = sealer_of(instance).missing_seals(present)
    return Seal(missing, change) if missing else change


def note_renewed(instance: Instance) -> None:
    """The start has written what `with_all_seals` gave: from now on seals of another instance do
    not count here. A container that keeps Incus from writing the key gains nothing."""
    if instance.sealed_for != instance.uuid:
        try:
            with open(_mark_of(instance), "w"):
                pass
        except OSError as error:
            instance_log(instance.lxc_name).warning(
                "seals of its source still count: cannot write %s: %s",
                error.filename, error.strerror,
            )  # fmt: skip


def _mark_of(instance: Instance) -> str:
    return f"{paths.state_dir(instance.uuid)}/{_RENEWED}"
