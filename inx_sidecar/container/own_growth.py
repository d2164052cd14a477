"""Show more in a store of its own while the instance runs.

Nothing is mounted. New entries are added to the first layer of the shown layer, which is a
directory of the host. The shown layer and the store above it remember which names were missing, so
both have to forget (kernel/superblocks.py). All mount namespaces inside then see the new paths at
once, and the garbage collector of Nix inside meets no mount that it cannot delete.

For that collector, a path that is not registered is garbage. So it is kept from running until the
new paths are registered and rooted, by the lock that each of its runs takes (libstore/gc.cc,
`gc.lock`).

A path that Nix inside has made itself is not added: an overlay would merge the two directories. It
stays the instance's own until the next start.
"""

import errno
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, MountError
from inx_sidecar.container.inner_roots import set_roots
from inx_sidecar.container.locked_mounts import HostDirectory
from inx_sidecar.container.namespaces import Container
from inx_sidecar.container.overlay import ENTRIES, add_entries
from inx_sidecar.container.own_store import apply_record, clone_root
from inx_sidecar.container.upper_layer import cover, own_names, uncover
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.safe_open import open_directory, unusable_path_error
from inx_sidecar.kernel.superblocks import drop_cached_names, is_overlay
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, opened, setns
from inx_sidecar.nix import own_database
from inx_sidecar.nix.own_database import Rows
from inx_sidecar.nix.shown_record import Record

_NIX_STATE: Final = "nix/var/nix"
_LOCK: Final = "gc.lock"
_LOCK_SECONDS: Final = 15.0
_LOOKS: Final = 5


@asynccontextmanager
async def grown(
    container: Container,
    rootfs: str,
    view: HostDirectory,
    view_device: int,
    rows: Rows,
    record: Record,
    roots: Mapping[str, str],
    *,
    lock_seconds: float = _LOCK_SECONDS,
) -> AsyncIterator[None]:
    """Show the entries of `view` as well, and register `rows`. `roots` are added to what inx keeps
    from the garbage collector inside. No collection runs inside until the end of the context.
    `rootfs` is the root file system of the instance on the host.

    `view` and `view_device` are those of the start of this container (own_store.OwnStore). `record`
    is applied before anything is registered. What is shown already stays.

    InstanceError if the shown layer was unmounted inside, if another root directory is there, if a
    collection inside does not end within `lock_seconds`, or if the paths cannot be registered;
    MountError if they do not appear.
    """
    names = view.entries or frozenset()
    try:
        top = os.stat(rootfs)
    except OSError as error:
        raise InstanceError(
            f"cannot open {rootfs} of {container.name!r}: {error.strerror}"
        ) from None
    with ExitStack() as fds:
        own, lock = await _lock_collector(container, top, names, record, lock_seconds)
        fds.enter_context(opened(lock))
        await _add_to_view(container, view, names - own, view_device)
        nix = await _let_appear(container, top, names, roots)
        with opened(nix):
            user = None if container.privileged else container.user
            await own_database.write(nix, user, rows, container.name, starts=False)
        yield


async def _lock_collector(
    container: Container,
    top: os.stat_result,
    names: Collection[str],
    record: Record,
    seconds: float,
) -> tuple[frozenset[str], int]:
    """Apply `record`, and wait until no collection runs inside. Returns those of `names` that Nix
    inside has made, and a descriptor that holds the lock.

    The child waits in flock(2), and is killed if that takes too long.
    """
    name = container.name

    def lock() -> forked.Result:
        with opened(container.enter()) as root, opened(_clone(root, top, name)) as rootfs:
            with opened(open_directory(rootfs, _NIX_STATE, name, make=True)) as state:
                fd = _open_lock(state, name)
            fcntl.flock(fd, fcntl.LOCK_SH)
            try:
                apply_record(rootfs, Record(record.seals), name)
                return own_names(rootfs, names, name), [fd]
            except FileNotFoundError:
                raise _unmounted_error(name) from None

    action = f"waiting for the garbage collection inside {name!r}"
    try:
        own, (fd,) = await forked.run_in_child(
            lock, action, seconds, fds=container.fds, instance=name
        )  # fmt: skip
    except forked.TookTooLongError:
        raise InstanceError(
            f"a garbage collection inside {name!r} does not end, or a file system there does not "
            "answer, so the new system cannot be shown; end it, or set user.inx.update to try again"
        ) from None
    return frozenset(own), fd


