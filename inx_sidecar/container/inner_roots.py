"""GC roots of Nix inside, for what the host gives to an instance with a store of its own.

The profile roots the generations. Included paths have nothing inside that names them, and a system
that is activated without a generation neither. So inx keeps links in /nix/var/nix/gcroots/inx, as
the container's root.
"""

import os
import stat
from collections.abc import Mapping
from itertools import islice
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.kernel.safe_open import open_listable, set_link, unusable_path_error
from inx_sidecar.kernel.syscalls import opened

_PLACE: Final = f"{paths.GCROOTS_INSIDE}/inx"
_MAX_ENTRIES: Final = 10_000


def set_roots(
    rootfs: int, roots: Mapping[str, str], instance: str, *, keep_others: bool = False
) -> None:
    """Make `roots`, names with their store paths, the links in gcroots/inx below `rootfs`, in a
    child that is the container's root. With `keep_others`, links of other names stay.

    InstanceError if something stands in the way.
    """
    with opened(open_listable(rootfs, _PLACE, instance, make=True)) as directory:
        try:
            for name, path in roots.items():
                set_link(directory, name, path)
            for name in [] if keep_others else _links(directory):
                if name not in roots:
                    os.unlink(name, dir_fd=directory)
        except OSError as error:
            entry = error.filename2 or error.filename
            raise unusable_path_error(f"{_PLACE}/{entry}", instance, error) from None


def _links(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [
            entry.name
            for entry in islice(entries, _MAX_ENTRIES)
            if stat.S_ISLNK(entry.stat(follow_symlinks=False).st_mode)
        ]
