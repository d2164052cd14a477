"""Read and write files inside a running container, as the container's own root.

A forked child joins the container's namespaces for each call: the functions here look up no path of
the container with the rights of the host's root.
"""

import os
import stat
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.container.namespaces import Container
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.safe_open import open_listable, unusable_path_error
from inx_sidecar.kernel.syscalls import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    openat2,
    opened,
)
from inx_sidecar.nix.generation_changes import Change

_RESOLVE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


async def write_generation(container: Container, change: Change) -> int:
    """Apply `change` to the profile of a running container; returns the generation's number.

    InstanceError if something in the container's file system stands in the way; MountError if the
    child fails; TookTooLongError if a file system inside does not answer.
    """

    def write() -> forked.Result:
        return apply_change(container.enter(), container.name, change), []

    action = f"writing the generation of {container.name!r}"
    try:
        number, _ = await forked.run_in_child(
            write, action, fds=container.fds, instance=container.name
        )
    except forked.TookTooLongError as error:
        raise forked.TookTooLongError(
            f"{error}: the file system at /{paths.PROFILES_INSIDE} does not answer; end it, or "
            f"stop the instance with 'incus stop -f {container.name}'",
            error.ended,
        ) from None
    return int(number)


def apply_change(root: int, name: str, change: Change) -> int:
    """In a child that is the container's root: apply `change` to the profile below `root`.

    `name` is that of the instance, for errors. Returns the generation's number.
    """
    with opened(open_listable(root, paths.PROFILES_INSIDE, name, make=True)) as profiles:
        try:
            return change.apply(profiles)
        except OSError as error:
            entry = error.filename2 or error.filename
            path = f"{paths.PROFILES_INSIDE}/{entry}"
            raise unusable_path_error(path, name, error) from None


async def read_head(container: Container, path: str, max_bytes: int, seconds: float) -> str | None:
    """At most `max_bytes` from the begin of a file inside; None if there is no such regular file.

    Links are followed inside the container. TookTooLongError if its file system does not answer.
    """

    def read() -> forked.Result:
        with opened(container.enter()) as root:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
            try:
                with opened(openat2(root, path, flags, _RESOLVE)) as fd:
                    if not stat.S_ISREG(os.fstat(fd).st_mode):
                        return None, []
                    return os.pread(fd, max_bytes, 0).decode(errors="replace"), []
            except OSError:
                return None, []

    action = f"reading /{path} of {container.name!r}"
    text, _ = await forked.run_in_child(
        read, action, seconds, fds=container.fds, instance=container.name
    )
    return None if text is None else str(text)


async def read_tail(container: Container, path: str, max_bytes: int) -> str:
    """At most `max_bytes` from the end of a file inside; "" if there is no such regular file."""

    def read() -> forked.Result:
        with opened(container.enter()) as root:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
            try:
                with opened(openat2(root, path, flags, _RESOLVE)) as fd:
                    if not stat.S_ISREG(os.fstat(fd).st_mode):
                        return "", []
                    size = os.fstat(fd).st_size
                    tail = os.pread(fd, max_bytes, max(0, size - max_bytes))
                    return tail.decode(errors="replace"), []
            except OSError:
                return "", []

    action = f"reading /{path} of {container.name!r}"
    text, _ = await forked.run_in_child(read, action, fds=container.fds, instance=container.name)
    return str(text)
