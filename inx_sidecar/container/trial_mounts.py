"""Trial mounts: whether this kernel and the store's file system allow what containers need.

The functions run in a forked child, and leave nothing behind when the child ends.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import MountError
from inx_sidecar.container.overlay import ENTRIES, add_entries, mount_entries
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.superblocks import drop_cached_names
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MOUNT_ATTR_IDMAP,
    MS_PRIVATE,
    MS_REC,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    opened,
    unshare,
)

_FIRST_ID: Final = 1_000_000
_OWN_PLACES: Final = ("layer", "shown", "upper", "work", "merged")


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


def try_own_store() -> forked.Result:
    """Mount a writable overlay over two entries of the store, add a third one, and see it there;
    MountError if this kernel cannot."""
    unshare(CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("inx", paths.RUN, "tmpfs", 0, "mode=755")
    layer, shown, upper, work, merged = (f"{paths.RUN}/{name}" for name in _OWN_PLACES)
    for place in (layer, shown, upper, work, merged):
        os.mkdir(place)
    *names, later = sorted(os.listdir(paths.STORE))[:3] or [""]
    if not later:
        return None, []  # nothing is shown of an empty store
    with ExitStack() as fds:
        tree = fds.enter_context(opened(open_tree(AT_FDCWD, paths.STORE)))
        layer_fd = fds.enter_context(opened(open_tree(AT_FDCWD, layer)))
        mount_setattr(layer_fd, 0, propagation=MS_PRIVATE)
        view = mount_entries(names, tree, (0, 0), f"{paths.RUN}/layers", layer_fd)
        move_mount(fds.enter_context(opened(view)), fds.enter_context(_place(shown)))
        # A tmpfs has attributes of users since Linux 6.6 only, so others stand in for them.
        data = f"lowerdir={shown},upperdir={upper},workdir={work},redirect_dir=nofollow"
        mount("inx", merged, "overlay", 0, data)
        before = set(os.listdir(merged)), os.path.lexists(f"{merged}/{later}")
        store, entries, below, above = (
            fds.enter_context(_place(place))
            for place in (paths.STORE, f"{layer}/{ENTRIES}", shown, merged)
        )
        add_entries(entries, [later], store, (0, 0))
        drop_cached_names(below, os.fstat(below).st_dev, read_only=True)
        drop_cached_names(above, os.fstat(above).st_dev)
    if before != (set(names), False) or not os.path.lexists(f"{merged}/{later}"):
        raise MountError("what is added to it does not appear")
    return None, []


def _place(path: str) -> AbstractContextManager[int]:
    return opened(os.open(path, os.O_PATH | os.O_CLOEXEC))


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
