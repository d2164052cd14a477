"""Which system a running container has activated: /run/current-system, as its own root wrote it."""

import os
from typing import Final

from inotify_simple import INotify, flags

from inx_sidecar.base import paths
from inx_sidecar.container.namespaces import Container
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.syscalls import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    openat2,
    opened,
)
from inx_sidecar.nix.store_paths import STORE_PATH

_LINK: Final = "current-system"
_SECONDS: Final = 4.0
# One event ends the watch, so a directory that changes all the time fills no queue.
ENTRIES: Final = (
    flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE_SELF
    | flags.MOVE_SELF | flags.ONLYDIR | flags.ONESHOT
)  # fmt: skip


async def read_current_system(
    container: Container, inotify: INotify | None
) -> tuple[str, int | None]:
    """The store path that /run/current-system of the container leads to, "" if there is none; and
    the watch of `inotify` for its directory, which was added before the link was read.

    The system is the word of the container's root. TookTooLongError if its file system does not
    answer.
    """

    def read() -> forked.Result:
        with opened(container.enter()) as root:
            how = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
            try:
                directory = openat2(root, paths.RUN_INSIDE, os.O_PATH | os.O_DIRECTORY, how)
            except OSError:
                return ["", None], []
        with opened(directory):
            watch = _add_watch(inotify, directory)
            try:
                target = os.readlink(_LINK, dir_fd=directory)
            except OSError:
                target = ""
        return [target if STORE_PATH.fullmatch(target) else "", watch], []

    fds = [*container.fds, inotify.fd] if inotify is not None else container.fds
    action = f"reading /{paths.RUN_INSIDE}/{_LINK} of {container.name!r}"
    (system, watch), _ = await forked.run_in_child(
        read, action, _SECONDS, fds=fds, instance=container.name
    )
    return system, watch


def _add_watch(inotify: INotify | None, directory: int) -> int | None:
    """In the child, where /proc is that of the container: the directory has no path there."""
    if inotify is None:
        return None
    os.fchdir(directory)
    try:
        return int(inotify.add_watch(".", ENTRIES))
    except OSError:
        return None  # the limit of watches is reached: the next look finds what has changed
