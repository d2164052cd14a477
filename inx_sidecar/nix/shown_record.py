"""The record of what an instance with a store of its own was shown: links in its root file system.

For each system, and for each included path, `/nix/.inx/shown` has a link with the name of the store
path. Its text is the seal of that path for this instance (seals.py). So snapshots, copies and
exports carry the record, and on another host nothing of it counts.

The container can write these links. inx reads their text and never follows them, and writes them
only in a process that has become the container's root.
"""

import heapq
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.kernel.safe_open import open_listable, open_rootfs, read_link, set_link
from inx_sidecar.kernel.syscalls import opened
from inx_sidecar.nix.store_paths import STORE_PATH

_MAX_ENTRIES: Final = 10_000
# As many have GC roots (roots/system_roots.py). A container may write any number of links.
_MOST: Final = 1000


def read(rootfs: str, instance: str) -> dict[str, str]:
    """The store paths in the record of the instance whose root file system is `rootfs`, each with
    the text of its link, any text; from the oldest link to the newest, and at most the newest 1000.

    Other entries are ignored. InstanceError if the record cannot be read, or has too many entries;
    a missing one is empty.
    """
    with opened(open_rootfs(rootfs, instance)) as root:
        try:
            record = open_listable(root, paths.SHOWN_INSIDE, instance)
        except FileNotFoundError:
            return {}
    with opened(record):
        return _read_links(record, instance)


def _read_links(record: int, instance: str) -> dict[str, str]:
    found: list[tuple[int, str]] = []
    with os.scandir(record) as entries:
        for count, entry in enumerate(entries):
            if count == _MAX_ENTRIES:
                raise InstanceError(
                    f"/{paths.SHOWN_INSIDE} of {instance!r} holds over {_MAX_ENTRIES} entries; "
                    "remove what does not belong there"
                )
            if STORE_PATH.fullmatch(f"{paths.STORE}/{entry.name}"):
                found.append((entry.stat(follow_symlinks=False).st_ctime_ns, entry.name))
    texts = ((name, read_link(record, name)) for _, name in sorted(heapq.nlargest(_MOST, found)))
    return {f"{paths.STORE}/{name}": text for name, text in texts if text is not None}


@dataclass(frozen=True)
class Record:
    """Record the store paths in `seals`, with their seals, and then remove `dropped`."""

    seals: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def apply(self, dir_fd: int) -> None:
        """Write to the record `dir_fd`. Something else in the place of a dropped link stays."""
        for path, seal in self.seals.items():
            set_link(dir_fd, os.path.basename(path), seal)
        for path in self.dropped:
            name = os.path.basename(path)
            if read_link(dir_fd, name) is not None:
                os.unlink(name, dir_fd=dir_fd)
