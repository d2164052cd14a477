"""GC roots for the generations and links in the rootfs of a copy, an import or a snapshot.

No container uses such a root file system now. Links are read as text. Paths are looked up below
this root file system alone.
"""

import os

from inx_sidecar.base.errors import InxError, RootError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.kernel.forked import TookTooLongError
from inx_sidecar.links import indirect_roots
from inx_sidecar.links.registration_copy import read_copy
from inx_sidecar.links.resolver import resolve_links_offline
from inx_sidecar.nix import generations, shown_record
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots.link_roots import batches, root_name
from inx_sidecar.roots.system_roots import shown_roots, system_roots


async def offline_roots(lxc_name: str, rootfs: str, most: int) -> dict[str, str] | None:
    """Root names and valid store paths, from at most `most` links; None if the file system is not
    mounted.

    RootError if not all could be looked at in time, or if the file system came or went meanwhile:
    Incus mounts it for a moment, as for `incus file`. What cannot be read is not kept: only the
    container itself can have made it so, and only the container loses by it.
    """
    mounted = _identity(rootfs)
    try:
        texts = await read_copy(rootfs, lxc_name, most)
    except FileNotFoundError:
        return None
    found: dict[str, str] = {}
    try:
        found |= system_roots(generations.read(rootfs, lxc_name))
        found |= shown_roots(shown_record.read(rootfs, lxc_name))
        for batch in batches(texts):
            resolution = await resolve_links_offline(lxc_name, rootfs, batch)
            if resolution.child_exited is not None:
                raise TookTooLongError(
                    f"{rootfs} took too long to look at", resolution.child_exited
                )
            found |= {
                root_name(indirect_roots.name_of(text), path, True): path
                for text, link in resolution.links.items()
                for path in link.targets
            }
    except TookTooLongError as error:
        raise RootError(f"not all that {lxc_name!r} names can be kept: {error}") from None
    except InxError as error:
        instance_log(lxc_name).error("%s", error)
    if _identity(rootfs) != mounted:
        raise RootError(
            f"not all that {lxc_name!r} names can be kept: its storage was mounted or unmounted "
            "meanwhile"
        )
    valid = valid_paths(found.values())
    return {name: path for name, path in found.items() if path in valid}


def _identity(rootfs: str) -> tuple[int, int] | None:
    try:
        status = os.stat(rootfs)
    except OSError:
        return None
    return status.st_dev, status.st_ino
