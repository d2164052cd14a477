"""The systems of an instance that have roots: its generations, what runs, and included paths."""

import os
from collections.abc import Iterable, Mapping
from typing import Final

from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.incus.instance import Instance
from inx_sidecar.nix import generations, shown_record
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generations import Generations
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots import direct_roots, tried_system

# The system that PID 1 runs.
BOOTED: Final = "booted-system"
# The system that was activated last, and the system that is about to be activated. With
# `activate=test`, neither is a generation.
ACTIVE: Final = "active-system"
NEXT: Final = "next-system"
# The system that was activated inside last, if it is neither of these. A container chooses it: so,
# unlike the others, it shows nothing about what inx gave to the container.
CURRENT: Final = "current-system"
# The system that was tried last, see `tried_system`.
TRIED: Final = tried_system.TRIED
# The system that comes back if the update that runs is not confirmed. Root inside may have deleted
# its generation.
BEFORE: Final = "before-system"
# The directory of the roots for the paths in user.inx.store.include.
INCLUDED: Final = "include/"
# The directory of the roots for what a store of its own was shown.
SHOWN: Final = "shown/"
# A container may write any number of generations; at most this many get roots.
_MAX_GENERATIONS: Final = 1000


def system_roots(present: Generations) -> dict[str, str]:
    """A root for every generation."""
    newest = sorted(present.links, reverse=True)[:_MAX_GENERATIONS]
    return {f"system-{number}": present.links[number] for number in newest}


def included_roots(include: Iterable[str]) -> dict[str, str]:
    """A root for every path in `include`."""
    return {f"{INCLUDED}{os.path.basename(path)[:32]}": path for path in include}


def shown_roots(shown: Iterable[str]) -> dict[str, str]:
    """A root for every path in `shown`, which a store of its own was shown."""
    newest = list(shown)[-_MAX_GENERATIONS:]
    return {f"{SHOWN}{os.path.basename(path)[:32]}": path for path in newest}


def shown_to(instance: Instance) -> list[str]:
    """What a store of its own was shown, as the root file system of the instance says.

    Also while it has another kind of store: what was built inside needs it when that comes back.
    """
    return list(shown_record.read(instance.rootfs, instance.name))


def read_rooted(lxc_name: str, uuid: str) -> dict[str, str]:
    """The roots of systems and of included paths that exist, and what they hold."""
    place = direct_roots.directory(lxc_name, uuid)
    within = (direct_roots.read(place, directory) for directory in (INCLUDED, SHOWN))
    return direct_roots.read_top(place) | dict(pair for roots in within for pair in roots.items())


def unwanted_roots(
    present: Generations,
    include: Iterable[str],
    rooted: Mapping[str, str],
    shown: Iterable[str] = (),
) -> list[str]:
    """The roots, among `rooted`, of systems, of included and of `shown` paths that an instance
    which runs does not name any more."""
    wanted = system_roots(present) | included_roots(include) | shown_roots(shown)
    return [
        name
        for name, path in rooted.items()
        if ("/" not in name or name.startswith((INCLUDED, SHOWN)))
        and name not in (BOOTED, ACTIVE, NEXT, CURRENT, TRIED, BEFORE)
        and wanted.get(name) != path
    ]


async def add_included_roots(
    gc: GcClient, lxc_name: str, uuid: str, include: Iterable[str]
) -> None:
    """Root the paths that the configuration includes, before the next start needs them."""
    await direct_roots.add(gc, lxc_name, uuid, included_roots(valid_paths(include)))


async def add_system_roots(
    gc: GcClient,
    instance: Instance,
    present: Generations,
    booted: str | None,
    include: Iterable[str] = (),
) -> None:
    """Root every generation, `include`, what a store of its own was shown, and `booted`: the system
    that runs, or is about to."""
    wanted = system_roots(present) | included_roots(include) | shown_roots(shown_to(instance))
    if booted is not None:
        wanted[BOOTED] = booted
    if tried := tried_system.read(instance.uuid):  # the instance may have been renamed
        wanted[TRIED] = tried.system
    # Each start comes here twice, nearly always with roots that exist: then Nix is not asked.
    lxc_name, uuid = instance.lxc_name, instance.uuid
    new = {
        name: path
        for name, path in wanted.items()
        if direct_roots.path_of(lxc_name, uuid, name) != path
    }
    valid = valid_paths(new.values())
    new = {name: path for name, path in new.items() if path in valid}
    await direct_roots.add(gc, lxc_name, uuid, new)


async def add_roots_of_stopped(gc: GcClient, instance: Instance) -> None:
    """Root the generations that were made inside: nothing else keeps them after a stop."""
    try:
        present = generations.read(instance.rootfs, instance.name)
        await add_system_roots(gc, instance, present, None)
    except InxError as error:
        instance_log(instance.lxc_name).error("%s", error)
