"""The upper layer of a store of its own: what Nix inside has made, and what it has deleted.

It is a directory in the root file system of the instance, which root inside can write. Only the
names that the host shows matter here; all others are the instance's own. A name that was deleted
inside has a *whiteout*, a character device with the number 0:0 (Documentation/filesystems/
overlayfs.rst). It hides the path of the lower layer.
"""

import os
import secrets
import stat
from collections.abc import Iterable
from itertools import islice
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.container.namespaces import Container
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.safe_open import (
    open_directory,
    open_listable,
    open_rootfs,
    unusable_path_error,
)
from inx_sidecar.kernel.syscalls import open_tree, opened

_TOKEN_BYTES: Final = 4
_AT_ONCE: Final = 10_000
# What the overlay uses in its work directory (OVL_WORKDIR_NAME in fs/overlayfs/super.c).
_WORK: Final = "work"
_FEW: Final = 16


def entries(rootfs: str, instance: str, names: Iterable[str]) -> dict[str, bool]:
    """Those of `names` that the upper layer has, each with whether it is a whiteout, in the root
    file system `rootfs` of a running or stopped instance; none if it has no upper layer.
    InstanceError if that cannot be read."""
    with opened(open_rootfs(rootfs, instance)) as root:
        try:
            upper = open_directory(root, paths.UPPER_INSIDE, instance)
        except FileNotFoundError:
            return {}
    with opened(upper):
        kinds = ((name, _is_whiteout(upper, name)) for name in names)
        return {name: kind for name, kind in kinds if kind is not None}


def give_way(rootfs: int, names: Iterable[str], uncovered: Iterable[str], instance: str) -> None:
    """Let the upper layer hide none of `names`, which the lower layer shows, but by whiteouts; and
    remove the whiteouts of `uncovered`.

    Runs in a child that is the container's root, while the overlay is not mounted. `rootfs` is the
    root directory of the instance. What stands in the place of a name is moved to the trash: a copy
    of the path that root inside has changed, one that Nix inside has built, or a part of one.
    InstanceError if something cannot be moved.
    """
    with opened(open_directory(rootfs, paths.UPPER_INSIDE, instance)) as upper:
        kinds = {name: _is_whiteout(upper, name) for name in {*names, *uncovered}}
        for name in uncovered:
            if kinds[name]:
                _remove(upper, name, instance)
        others = [name for name in names if kinds[name] is False]
        if others:
            with opened(_new_trash(rootfs, instance)) as trash:
                for name in others:
                    _move(upper, name, trash, instance)


def clear_work(rootfs: int, instance: str) -> None:
    """Move what is left in the work directory to the trash, in a child that is the container's
    root, unless it is no more than a former overlay leaves there.

    The kernel deletes it in mount(2) otherwise, however much root inside has put there, and however
    long that takes (ovl_workdir_cleanup in fs/overlayfs/readdir.c).
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with opened(open_directory(rootfs, paths.WORK_INSIDE, instance)) as work:
        try:
            with opened(os.open(_WORK, flags, dir_fd=work)) as left, os.scandir(left) as found:
                few = list(islice(found, _FEW + 1))
                if len(few) <= _FEW and not any(e.is_dir(follow_symlinks=False) for e in few):
                    return
        except FileNotFoundError:
            return
        except OSError:
            pass  # it is no directory: out of the way with it
        with opened(_new_trash(rootfs, instance)) as trash:
            try:
                os.rename(_WORK, _WORK, src_dir_fd=work, dst_dir_fd=trash)
            except OSError as error:
                place = f"{paths.WORK_INSIDE}/{_WORK}"
                raise unusable_path_error(place, instance, error) from None


def _new_trash(rootfs: int, instance: str) -> int:
    place = f"{paths.TRASH_INSIDE}/{secrets.token_hex(_TOKEN_BYTES)}"
    return open_directory(rootfs, place, instance, make=True)


def own_names(rootfs: int, names: Iterable[str], instance: str) -> list[str]:
    """Those of `names` that the upper layer has itself, in a child that is the container's root."""
    with opened(open_directory(rootfs, paths.UPPER_INSIDE, instance)) as upper:
        return [name for name in names if _is_whiteout(upper, name) is False]


