"""Give a container a store of its own: what the host shows below, what Nix inside makes on top.

The *shown layer* is the view of an isolated container (overlay.py), read-only and locked. The
*upper layer* is a directory in the root file system of the instance, so that snapshots, copies,
exports and quotas have it. The store is an overlay of both, which the container's root mounts, and
writes through a copy of the mount of its own root directory: so all that it writes belongs to whom
it would belong without an overlay, whatever maps the owners.

The overlay has the option `userxattr`. So no attribute in the upper layer leads to anything else
(Documentation/filesystems/overlayfs.rst, "user xattr"), and below it is only what is shown.

The shown layer is attached inside at /nix/.inx. There it covers the upper layer, and a sidecar
finds it there later.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, MountError
from inx_sidecar.container.files import apply_change
from inx_sidecar.container.inner_roots import set_roots
from inx_sidecar.container.locked_mounts import (
    HostDirectory,
    attach_locked,
    detach_overlays,
    make_directory,
    move_mounts,
)
from inx_sidecar.container.namespaces import Container
from inx_sidecar.container.upper_layer import clear_work, give_way
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.safe_open import open_directory, open_listable, unusable_path_error
from inx_sidecar.kernel.superblocks import OVERLAY, kind_name, kind_of
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    opened,
    setns,
    unshare,
)
from inx_sidecar.nix.generation_changes import Change
from inx_sidecar.nix.shown_record import Record

# Where the child mounts, among its own mounts.
_SHOWN: Final = "/nix/shown"
_ROOT: Final = "/nix/root"
_MERGED: Final = "/nix/merged"
_PRIVATE_MODE: Final = 0o700
# As Nix makes /nix/store: whoever builds may add, and removes only what is his.
_STORE_MODE: Final = 0o1775
_OPTIONS: Final = "userxattr,index=off,nfs_export=off,xino=off"
_ATTRIBUTE: Final = "user.inx"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_WRITABLE: Final = ("nix/var/nix/profiles", "nix/var/nix/gcroots")


@dataclass(frozen=True)
class OwnStore:
    """A store that was attached. `mapped`: the container sees the owners of what is shown mapped to
    its own user ids. `view_device` is the device number of the shown layer."""

    mapped: bool
    view_device: int


async def open_nix(container: Container) -> int:
    """An O_PATH descriptor of /nix in the instance's root file system, which is made if it is
    missing. The mount that it is on follows no link and has no devices; no other one is below it.

    InstanceError if something stands in the way.
    """

    def find() -> forked.Result:
        with opened(container.enter()) as root, opened(clone_root(root)) as rootfs:
            return None, [make_directory(rootfs, "nix", container.name)]

    action = f"opening /nix of {container.name!r}"
    _, (nix,) = await forked.run_in_child(
        find, action, fds=container.fds, instance=container.name
    )  # fmt: skip
    return nix


async def attach_own_store(
    container: Container,
    view: HostDirectory,
    others: Sequence[HostDirectory],
    *,
    uncovered: frozenset[str],
    change: Change | None,
    record: Record,
    roots: Mapping[str, str],
) -> OwnStore:
    """Attach a store of its own, and `others`; apply `change` to the profile, and `record`. `roots`
    are what inx keeps from the garbage collector inside.

    `view` is the shown layer: entries of the host's store, in a layer on the host, at OWN_INSIDE.
    `uncovered` are the names that were deleted inside and are to be there again. Nothing else runs
    inside yet.

    MountError if the kernel cannot do it with the host's store; InstanceError if the root file
    system of the instance cannot hold the upper layer, or something stands in the way.
    """
    name = container.name
    _refuse_overlay(view.source, name)
    names = view.entries or frozenset()

    def attach(root: int, locked: Sequence[int]) -> forked.Result:
        # A former attempt in this container may have ended before it was recorded. Two overlays
        # over one upper layer are undefined.
        detach_overlays(root, [paths.STORE_INSIDE, view.target], name)
        for target in (*_WRITABLE, paths.STORE_INSIDE, *(other.target for other in others)):
            os.close(make_directory(root, target, name))
        rootfs = clone_root(root)
        _make_layers(rootfs, name)
        if change is not None:
            apply_change(root, name, change)
        # What was shown is recorded before it is shown.
        apply_record(rootfs, Record(record.seals), name)
        set_roots(rootfs, roots, name)
        move_mounts(locked, root, [view.target, *(other.target for other in others)], name)
        # Only an attached mount can be copied.
        with opened(open_directory(root, view.target, name)) as place:
            shown = open_tree(place, "")
        give_way(rootfs, names, uncovered, name)
        clear_work(rootfs, name)
        store = _mount_store(shown, rootfs, name)
        setns(container.mount, CLONE_NEWNS)
        move_mounts([store], root, [paths.STORE_INSIDE], name)
        apply_record(rootfs, Record({}, record.dropped), name)
        return os.fstat(shown).st_dev, []

    mapped, (device, _) = await attach_locked(container, [view, *others], attach)
    return OwnStore(mapped, int(device))


def _refuse_overlay(source: str, instance: str) -> None:
    try:
        with opened(os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as store:
            is_overlay = kind_of(store) == OVERLAY
    except OSError as error:
        raise MountError(f"cannot open {source}: {error.strerror}") from None
    if is_overlay:
        # FILESYSTEM_MAX_STACK_DEPTH is 2 (include/linux/fs.h).
        raise MountError(
            f"the store of {instance!r} cannot be writable: the host's {source} is on an "
            "overlay, and the kernel stacks two at most; use user.inx.store=isolated, or put the "
            "store on another file system"
        )


def _make_layers(rootfs: int, instance: str) -> None:
    """Make the directories of inx in the root file system; their modes are set once."""
    for path, mode in (
        (paths.OWN_INSIDE, _PRIVATE_MODE),
        (paths.UPPER_INSIDE, _STORE_MODE),
        (paths.WORK_INSIDE, _PRIVATE_MODE),
        (paths.SHOWN_INSIDE, _PRIVATE_MODE),
    ):
        try:
            os.close(open_directory(rootfs, path, instance))
        except FileNotFoundError:
            with opened(make_directory(rootfs, path, instance)) as directory:
                os.chmod(".", mode, dir_fd=directory)


def clone_root(root: int) -> int:
    """In a child that is the container's root: a detached copy of the mount at its root directory,
    without what is mounted below. It follows no link."""
    rootfs = open_tree(root, "")
    flags = MOUNT_ATTR_NOSYMFOLLOW | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    mount_setattr(rootfs, flags, propagation=MS_PRIVATE)
    return rootfs


def _mount_store(shown: int, rootfs: int, instance: str) -> int:
    """A detached overlay of `shown` and of the upper layer in `rootfs`.

    The child gets a mount namespace of its own, since the layers need paths: before Linux 6.13
    there is no other way to name them.
    """
    unshare(CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("inx", "/nix", "tmpfs", MS_NOSUID | MS_NODEV, "mode=700")
    for fd, place in ((shown, _SHOWN), (rootfs, _ROOT)):
        os.mkdir(place)
        with opened(os.open(place, os.O_PATH | os.O_CLOEXEC)) as target:
            move_mount(fd, target)
    os.mkdir(_MERGED)
    upper, work = (f"{_ROOT}/{path}" for path in (paths.UPPER_INSIDE, paths.WORK_INSIDE))
    data = f"lowerdir={_SHOWN},upperdir={upper},workdir={work},{_OPTIONS}"
    try:
        _try_attributes(upper)
        mount("inx", _MERGED, "overlay", MS_NOSUID | MS_NODEV, data)
    except OSError as error:
        if error.errno in _FULL:
            raise InstanceError(
                f"the root file system of {instance!r} has no space for the store "
                f"({error.strerror}); free space, or give the root device a larger size"
            ) from None
        raise InstanceError(
            f"the root file system of {instance!r} ({kind_name(rootfs)}) cannot be the upper layer "
            f"of an overlay ({error.strerror}); move the instance to a pool on ext4, xfs, btrfs or "
            "ZFS 2.2, or use user.inx.store=isolated"
        ) from None
    return open_tree(AT_FDCWD, _MERGED)


def _try_attributes(upper: str) -> None:
    """OSError if the upper layer cannot have attributes: an overlay does without them, and then
    forgets which directories it has replaced. A full file system has those that are there."""
    try:
        os.setxattr(upper, _ATTRIBUTE, b"")
        os.removexattr(upper, _ATTRIBUTE)
    except OSError as error:
        if error.errno not in _FULL:
            raise


def apply_record(rootfs: int, record: Record, instance: str) -> None:
    """In a child that is the container's root: apply `record` below the root file system."""
    with opened(open_listable(rootfs, paths.SHOWN_INSIDE, instance)) as directory:
        try:
            record.apply(directory)
        except OSError as error:
            entry = error.filename2 or error.filename
            raise unusable_path_error(f"{paths.SHOWN_INSIDE}/{entry}", instance, error) from None
