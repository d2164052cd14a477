"""Open directories below a container's root, which the container fills as it likes.

Paths are walked step by step and no link is followed, so that nothing the container plants can
lead elsewhere, and a refusal names the very step that stands in the way.
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
    """An O_PATH descriptor of the directory `path` below `start`; with `make`, made if missing.

    FileNotFoundError if it is missing; InstanceError if something else stands in its place.
    """
    fd = os.dup(start)
    walked = ""
    for part in path.split("/"):
        walked = f"{walked}/{part}".lstrip("/")
        with opened(fd) as parent:
            try:
                fd = _step(parent, part, make)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise in_the_way(walked, instance, error) from None
    return fd


def in_the_way(path: str, instance: str, error: OSError) -> InstanceError:
    """Something in the instance's file system keeps inx from using `path`."""
    advice = ""
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        advice = ": a link or a file inside the instance stands in its place; remove it"
    return InstanceError(f"/{path} of {instance!r} cannot be used ({error.strerror}){advice}")


def _step(parent: int, name: str, make: bool) -> int:
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


def replace_link(dir_fd: int, name: str, target: str) -> None:
    """Make `name` a link to `target`: a complete one takes the place of whatever was there."""
    temporary = f".inx-{secrets.token_hex(8)}"
    os.symlink(target, temporary, dir_fd=dir_fd)
    try:
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        os.unlink(temporary, dir_fd=dir_fd)
        raise
