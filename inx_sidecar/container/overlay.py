"""Show some entries of a host directory and nothing else of it: one overlay mount for all of them.

The upper of its two layers is a tmpfs with an entry for each name, an empty directory or file whose
attributes lead the kernel to the entry of that name in the lower layer, the directory itself
(Documentation/filesystems/overlayfs.rst, "redirect_dir" and "Metadata only copy up"). What lies
below is read from there: the same inodes, the same page cache, no other process.

The overlay's root would show all of the lower layer; only the directory of the entries is handed
out. It is `opaque`: the lower layer adds nothing to it, whatever it holds.
"""

import os
import stat
from collections.abc import Iterable
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

_ENTRIES: Final = "entries"
# File handles would lead past the entries: never decode them, whatever the kernel's defaults are.
_OPTIONS: Final = "redirect_dir=follow,metacopy=on,index=off,nfs_export=off"


def show_only(names: Iterable[str], directory: int, owner: tuple[int, int], place: str) -> int:
    """A detached read-only mount of the entries `names` of `directory`, a detached mount itself.

    In a child with a mount namespace of its own, whose directory `place` is taken for the layers.
    `owner` is the user and group to whom the entries belong. MountError if this kernel cannot.
    """
    layers = [f"{place}/{name}" for name in ("named", "all")]
    whole = f"{place}/overlay"
    for path in (place, *layers, whole):
        os.mkdir(path)
    mount("inx", layers[0], "tmpfs", MS_NOSUID | MS_NODEV, "mode=555")
    _fill(f"{layers[0]}/{_ENTRIES}", names, directory, owner)
    with opened(os.open(layers[1], os.O_PATH | os.O_CLOEXEC)) as target:
        move_mount(directory, target)
    try:
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV
        mount("inx", whole, "overlay", flags, f"lowerdir={':'.join(layers)},{_OPTIONS}")
    except OSError as error:
        raise MountError(
            f"this kernel cannot show a part of the store (overlayfs: {error.strerror}): Linux "
            "5.19 or newer is needed, and a store on at most one overlay"
        ) from None
    shown = open_tree(AT_FDCWD, f"{whole}/{_ENTRIES}")
    read_only = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    mount_setattr(shown, read_only, propagation=MS_PRIVATE)
    return shown


def _fill(entries: str, names: Iterable[str], directory: int, owner: tuple[int, int]) -> None:
    os.mkdir(entries)
    os.setxattr(entries, "trusted.overlay.opaque", b"y")
    os.chown(entries, *owner)
    # Short paths, and entries that are the owner's from the first: three calls for each.
    os.chdir(entries)
    os.umask(0)
    create_as(*owner)
    for name in names:
        _add(name, directory)
    create_as(0, 0)
    os.chdir("/")
    os.chmod(entries, 0o555)


def _add(name: str, directory: int) -> None:
    """Make an entry in the working directory; type, mode, times and a file's size, which stat(2)
    tells of it, are those of the real one."""
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
        os.setxattr(name, "trusted.overlay.redirect", os.fsencode(f"/{name}"))
    else:
        with opened(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)) as fd:
            os.truncate(fd, real.st_size)
            os.setxattr(fd, "trusted.overlay.metacopy", b"")
            os.setxattr(fd, "trusted.overlay.redirect", os.fsencode(f"/{name}"))
    os.utime(name, ns=(real.st_atime_ns, real.st_mtime_ns), follow_symlinks=False)