def uncover(rootfs: int, names: Iterable[str], instance: str) -> list[str]:
    """Remove the whiteouts of `names`, in a child that is the container's root. Returns the names
    that had one.

    While the overlay is mounted, it has to forget its cached names afterwards.
    """
    with opened(open_directory(rootfs, paths.UPPER_INSIDE, instance)) as upper:
        covered = [name for name in names if _is_whiteout(upper, name)]
        for name in covered:
            _remove(upper, name, instance)
    return covered


def cover(rootfs: int, names: Iterable[str], instance: str) -> None:
    """Make the whiteouts again that `uncover` has removed. Everybody may make them (mknod(2))."""
    with opened(open_directory(rootfs, paths.UPPER_INSIDE, instance)) as upper:
        for name in names:
            try:
                os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=upper)
            except OSError as error:
                raise unusable_path_error(f"{paths.UPPER_INSIDE}/{name}", instance, error) from None


def has_trash(rootfs: str, instance: str) -> bool:
    """Whether `empty_trash` has something to delete."""
    try:
        with opened(open_rootfs(rootfs, instance)) as root:
            trash = open_listable(root, paths.TRASH_INSIDE, instance)
    except (OSError, InstanceError):
        return False
    with opened(trash), os.scandir(trash) as found:
        return next(found, None) is not None


async def empty_trash(container: Container) -> None:
    """Delete what was moved to the trash, as the container's root. MountError if that takes too
    long or fails: the next call goes on."""

    def empty() -> forked.Result:
        with opened(container.enter()) as root, opened(open_tree(root, "")) as rootfs:
            try:
                trash = open_listable(rootfs, paths.TRASH_INSIDE, container.name)
            except FileNotFoundError:
                return None, []
        with opened(trash):
            while names := _some_entries(trash):
                for name in names:
                    _delete(trash, name)
        return None, []

    action = f"deleting what was replaced in the store of {container.name!r}"
    await forked.run_in_child(empty, action, fds=container.fds, instance=container.name)


def _delete(trash: int, name: str) -> None:
    """Delete an entry of the trash; the directories that it has become entries of the trash.

    So a directory may have any depth.
    """
    if not stat.S_ISDIR(os.stat(name, dir_fd=trash, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=trash)
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with opened(os.open(name, flags, dir_fd=trash)) as directory:
        while names := _some_entries(directory):
            for inner in names:
                if stat.S_ISDIR(os.stat(inner, dir_fd=directory, follow_symlinks=False).st_mode):
                    new = secrets.token_hex(2 * _TOKEN_BYTES)
                    os.rename(inner, new, src_dir_fd=directory, dst_dir_fd=trash)
                else:
                    os.unlink(inner, dir_fd=directory)
    os.rmdir(name, dir_fd=trash)


def _some_entries(directory: int) -> list[str]:
    with os.scandir(directory) as found:
        return [entry.name for entry in islice(found, _AT_ONCE)]


def _is_whiteout(upper: int, name: str) -> bool | None:
    """Whether the entry is a whiteout; None if there is no entry."""
    try:
        found = os.stat(name, dir_fd=upper, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _remove(upper: int, name: str, instance: str) -> None:
    try:
        os.unlink(name, dir_fd=upper)
    except OSError as error:
        raise unusable_path_error(f"{paths.UPPER_INSIDE}/{name}", instance, error) from None


def _move(upper: int, name: str, trash: int, instance: str) -> None:
    try:
        os.rename(name, name, src_dir_fd=upper, dst_dir_fd=trash)
    except OSError as error:
        raise unusable_path_error(f"{paths.UPPER_INSIDE}/{name}", instance, error) from None
