"""Tell a garbage collection that runs of roots that exist, when a sidecar has started.

The sidecar before it may have died after it made a root, and before it told a collection of it.
"""

import logging

from inx_sidecar.base.errors import InxError
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.inventory import Owner
from inx_sidecar.roots.link_roots import LINKS

log = logging.getLogger(__name__)


async def repeat_temp_roots(gc: GcClient, running: set[Owner]) -> None:
    """Add a temporary root for each root, except for links of the instances that run: these links
    may be gone, and the first comparison of each instance tells of those that exist."""
    try:
        for owner in direct_roots.owners():
            present = direct_roots.read(direct_roots.directory(*owner))
            await gc.add_temp_roots(
                path
                for root, path in present.items()
                if owner not in running or not root.startswith(LINKS)
            )
    except (InxError, OSError) as error:
        log.error("%s", error)
