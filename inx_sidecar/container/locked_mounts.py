"""Attach directories of the host inside a container, read-only for ever.

Every mount is made detached, so the host's mount table never shows it and nothing has to be
cleaned up. Each mount passes through the *lock step*: a mount that enters a mount namespace owned
by a less privileged user namespace has its flags locked by the kernel (mount_namespaces(7)).
Without the lock step, the container's root could remount /nix/store writable and write to the
host's store as root.
"""

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import MountError
from inx_sidecar.container.namespaces import Container
from inx_sidecar.container.overlay import mount_entries
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.safe_open import open_directory
from inx_sidecar.kernel.superblocks import OVERLAY, kind_of
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_REC,
    detach,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    opened,
    setns,
    unshare,
)

READ_ONLY: Final = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV


@dataclass(frozen=True)
class HostDirectory:
    """`source` of the host appears read-only at `target`, a path below the container's root.

    With `entries`, the container sees only the entries of these names. `layer` is then an empty
    directory of the host that holds them, if more may be shown later. With `foreign`, nobody in the
    container owns the files: only an owner can take leases on a file, and a lease delays everybody
    who opens the same file (fcntl(2), F_SETLEASE).
    """

    source: str
    target: str
    entries: frozenset[str] | None = None
    foreign: bool = False
    layer: str | None = None

    def describe(self) -> str:
        part = "" if self.entries is None else f"{len(self.entries)} entries of "
        return f"{part}{self.source} at /{self.target}"


async def attach_locked(
    container: Container,
    directories: Sequence[HostDirectory],
    attach: Callable[[int, Sequence[int]], forked.Result],
    *,
    await_exit: bool = True,
) -> tuple[bool, forked.Result]:
    """Call `attach` in a child that has become the container's root.

    `attach` gets the container's root directory and the mounts of `directories` after the lock
    step. Returns whether the owners of the first directory are mapped, and what `attach` returns.
    `await_exit` is that of `forked.run_in_child`.
    """
    action = f"attaching the store of {container.name!r}"
    with ExitStack() as fds:
        clones = [fds.enter_context(opened(_clone_mount(directory))) for directory in directories]
        layers = [
            fds.enter_context(opened(_clone_layer(directory.layer))) if directory.layer else None
            for directory in directories
        ]
        mapped = [
            directory.foreign or _map_owners(fd, container)
            for directory, fd in zip(directories, clones, strict=True)
        ]

        def lock() -> list[int]:
            return _lock_flags(directories, clones, layers, container)

        def enter(locked: Sequence[int]) -> forked.Result:
            return attach(container.enter(from_its_user_namespace=not container.privileged), locked)

        for_locks = [*clones, *(layer for layer in layers if layer is not None)]
        if container.privileged:
            # A first child locks the mounts in a user namespace made for the purpose. That child
            # cannot return to the host's user namespace, so a second child attaches them.
            _, locked = await forked.run_in_child(
                lambda: (None, lock()),
                action,
                fds=[*for_locks, *container.fds],
                instance=container.name,
            )
            for fd in locked:
                fds.callback(os.close, fd)
            needed = [*locked, *container.fds]
            result = await forked.run_in_child(
                lambda: enter(locked), action, fds=needed, instance=container.name,
                await_exit=await_exit,
            )  # fmt: skip
        else:
            needed = [*for_locks, *container.fds]
            result = await forked.run_in_child(
                lambda: enter(lock()), action, fds=needed, instance=container.name,
                await_exit=await_exit,
            )  # fmt: skip
    return mapped[0], result


def _clone_mount(directory: HostDirectory) -> int:
    """A detached read-only copy of the mount.

    The copy is private: a copy of a shared mount is its peer, so a mount made below one of them
    would show below the other (mount_namespaces(7)).
    """
    try:
        fd = open_tree(AT_FDCWD, directory.source)
        try:
            mount_setattr(fd, READ_ONLY, propagation=MS_PRIVATE)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        raise MountError(f"cannot mount {directory.source}: {error.strerror}") from None
    return fd


def _clone_layer(path: str) -> int:
    """A detached copy of the directory `path`, which the host's mount table does not show."""
    try:
        fd = open_tree(AT_FDCWD, path)
        mount_setattr(fd, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, propagation=MS_PRIVATE)
    except OSError as error:
        raise MountError(f"cannot mount {path}: {error.strerror}") from None
    return fd


def _map_owners(fd: int, container: Container) -> bool:
    """Map the owners of the mount to the container's user ids; False if its file system cannot. A
    privileged container has the user ids of the host."""
    if container.privileged:
        return True
    try:
        mount_setattr(fd, MOUNT_ATTR_IDMAP, userns_fd=container.user)
    except OSError as error:
        # overlayfs, 9p and others cannot map owners (mount_setattr(2), EINVAL).
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise MountError(f"cannot map the owners of a mount: {error.strerror}") from None
        return False
    return True


def _lock_flags(
    directories: Sequence[HostDirectory],
    clones: Sequence[int],
    layers: Sequence[int | None],
    container: Container,
) -> list[int]:
    """The lock step, in a child: a copy of each of `clones`, the mounts of `directories`, with
    locked flags. `layers` are those of the directories of which only entries are shown.

    The child is then in the user namespace of the container, or, for a privileged one, in a new
    user namespace.
    """
    unshare(CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("inx", paths.RUN, "tmpfs", 0, "mode=755")
    for number, (directory, fd, layer) in enumerate(zip(directories, clones, layers, strict=True)):
        place = f"{paths.RUN}/{number}"
        if directory.entries is not None:
            owner = container.root_ids()
            fd = mount_entries(directory.entries, fd, owner, f"{place}.layers", layer)
        os.mkdir(place)
        with opened(os.open(place, os.O_PATH | os.O_CLOEXEC)) as target:
            move_mount(fd, target)
    if container.privileged:
        # A privileged container has the host's user namespace; the kernel locks the flags only in
        # a less privileged one, and any such one will do.
        unshare(CLONE_NEWUSER)
    else:
        setns(container.user, CLONE_NEWUSER)
    unshare(CLONE_NEWNS)
    return [open_tree(AT_FDCWD, f"{paths.RUN}/{number}") for number in range(len(clones))]


def move_mounts(mounts: Sequence[int], root: int, targets: Sequence[str], name: str) -> None:
    """Attach each of `mounts` at its target below `root`; missing directories are made."""
    for fd, target in zip(mounts, targets, strict=True):
        with opened(make_directory(root, target, name)) as place:
            move_mount(fd, place)


def detach_overlays(root: int, targets: Sequence[str], name: str) -> None:
    """In a child that is the container's root: unmount the overlays at `targets` below `root`."""
    for target in targets:
        with suppress(OSError):  # nothing is there, or the root file system itself is an overlay
            while True:
                with opened(open_directory(root, target, name)) as place:
                    if kind_of(place) != OVERLAY:
                        break
                    os.fchdir(place)
                detach(".")
    os.chdir("/")


def make_directory(start: int, path: str, name: str) -> int:
    """An O_PATH descriptor of the directory `path` below `start`; missing directories are made."""
    return open_directory(start, path, name, make=True)