def _clone(root: int, top: os.stat_result, instance: str) -> int:
    """As own_store.clone_root, if `root` is the directory with the status `top`.

    Root inside may mount another file system over it. The sidecar gets files that were opened
    below, and whoever closes a file of FUSE waits for an answer (fuse_flush in fs/fuse/file.c).
    """
    if os.path.samestat(os.fstat(root), top):
        return clone_root(root)
    raise InstanceError(
        f"another file system is mounted over the root directory of {instance!r}, so the new "
        "system cannot be shown; restart the instance"
    )


def _open_lock(state: int, instance: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(_LOCK, flags, 0o600, dir_fd=state)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    except OSError as error:
        raise unusable_path_error(f"{_NIX_STATE}/{_LOCK}", instance, error) from None
    return fd


async def _add_to_view(
    container: Container, view: HostDirectory, names: Collection[str], device: int
) -> None:
    """Only root of the host can change the shown layer. It goes into the mount namespace of the
    container, and opens one directory there."""
    name = container.name
    with ExitStack() as fds:
        try:
            store, entries = (
                fds.enter_context(opened(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))
                for path in (view.source, f"{view.layer}/{ENTRIES}")
            )
        except OSError as error:
            raise MountError(f"cannot open {error.filename}: {error.strerror}") from None

        def add() -> forked.Result:
            owner = container.root_ids()
            setns(container.mount, CLONE_NEWNS)
            with opened(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
                with opened(_open_view(root, device, name)) as shown:
                    add_entries(entries, names, store, owner)
                    drop_cached_names(shown, device, read_only=True)
            return None, []

        action = f"showing more in the store of {name!r}"
        needed = [store, entries, *container.fds]
        await forked.run_in_child(add, action, fds=needed, instance=name)


def _open_view(root: int, device: int, instance: str) -> int:
    """An O_PATH descriptor of the shown layer; root inside may have put anything in its place."""
    with suppress(FileNotFoundError):
        shown = open_directory(root, paths.OWN_INSIDE, instance)
        if is_overlay(shown, device):
            return shown
        os.close(shown)
    raise _unmounted_error(instance)


def _unmounted_error(instance: str) -> InstanceError:
    return InstanceError(
        f"/{paths.OWN_INSIDE} of {instance!r} was unmounted inside, so the new system cannot be "
        "shown; restart the instance"
    )


async def _let_appear(
    container: Container, top: os.stat_result, names: Collection[str], roots: Mapping[str, str]
) -> int:
    """Let the store show `names`, also those that were deleted inside, and add `roots`; a
    descriptor of /nix in the root file system, as in own_store.OwnStore."""
    name = container.name

    def appear() -> forked.Result:
        with opened(container.enter()) as root, opened(_clone(root, top, name)) as rootfs:
            covered = uncover(rootfs, names, name)
            set_roots(rootfs, roots, name, keep_others=True)
            with opened(open_directory(root, paths.STORE_INSIDE, name)) as store:
                for _ in range(_LOOKS):
                    _forget_names(store)
                    if _shows(store, names):
                        return None, [open_directory(rootfs, "nix", name)]
                # The kernel refuses a directory that was in use when it was deleted (ESTALE): the
                # collector inside would fail at it, too.
                cover(rootfs, covered, name)
                _forget_names(store)
        raise MountError(
            f"the new paths do not appear in the store of {name!r}; restart the instance"
        )

    action = f"showing more in the store of {name!r}"
    _, fds = await forked.run_in_child(appear, action, fds=container.fds, instance=name)
    return fds[0]


def _forget_names(store: int) -> None:
    with suppress(OSError):  # then a look tells
        drop_cached_names(store, os.fstat(store).st_dev)


def _shows(store: int, names: Collection[str]) -> bool:
    try:
        for name in names:
            os.stat(name, dir_fd=store, follow_symlinks=False)
    except OSError:
        return False
    return True
