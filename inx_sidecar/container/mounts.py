"""Show the host's store, and other directories, inside a container.

The store is attached before the container's init begins. An isolated container that gets another
system while it runs gets another view of the store.
"""

import os
from collections.abc import Sequence
from typing import Final

from inx_sidecar.container.files import apply_change
from inx_sidecar.container.locked_mounts import (
    READ_ONLY,
    HostDirectory,
    attach_locked,
    make_directory,
    move_mounts,
)
from inx_sidecar.container.namespaces import Container
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.syscalls import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MS_PRIVATE,
    mount_setattr,
    move_mount,
    open_tree,
    opened,
)
from inx_sidecar.nix.generation_changes import Change

_NIX_STATE: Final = "nix/var/nix"
_WRITABLE: Final = ("profiles", "gcroots")


async def attach_mounts(
    container: Container,
    directories: Sequence[HostDirectory],
    change: Change | None,
    *,
    protect: bool = True,
    await_exit: bool = True,
) -> bool:
    """Attach `directories`, the store first if it is among them, and apply `change` to the profile.

    Returns whether the container sees the owners of the first directory mapped to its own user ids.

    With `protect`, also makes the container's own /nix/var/nix read-only, except for profiles and
    gcroots: a Nix client that can write to /nix/var/nix opens a database of its own instead of
    asking the daemon, and a collection inside would then take the whole shared store for garbage.

    `await_exit` is that of `forked.run_in_child`.
    """
    name = container.name
    targets = [directory.target for directory in directories]

    def attach(root: int, locked: Sequence[int]) -> forked.Result:
        for target in (*targets, *(f"{_NIX_STATE}/{directory}" for directory in _WRITABLE)):
            os.close(make_directory(root, target, name))
        if change is not None:
            apply_change(root, name, change)
        if protect:
            _protect_nix_state(root, name)
        move_mounts(locked, root, targets, name)
        return None, []

    mapped, _ = await attach_locked(container, directories, attach, await_exit=await_exit)
    return mapped


async def attach_store_over(
    container: Container, store: HostDirectory, change: Change | None
) -> bool:
    """Attach `store` to a running container over the store that is there, then apply `change`.

    Returns whether the container sees the store's owners mapped to its own user ids. The mount
    below is not taken away: processes that use it go on.
    """

    def attach(root: int, locked: Sequence[int]) -> forked.Result:
        move_mounts(locked, root, [store.target], container.name)
        if change is not None:
            apply_change(root, container.name, change)
        return None, []

    mapped, _ = await attach_locked(container, [store], attach)
    return mapped


def _protect_nix_state(root: int, name: str) -> None:
    with opened(make_directory(root, _NIX_STATE, name)) as place:
        state = open_tree(place, "")
        writable = [open_tree(make_directory(place, entry, name), "") for entry in _WRITABLE]
        mount_setattr(state, READ_ONLY, propagation=MS_PRIVATE)
        move_mount(state, place)
    for fd, entry in zip(writable, _WRITABLE, strict=True):
        mount_setattr(fd, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, propagation=MS_PRIVATE)
        with opened(make_directory(root, f"{_NIX_STATE}/{entry}", name)) as place:
            move_mount(fd, place)
