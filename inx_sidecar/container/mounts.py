"""Attach host directories inside a container, read-only for good, and never on the host.

Every mount is made detached, so the host's mount table never shows it and nothing has to be
cleaned up. Each passes through the *lock step*: a mount that enters a mount namespace owned by a
less privileged user namespace has its flags locked by the kernel (mount_namespaces(7)); otherwise
the container's root could remount /nix/store writable and write the host's store as root.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Self

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, MountError
from inx_sidecar.container.overlay import show_only
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.rootfs import in_the_way, open_directory
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
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    openat2,
    opened,
    setns,
    unshare,
)
from inx_sidecar.nix.generations import Change

_RESOLVE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_NIX_STATE: Final = "nix/var/nix"
_WRITABLE: Final = ("profiles", "gcroots")
_READ_ONLY: Final = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV


@dataclass(frozen=True)
class HostDirectory:
    """`source` of the host appears read-only at `target`, a path below the container's root.

    With `only`, no more of it than the entries of these names.
    """

    source: str
    target: str
    only: frozenset[str] | None = None

    def describe(self) -> str:
        what = "" if self.only is None else f"{len(self.only)} entries of "
        return f"{what}{self.source} at /{self.target}"


class Container:
    """The namespaces of a running container, held open, so that its PID cannot be mistaken."""

    def __init__(self, pid: int, name: str) -> None:
        self.pid = pid
        self.name = name
        try:
            self.user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.mount = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                os.close(self.user)
                raise
        except OSError as error:
            raise InstanceError(f"process {pid} of {name!r} is gone: {error.strerror}") from None
        own = os.stat("/proc/self/ns/user")
        self.privileged = os.path.samestat(os.fstat(self.user), own)

    def root_ids(self) -> tuple[int, int]:
        """The user and group of the host that its root is (user_namespaces(7), uid_map)."""
        return _first_id(self.pid, "uid_map"), _first_id(self.pid, "gid_map")

    def close(self) -> None:
        for fd in (self.user, self.mount):
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enter(self, *, from_its_user_namespace: bool = False) -> int:
        """Become the container's root, with its rights and no others; only in a forked child.

        An O_PATH descriptor of the container's root directory.
        """
        if not self.privileged and not from_its_user_namespace:
            setns(self.user, CLONE_NEWUSER)
        setns(self.mount, CLONE_NEWNS)
        self._take_its_root()
        return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def become_its_root(self) -> None:
        """As `enter`, but stay among the host's mounts: it is reached by descriptors."""
        if not self.privileged:
            setns(self.user, CLONE_NEWUSER)
        self._take_its_root()

    def _take_its_root(self) -> None:
        if not self.privileged:
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        os.umask(0o022)


def _first_id(pid: int, kind: str) -> int:
    with open(f"/proc/{pid}/{kind}") as file:
        rows = [[int(word) for word in line.split()] for line in file]
    for inside, outside, _ in rows:
        if inside == 0:
            return outside
    raise MountError(f"process {pid} has no root among its users")


async def attach(
    container: Container, directories: Sequence[HostDirectory], change: Change | None
) -> bool:
    """Attach `directories` and apply `change` to the profile; True if the owners of the first,
    the store, are mapped.

    Also makes the container's own /nix/var/nix read-only but for profiles and gcroots: Nix takes a
    writable one as a sign to open a store of its own instead of asking the daemon, and would then
    take the whole shared store for garbage.
    """
    name = container.name
    targets = [directory.target for directory in directories]

    def inside(root: int, locked: Sequence[int]) -> None:
        for target in (*targets, *(f"{_NIX_STATE}/{directory}" for directory in _WRITABLE)):
            os.close(_make(root, target, name))
        if change is not None:
            _apply(root, name, change)
        _protect_nix_state(root, name)
        _put(locked, root, targets, name)

    return await _bring(container, directories, inside)


async def show(container: Container, store: HostDirectory, change: Change | None) -> bool:
    """Attach `store` to a container that runs, over what is there, then apply `change`; True if its
    owners are mapped.

    Who uses what lies under it goes on: a mount is not taken away.
    """

    def inside(root: int, locked: Sequence[int]) -> None:
        _put(locked, root, [store.target], container.name)
        if change is not None:
            _apply(root, container.name, change)

    return await _bring(container, [store], inside)


