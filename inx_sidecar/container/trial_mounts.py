"""Trial mounts: whether this kernel and the store's file system allow what containers need.

Both functions run in a forked child, and leave nothing behind when the child ends.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import MountError
from inx_sidecar.container.overlay import mount_entries
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MOUNT_ATTR_IDMAP,
    MS_PRIVATE,
    MS_REC,
    mount,
    mount_setattr,
    open_tree,
    opened,
    unshare,
)

_FIRST_ID: Final = 1_000_000


def try_mapping_owners() -> forked.Result:
    """Map the owners of the store; OSError if its file system cannot."""
    with opened(open_tree(AT_FDCWD, paths.STORE)) as store, _user_namespace() as user:
        mount_setattr(store, MOUNT_ATTR_IDMAP, userns_fd=user)
    return None, []


def try_isolated_store() -> forked.Result:
    """Show two entries of the store, and nothing else of it; MountError if this kernel cannot."""
    unshare(CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("inx", paths.RUN, "tmpfs", 0, "mode=755")
    names = frozenset(sorted(os.listdir(paths.STORE))[:2])
    with opened(open_tree(AT_FDCWD, paths.STORE)) as store, _user_namespace() as user:
        try:
            mount_setattr(store, MOUNT_ATTR_IDMAP, userns_fd=user)
        except OSError:
            # An instance starts without mapped owners too; `try_mapping_owners` reports them.
            pass
        with opened(
            mount_entries(names, store, (_FIRST_ID, _FIRST_ID), f"{paths.RUN}/layers")
        ) as view:
            with opened(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=view)) as directory:
                seen = os.listdir(directory)
    if set(seen) != names:
        raise MountError(f"it shows {seen} instead of {sorted(names)}")
    return None, []


@contextmanager
def _user_namespace() -> Iterator[int]:
    """A user namespace with the same shape of id maps as that of an unprivileged container."""
    go, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        unshare(CLONE_NEWUSER)
        os.write(done[1], b"1")
        os.read(go[0], 1)
        os._exit(0)
    try:
        os.read(done[0], 1)
        for map_name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{map_name}", "w") as file:
                file.write(f"0 {_FIRST_ID} 65536")
        with opened(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)) as user:
            yield user
    finally:
        os.write(go[1], b"1")
        os.waitpid(pid, 0)
