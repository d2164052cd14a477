"""The text of a link in the root file system of an instance, if the kernel has it in its cache.

The look begins at the root file system as the host mounts it, not as the container sees it: the
mounts of the container are not there. So only the host's own storage is asked. The kernel does not
leave that mount and the directory (RESOLVE_NO_XDEV, RESOLVE_IN_ROOT), and what is not in the cache
of directory entries counts as missing (RESOLVE_CACHED; see link_state.py), as does what lies below
a directory where any mount namespace has a mount (__follow_mount_rcu in fs/namei.c). So the event
loop may look, also while the container runs.

What the container sees may be another link. So a look like this never says that a root can go.
"""

import os
from collections.abc import Mapping
from typing import Final

from inx_sidecar.kernel.syscalls import (
    RESOLVE_CACHED,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_XDEV,
    openat2,
    opened,
)
from inx_sidecar.links.time_limit import TimeLimit
from inx_sidecar.nix.store_paths import store_path_of

_RESOLVE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV | RESOLVE_CACHED


def find_cached(rootfs: str, texts: Mapping[str, str]) -> dict[str, str]:
    """The store paths that links at the registered paths `texts` lead to, by the name of the
    registration, where the kernel knows them, and as many as may take the event loop's time."""
    found: dict[str, str] = {}
    limit = TimeLimit()
    try:
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return found
    with opened(root):
        for name, text in texts.items():
            if limit.passed:
                break
            try:
                with opened(openat2(root, text, os.O_PATH | os.O_NOFOLLOW, _RESOLVE)) as link:
                    path = store_path_of(os.readlink("", dir_fd=link))
            except OSError:
                continue
            if path is not None:
                found[name] = path
    return found
