"""/var/lib/inx/UUID/unconfirmed.json: the update of an instance that waits to be confirmed.

The record is written before the activation, survives the sidecar, the instance and the host, and is
removed when the update is confirmed or taken back. A copy of the instance has none. From before it
is written until after it is removed, the system from before has a root.
"""

import asyncio
import contextlib
import json
import os
from dataclasses import asdict

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.storage import storage_error
from inx_sidecar.incus.instance import Instance
from inx_sidecar.instances.unconfirmed import Clock, Unconfirmed, waiting_text
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots, system_roots


def load(uuid: str) -> Unconfirmed | None:
    """The update of instance `uuid` that waits, if any."""
    try:
        with open(_path(uuid)) as file:
            saved = json.load(file)
        until = saved.pop("until")
        return Unconfirmed(**saved, until=None if until is None else Clock(**until))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def save(uuid: str, update: Unconfirmed, *, durable: bool = False) -> None:
    """With `durable`, what is written outlives a crash of the host, and that takes time."""
    path = _path(uuid)
    with open(f"{path}.new", "w") as file:
        json.dump(asdict(update), file)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


async def begin(gc: GcClient, instance: Instance, update: Unconfirmed) -> None:
    """Record `update` before its activation begins; RootError if its way back cannot be kept."""
    await keep_before(gc, instance, update)
    await asyncio.to_thread(save, instance.uuid, update, durable=True)


async def keep_before(gc: GcClient, instance: Instance, update: Unconfirmed) -> None:
    """Root the system from before `update`, for which the instance may have no generation."""
    root = {system_roots.BEFORE: update.before_system}
    await direct_roots.add(gc, instance.lxc_name, instance.uuid, root)


def try_to_save(instance: Instance, update: Unconfirmed) -> None:
    """As `save`; a failure is only logged. Then a later sidecar has the former record."""
    try:
        save(instance.uuid, update)
    except OSError as error:
        instance_log(instance.lxc_name).error("%s", storage_error(error) or error)


def restore(instance: Instance, earlier: Unconfirmed | None) -> None:
    """Let `earlier` be what waits, if anything does. The system from before is the same."""
    if earlier is None:
        remove(instance)
    else:
        save(instance.uuid, earlier)


def remove(instance: Instance) -> None:
    """Nothing waits any more. A root that cannot be dropped stays until the next start."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(instance.uuid))
    try:
        direct_roots.drop_if_there(instance.lxc_name, instance.uuid, system_roots.BEFORE)
    except RootError as error:
        instance_log(instance.lxc_name).error("%s", error)


def text_of(uuid: str) -> str:
    """The status text of an update that waits; "" if none does."""
    update = load(uuid)
    return "" if update is None else waiting_text(update)


async def note_boot(gc: GcClient, instance: Instance, system: str, *, pinned: bool) -> str:
    """The instance boots `system`: the status text if that waits to be confirmed, else "".

    An update whose system does not boot, or boots since the operator has chosen its generation,
    does not wait any more.
    """
    update = load(instance.uuid)
    if update is None or pinned or update.is_test or update.goes_back or update.system != system:
        remove(instance)
        return ""
    await keep_before(gc, instance, update)  # the instance may have been renamed
    now = Clock.now()
    update = update.begun(now) if update.until is None else update.in_this_boot(now)
    save(instance.uuid, update)
    return waiting_text(update)


def _path(uuid: str) -> str:
    return f"{paths.state_dir(uuid)}/unconfirmed.json"
