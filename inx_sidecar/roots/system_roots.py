"""Which systems of an instance are kept from the garbage collector: generations and what runs."""

import os
from collections.abc import Iterable, Mapping
from typing import Final

from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import about
from inx_sidecar.incus.instance import Instance
from inx_sidecar.nix import generations
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generations import Generations
from inx_sidecar.nix.store import valid_paths
from inx_sidecar.roots import direct_roots

BOOTED: Final = "booted-system"
# What was activated last, and what is about to be: none may be a generation.
ACTIVE: Final = "active-system"
NEXT: Final = "next-system"
# Roots of what user.inx.store.include names.
INCLUDED: Final = "include/"
# A container may write as many links as it likes; this many of them are rooted.
_MAX_GENERATIONS: Final = 1000


def system_roots(present: Generations) -> dict[str, str]:
    """A root for every generation."""
    newest = sorted(present.links, reverse=True)[:_MAX_GENERATIONS]
    return {f"system-{number}": present.links[number] for number in newest}


def included_roots(include: Iterable[str]) -> dict[str, str]:
    """A root for every path that is shown in addition."""
    return {f"{INCLUDED}{os.path.basename(path)[:32]}": path for path in include}


async def add_included_roots(
    gc: GcClient, lxc_name: str, uuid: str, include: Iterable[str]
) -> None:
    """Root what the configuration includes, from now on and not only from the next start."""
    await direct_roots.add(gc, lxc_name, uuid, included_roots(valid_paths(include)))


def superfluous(
    present: Generations, include: Iterable[str], rooted: Mapping[str, str]
) -> list[str]:
    """The roots, among `rooted`, of systems and included paths that a running instance no longer
    names."""
    wanted = system_roots(present) | included_roots(include)
    return [
        name
        for name, path in rooted.items()
        if ("/" not in name or name.startswith(INCLUDED))
        and name not in (BOOTED, ACTIVE, NEXT)
        and wanted.get(name) != path
    ]


async def add_system_roots(
    gc: GcClient,
    instance: Instance,
    present: Generations,
    booted: str | None,
    include: Iterable[str] = (),
) -> None:
    """Root every generation, `include`, and `booted`: what runs, or is about to."""
    wanted = system_roots(present) | included_roots(include)
    if booted is not None:
        wanted[BOOTED] = booted
    real = valid_paths(wanted.values())
    wanted = {name: path for name, path in wanted.items() if path in real}
    await direct_roots.add(gc, instance.lxc_name, instance.uuid, wanted)


async def add_roots_of_stopped(gc: GcClient, instance: Instance) -> None:
    """Root the generations that were made inside: a stopped instance is held by nothing else."""
    try:
        present = generations.read(instance.rootfs, instance.name)
        await add_system_roots(gc, instance, present, None)
    except InxError as error:
        about(instance.lxc_name).error("%s", error)
