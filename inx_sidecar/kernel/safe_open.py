"""Open directories and replace links below a container's root, where everything is hostile.

A path is walked step by step and no link is followed. So no link that the container makes leads
outside, and an error names the step that stands in the way.
"""

import errno
import os
import secrets

from inx_sidecar.base.errors import InstanceError
from inx_sidecar.kernel.syscalls import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
    opened,
)


def open_directory(start: int, path: str, instance: str, *, make: bool = False) -> int:
    """An O_PATH descriptor of the directory `path` below the directory `start`.

    With `make`, missing directories are made. FileNotFoundError if one is missing without `make`;
    InstanceError if something else stands in its place. `instance` is for error texts.
    """
    fd = os.dup(start)
    walked = ""
    for part in path.split("/"):
        walked = f"{walked}/{part}".lstrip("/")
        with opened(fd) as parent:
            try:
                fd = _open_step(parent, part, make)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise unusable_path_error(walked, instance, error) from None
    return fd


def open_listable(start: int, path: str, instance: str, *, make: bool = False) -> int:
    """As `open_directory`, a descriptor by which the directory can be listed."""
    with opened(open_directory(start, path, instance, make=make)) as place:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)


def open_rootfs(rootfs: str, instance: str) -> int:
    """An O_PATH descriptor of the root file system `rootfs`, a path of the host; InstanceError if
    it cannot be opened."""
    try:
        return os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InstanceError(f"cannot open {rootfs} of {instance!r}: {error.strerror}") from None


def unusable_path_error(path: str, instance: str, error: OSError) -> InstanceError:
    """The error that says why inx cannot use `path` in the instance's file system."""
    advice = ""
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        advice = ": a link or a file inside the instance stands in its place; remove it"
    return InstanceError(f"/{path} of {instance!r} cannot be used ({error.strerror}){advice}")


def _open_step(parent: int, name: str, make: bool) -> int:
    try:
        return _open(parent, name)
    except FileNotFoundError:
        if not make:
            raise
        os.mkdir(name, 0o755, dir_fd=parent)
        return _open(parent, name)


def _open(parent: int, name: str) -> int:
    return openat2(
        parent,
        name,
        os.O_PATH | os.O_DIRECTORY,
        RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
    )


def set_link(dir_fd: int, name: str, target: str) -> None:
    """As `replace_link`, but nothing is written if `name` is that link."""
    if read_link(dir_fd, name) != target:
        replace_link(dir_fd, name, target)


def replace_link(dir_fd: int, name: str, target: str) -> None:
    """Make `name` a link to `target`; whatever had the name is replaced in one rename(2).

    An OSError names `name`, never the temporary link, so that a repeated failure has the same text.
    """
    temporary = f".inx-{secrets.token_hex(8)}"
    try:
        os.symlink(target, temporary, dir_fd=dir_fd)
        try:
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except OSError:
            os.unlink(temporary, dir_fd=dir_fd)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def read_link(dir_fd: int, name: str) -> str | None:
    """The text of the link `name`; None if there is no such link, or it cannot be read."""
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError:
        return None
