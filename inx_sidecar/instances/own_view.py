"""What an instance with a store of its own is shown at a start, and while it runs.

The view has what the start needs, and what was shown before and was not deleted inside. All of it
is registered in the database inside before the init begins, unless the last start has done so.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.container.locked_mounts import HostDirectory
from inx_sidecar.container.namespaces import Container
from inx_sidecar.container.own_growth import grown
from inx_sidecar.container.own_store import attach_own_store, open_nix
from inx_sidecar.container.upper_layer import entries
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances.deployment import Deployment
from inx_sidecar.instances.sealing import sealer_of
from inx_sidecar.kernel.syscalls import opened
from inx_sidecar.nix import own_database, shown_record
from inx_sidecar.nix.closure import Registration, closure_of, registrations_of
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generation_changes import Change
from inx_sidecar.nix.own_database import Rows, encode
from inx_sidecar.nix.shown import Shown, decide_start, without
from inx_sidecar.nix.shown_record import Record
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.system_roots import shown_roots

_PREFIX: Final = "view."
# So many rows are encoded in less than ten milliseconds.
_ENCODED_AT_ONCE: Final = 1000


@dataclass(frozen=True)
class Start:
    """What a start shows, writes and registers; `rows` is None if all of it is registered."""

    shown: Shown
    record: Record
    rows: Rows | None


@dataclass(frozen=True)
class Attached:
    """A store that was attached, as `running_record.Running` records it."""

    mapped: bool
    view: str = ""
    view_device: int = 0
    incomplete: int = 0
    former: int = 0

    def added_to(self, running: Running) -> Running:
        return replace(
            running,
            view=self.view, view_device=self.view_device,
            incomplete=self.incomplete, former=self.former,
        )  # fmt: skip


async def attach(
    container: Container,
    deployment: Deployment,
    system: str,
    others: Sequence[HostDirectory],
    change: Change | None,
) -> Attached:
    """Attach the store with `system` in it, and `others`; register what is shown, then write
    `change`.

    InxError if that is not possible; InstanceError if it is the file system of the instance.
    """
    instance = deployment.instance
    start = await _plan(deployment, system)
    incomplete = 0
    if start.rows is not None:
        # Before anything is mounted: if that fails, another system is tried.
        with opened(await open_nix(container)) as nix:
            user = None if container.privileged else container.user
            incomplete = await own_database.write(
                nix, user, start.rows, container.name, starts=True
            )
    layer = _make_layer(instance.uuid)
    view = HostDirectory(paths.STORE, paths.OWN_INSIDE, entries=start.shown.names, layer=layer)
    try:
        store = await attach_own_store(
            container, view, others, uncovered=start.shown.uncovered, change=change,
            record=start.record, roots=_inner_roots(deployment, "booted", system),
        )  # fmt: skip
    except BaseException:
        # A start that fails again and again leaves nothing in /run.
        await asyncio.to_thread(shutil.rmtree, layer, ignore_errors=True)
        raise
    former = len(start.shown.kept)
    return Attached(store.mapped, layer, store.view_device, incomplete, former)


@asynccontextmanager
async def shown(
    gc: GcClient, container: Container, deployment: Deployment, running: Running, system: str
) -> AsyncIterator[None]:
    """Show `system`, which has a root, to the instance that runs. No collection runs inside until
    the end of the context."""
    instance = deployment.instance
    if not running.view:
        raise InstanceError(
            f"{instance.name!r} runs without a store of its own; restart it to give it one"
        )
    tops = _tops(deployment, system)
    await direct_roots.add(gc, instance.lxc_name, instance.uuid, shown_roots(tops))
    names = _names(await closure_of(tops))
    view = HostDirectory(paths.STORE, paths.OWN_INSIDE, entries=names, layer=running.view)
    rows = await _encoded(await registrations_of(names), instance.uuid)
    sealer = sealer_of(instance)
    async with grown(
        container, instance.rootfs, view, running.view_device, rows,
        Record({path: sealer.seal_of(path) for path in tops}),
        _inner_roots(deployment, "next", system),
    ):  # fmt: skip
        yield


def other_views(uuid: str, view: str) -> list[str]:
    """The layers of all views of the instance but that of `view`, a directory."""
    try:
        names = os.listdir(paths.run_dir(uuid))
    except FileNotFoundError:
        return []
    found = (f"{paths.run_dir(uuid)}/{name}" for name in names if name.startswith(_PREFIX))
    return [path for path in found if path != view]


async def _plan(deployment: Deployment, system: str) -> Start:
    instance = deployment.instance
    sealer = sealer_of(instance)
    recorded = shown_record.read(instance.rootfs, instance.name)
    valid = valid_paths(recorded)
    former = [
        path for path, seal in recorded.items() if path in valid and sealer.counts(path, seal)
    ]
    needed = _tops(deployment, system)
    registrations = await registrations_of(_names(await closure_of([*needed, *former])))
    references = {found.name: found.references for found in registrations}
    found = entries(instance.rootfs, instance.name, references)
    shown = decide_start(
        map(os.path.basename, needed), map(os.path.basename, former), references,
        {name for name, hidden in found.items() if hidden},
    )  # fmt: skip
    hidden = frozenset(name for name, is_hidden in found.items() if is_hidden) - shown.uncovered
    usable = without(hidden, {name: references[name] for name in shown.names})
    rows = await _encoded([row for row in registrations if row.name in usable], instance.uuid)
    changes = shown.uncovered or any(
        name in shown.names and not is_hidden for name, is_hidden in found.items()
    )
    if not changes and own_database.is_registered(instance.rootfs, instance.name, rows):
        to_write = None
    else:
        to_write = rows
    stays = {*needed, *(f"{paths.STORE}/{name}" for name in shown.kept)}
    record = Record(
        {path: sealer.seal_of(path) for path in stays},
        tuple(path for path in recorded if path not in stays),
    )
    return Start(shown, record, to_write)


async def _encoded(registrations: Sequence[Registration], uuid: str) -> Rows:
    if len(registrations) <= _ENCODED_AT_ONCE:
        return encode(registrations, uuid)
    return await asyncio.to_thread(encode, registrations, uuid)


def _tops(deployment: Deployment, system: str) -> list[str]:
    return [system, *deployment.spec.included]


def _inner_roots(deployment: Deployment, name: str, system: str) -> dict[str, str]:
    included = {os.path.basename(path)[:32]: path for path in deployment.spec.included}
    return {name: system, **included}


def _names(store_paths: Iterable[str]) -> frozenset[str]:
    return frozenset(os.path.basename(path) for path in store_paths)


def _make_layer(uuid: str) -> str:
    """An empty directory for the entries of a view."""
    return tempfile.mkdtemp(prefix=_PREFIX, dir=paths.run_dir(uuid))
