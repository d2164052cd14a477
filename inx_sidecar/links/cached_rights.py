"""Bring into the kernel's cache what it needs to let the event loop walk to a directory.

The owner of a directory enters it without a look at its access control list (acl_permission_check
in fs/namei.c): so the child, as the container's root, does not bring the list into the cache. The
event loop is not the owner, and a list that is not in the cache ends its walk (check_acl in
fs/namei.c): without this, it would find out nothing after each boot of the host.
"""

import os
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from inx_sidecar.kernel.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2, opened
from inx_sidecar.links.root_directories import RootDirectory

_FLAGS: Final = os.O_PATH | os.O_DIRECTORY
_RESOLVE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


def cache_rights(roots: Sequence[RootDirectory], directories: Iterable[str]) -> None:
    """In a child: for the `directories` below the `roots`, and for those on the way."""
    ways = {way for path in directories for way in accumulate(path.split("/"), "{}/{}".format)}
    for root in roots:
        for way in {".", *ways}:
            try:
                with opened(openat2(root.fd, way, _FLAGS, _RESOLVE)) as fd:
                    os.getxattr(f"/proc/self/fd/{fd}", "system.posix_acl_access")
            except OSError:
                continue  # nearly always: it has no list
