"""Which systems of an instance are kept from the garbage collector: generations and what runs."""

import logging
from typing import Final

from inx_sidecar import generations, roots
from inx_sidecar.errors import InxError
from inx_sidecar.generations import Generations
from inx_sidecar.instance import Instance
from inx_sidecar.storepath import valid_paths

# A container may write as many links as it likes; this many of them are rooted.
_MAX_GENERATIONS: Final = 1000

log = logging.getLogger(__name__)


async def keep_systems(
    instance: Instance, present: Generations, booted: str | None, *, drop: bool = True
) -> None:
    """Root every generation, and `booted`: what runs, or is about to."""
    newest = sorted(present.links, reverse=True)[:_MAX_GENERATIONS]
    wanted = {f"system-{number}": present.links[number] for number in newest}
    if booted is not None:
        wanted["booted-system"] = booted
    real = valid_paths(wanted.values())
    wanted = {name: path for name, path in wanted.items() if path in real}
    await roots.keep(instance.lxc_name, instance.uuid, wanted, drop=drop)


async def last_look(instance: Instance) -> None:
    """Root the generations that were made inside: a stopped instance is held by nothing else."""
    try:
        present = generations.read(instance.rootfs, instance.name)
        await keep_systems(instance, present, None, drop=False)
    except InxError as error:
        log.error("%s: %s", instance.lxc_name, error)