async def _bring(
    container: Container,
    directories: Sequence[HostDirectory],
    inside: Callable[[int, Sequence[int]], None],
) -> bool:
    """Call `inside` in a child that has become the container's root, with its root directory and
    the locked mounts of `directories`; True if the owners of the first are mapped."""
    what = f"attaching the store of {container.name!r}"
    with ExitStack() as fds:
        clones = [fds.enter_context(opened(_clone(directory))) for directory in directories]
        mapped = [_map_owners(fd, container) for fd in clones]

        def lock() -> list[int]:
            return _lock(directories, clones, container)

        def enter(locked: Sequence[int]) -> forked.Result:
            inside(container.enter(from_its_user_namespace=not container.privileged), locked)
            return None, []

        if container.privileged:
            # The user namespace that locks them is not the container's: a child cannot come back.
            _, locked = await forked.call(lambda: (None, lock()), what)
            for fd in locked:
                fds.callback(os.close, fd)
            await forked.call(lambda: enter(locked), what)
        else:
            await forked.call(lambda: enter(lock()), what)
    return mapped[0]


async def write_generation(container: Container, change: Change) -> int:
    """Apply `change` to the profile of a container that runs; the number of the generation."""

    def write() -> forked.Result:
        return _apply(container.enter(), container.name, change), []

    number, _ = await forked.call(write, f"writing the generation of {container.name!r}")
    return int(number)


async def read_end(container: Container, path: str, most: int) -> str:
    """At most so many bytes from the end of a file inside; "" if there is no such plain file."""

    def read() -> forked.Result:
        with opened(container.enter()) as root:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
            try:
                with opened(openat2(root, path, flags, _RESOLVE)) as fd:
                    if not stat.S_ISREG(os.fstat(fd).st_mode):
                        return "", []
                    size = os.fstat(fd).st_size
                    return os.pread(fd, most, max(0, size - most)).decode(errors="replace"), []
            except OSError:
                return "", []

    text, _ = await forked.call(read, f"reading /{path} of {container.name!r}")
    return str(text)


def _clone(directory: HostDirectory) -> int:
    """A detached read-only copy of the mount.

    Private: a copy of a shared mount is its peer, and mounts made on one show on the other.
    """
    try:
        fd = open_tree(AT_FDCWD, directory.source)
        try:
            mount_setattr(fd, _READ_ONLY, propagation=MS_PRIVATE)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        raise MountError(f"cannot mount {directory.source}: {error.strerror}") from None
    return fd


def _map_owners(fd: int, container: Container) -> bool:
    """Show the owners of the mount as the container numbers them; False if that cannot be had."""
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


def _lock(
    directories: Sequence[HostDirectory], clones: Sequence[int], container: Container
) -> list[int]:
    """In a child: the mounts `clones` of `directories`, their flags locked.

    Leaves the child in the user namespace of an unprivileged container.
    """
    unshare(CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("inx", paths.RUN, "tmpfs", 0, "mode=755")
    for number, (directory, fd) in enumerate(zip(directories, clones, strict=True)):
        place = f"{paths.RUN}/{number}"
        if directory.only is not None:
            fd = show_only(directory.only, fd, container.root_ids(), f"{place}.layers")
        os.mkdir(place)
        with opened(os.open(place, os.O_PATH | os.O_CLOEXEC)) as target:
            move_mount(fd, target)
    if container.privileged:
        # Its own user namespace is the host's; any lesser one makes the kernel lock the flags.
        unshare(CLONE_NEWUSER)
    else:
        setns(container.user, CLONE_NEWUSER)
    unshare(CLONE_NEWNS)
    return [open_tree(AT_FDCWD, f"{paths.RUN}/{number}") for number in range(len(clones))]


def _put(mounts: Sequence[int], root: int, targets: Sequence[str], name: str) -> None:
    for fd, target in zip(mounts, targets, strict=True):
        with opened(_make(root, target, name)) as place:
            move_mount(fd, place)


def _protect_nix_state(root: int, name: str) -> None:
    with opened(_make(root, _NIX_STATE, name)) as place:
        state = open_tree(place, "")
        own = [open_tree(_make(place, directory, name), "") for directory in _WRITABLE]
        mount_setattr(state, _READ_ONLY, propagation=MS_PRIVATE)
        move_mount(state, place)
    for fd, directory in zip(own, _WRITABLE, strict=True):
        mount_setattr(fd, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, propagation=MS_PRIVATE)
        with opened(_make(root, f"{_NIX_STATE}/{directory}", name)) as place:
            move_mount(fd, place)


def _apply(root: int, name: str, change: Change) -> int:
    with opened(_make(root, paths.PROFILES_INSIDE, name)) as path_fd:
        profiles = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=path_fd)
    with opened(profiles):
        try:
            return change.apply(profiles)
        except OSError as error:
            what = error.filename2 or error.filename
            raise in_the_way(f"{paths.PROFILES_INSIDE}/{what}", name, error) from None


def _make(start: int, path: str, name: str) -> int:
    return open_directory(start, path, name, make=True)
