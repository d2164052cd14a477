"""What a root file system that does not run names: its generations and registered links.

For a copy or an import that never ran here, and for snapshots. What it holds is read as text; paths
are looked up below it alone.
"""

import os

from inx_sidecar.base.errors import InxError, RootError
from inx_sidecar.base.journal import about
from inx_sidecar.kernel.forked import TookTooLongError
from inx_sidecar.kernel.syscalls import opened
from inx_sidecar.links import indirect_roots, resolver
from inx_sidecar.nix import generations
from inx_sidecar.nix.store import valid_paths
from inx_sidecar.roots.mirror import batches, root_name
from inx_sidecar.roots.system_roots import system_roots


async def offline_roots(lxc_name: str, rootfs: str, most: int) -> dict[str, str] | None:
    """Root names and valid store paths; None if the file system is not mounted.

    RootError if not all could be looked at in time. What cannot be read is not kept: whoever made
    it so in the container has only that to lose.
    """
    try:
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with opened(root):
        texts = indirect_roots.read_inside(root, lxc_name, most)
    found: dict[str, str] = {}
    try:
        found |= system_roots(generations.read(rootfs, lxc_name))
        for batch in batches(texts):
            looked = await resolver.look_below(lxc_name, rootfs, batch)
            if looked.late is not None:
                raise TookTooLongError(f"{rootfs} took too long to look at", looked.late)
            found |= {
                root_name(indirect_roots.name_of(text), path, True): path
                for text, sight in looked.sights.items()
                for path in sight.targets
            }
    except TookTooLongError as error:
        raise RootError(f"not all that {lxc_name!r} names can be kept: {error}") from None
    except InxError as error:
        about(lxc_name).error("%s", error)
    valid = valid_paths(found.values())
    return {name: path for name, path in found.items() if path in valid}
