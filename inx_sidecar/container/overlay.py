"""Show some entries of a host directory and nothing else of it, by one overlay mount.

The overlay has two lower layers. The first is a tmpfs with an entry for each name: a copy of a
link, or an empty directory or file with an attribute that redirects the kernel to the entry of that
name in the second layer, which is the host directory (Documentation/filesystems/overlayfs.rst,
"redirect_dir" and "Metadata only copy up"). The kernel reads the content there: the same inodes,
the same page cache, and no process between.

The overlay's root would show all of the second layer, so only the directory of the entries is
mounted. That directory is `opaque`: the second layer adds no entries to it.

The first layer may also be a directory of the host that the caller gives, so that entries can be
added while the overlay is mounted (kernel/superblocks.py).
"""

import os
import stat
from collections.abc import Iterable, Sequence
from typing import Final

from inx_sidecar.base.errors import MountError, SystemMissingError
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    create_as,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    opened,
)

ENTRIES: Final = "entries"
# A process is made in less time than so many entries.
_SHARED_FROM: Final = 300
_REDIRECT: Final = "trusted.overlay.redirect"
# A file handle could name any file of the lower layer. With nfs_export=off the kernel refuses
# handles, whatever its default is.
_OPTIONS: Final = "redirect_dir=follow,metacopy=on,index=off,nfs_export=off"


def mount_entries(
    names: Iterable[str],
    directory: int,
    owner: tuple[int, int],
    place: str,
    layer: int | None = None,
) -> int:
    """A detached read-only mount that shows the entries `names` of `directory`.

    Runs in a child with its own mount namespace. `directory` is a detached mount, and is attached
    there; so is `layer`, an empty directory for the first layer, where a tmpfs is made otherwise.
    `place` is a directory that the call makes for the layers. The entries belong to `owner`, a user
    id and a group id. MountError if this kernel cannot do it; SystemMissingError if an entry is
    missing.
    """
    layers = [f"{place}/{name}" for name in ("named", "all")]
    merged = f"{place}/overlay"
    for path in (place, *layers, merged):
        os.mkdir(path)
    if layer is None:
        mount("inx", layers[0], "tmpfs", MS_NOSUID | MS_NODEV, "mode=555")
    else:
        _attach(layer, layers[0])
    _make_entries(f"{layers[0]}/{ENTRIES}", names, directory, owner)
    _attach(directory, layers[1])
    try:
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV
        mount("inx", merged, "overlay", flags, f"lowerdir={':'.join(layers)},{_OPTIONS}")
    except OSError as error:
        raise MountError(
            f"this kernel cannot show a part of the store (overlayfs: {error.strerror}): Linux "
            "5.19 or newer is needed, and a store on at most one overlay"
        ) from None
    view = open_tree(AT_FDCWD, f"{merged}/{ENTRIES}")
    read_only = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    mount_setattr(view, read_only, propagation=MS_PRIVATE)
    return view


def _attach(mount_fd: int, place: str) -> None:
    with opened(os.open(place, os.O_PATH | os.O_CLOEXEC)) as target:
        move_mount(mount_fd, target)


def _make_entries(
    entries: str, names: Iterable[str], directory: int, owner: tuple[int, int]
) -> None:
    os.mkdir(entries)
    os.setxattr(entries, "trusted.overlay.opaque", b"y")
    os.chown(entries, *owner)
    with opened(os.open(entries, os.O_PATH | os.O_CLOEXEC)) as place:
        add_entries(place, names, directory, owner)


def add_entries(entries: int, names: Iterable[str], directory: int, owner: tuple[int, int]) -> None:
    """Add `names` of `directory` to the directory `entries` of a first layer; entries that are
    there stay.

    Runs in a child, as root of the host. SystemMissingError if `directory` lacks a name.
    """
    # For speed, paths are relative and entries are made with their owner: three calls for each.
    os.fchdir(entries)
    os.chmod(".", 0o755)
    os.umask(0)
    create_as(*owner)
    _make_by_two(list(names), directory)
    create_as(0, 0)
    os.chmod(".", 0o555)
    os.chdir("/")


def _make_by_two(names: Sequence[str], directory: int) -> None:
    """Make many entries with the help of a second process: nearly all of the time is the kernel's,
    and LXC waits."""
    half = len(names) // 2 if len(names) >= _SHARED_FROM else 0
    try:
        helper = os.fork() if half else None
    except OSError:  # the host has no room for another process
        helper, half = None, 0
    if helper == 0:
        failed = 1
        try:
            _make_all(names[:half], directory)
            failed = 0
        finally:
            os._exit(failed)
    _make_all(names[half:], directory)
    if helper is not None and os.waitpid(helper, 0)[1] != 0:
        _make_all(names[:half], directory)  # what is missing; or the error is met again


def _make_all(names: Iterable[str], directory: int) -> None:
    for name in names:
        try:
            _make_entry(name, directory)
        except FileExistsError:
            if not _is_complete(name):
                _remove_entry(name)
                _make_entry(name, directory)


def _is_complete(name: str) -> bool:
    """Whether the entry leads to the second layer, or is a link. A child that was killed may have
    left another one."""
    try:
        return os.path.islink(name) or bool(os.getxattr(name, _REDIRECT))
    except OSError:
        return False


def _remove_entry(name: str) -> None:
    if os.path.isdir(name):
        os.rmdir(name)
    else:
        os.unlink(name)


def _make_entry(name: str, directory: int) -> None:
    """Make the entry `name` in the working directory.

    Type, mode, times and a file's size are those of the entry in `directory`: stat(2) reads them
    from the upper layer.
    """
    try:
        real = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        raise SystemMissingError(
            f"{name} is not in the store, but valid in Nix's database; run 'nix-store --verify "
            "--check-contents --repair'"
        ) from None
    mode = stat.S_IMODE(real.st_mode)
    if stat.S_ISLNK(real.st_mode):
        os.symlink(os.readlink(name, dir_fd=directory), name)
    elif stat.S_ISDIR(real.st_mode):
        os.mkdir(name, mode)
        os.setxattr(name, _REDIRECT, f"/{name}".encode())
    else:
        with opened(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)) as fd:
            os.truncate(fd, real.st_size)
            os.setxattr(fd, "trusted.overlay.metacopy", b"")
            os.setxattr(fd, _REDIRECT, f"/{name}".encode())
    os.utime(name, ns=(real.st_atime_ns, real.st_mtime_ns), follow_symlinks=False)
