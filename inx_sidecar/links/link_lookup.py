"""What is at one path below the root directories of a container: the links, and their places.

The kernel keeps the look below the root directory (openat2 with RESOLVE_IN_ROOT, no magic links).
"""

import errno
import os
from collections.abc import Sequence
from typing import Any, Final

from inx_sidecar.kernel.syscalls import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    mount_id,
    openat2,
    opened,
)
from inx_sidecar.links.root_directories import RootDirectory
from inx_sidecar.nix.store_paths import store_path_of

# These errors say for certain that there is no link. Others may be due to the moment, or to a right
# that the container's root lacks.
_NO_SUCH_LINK: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_RESOLVE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
# How often a path is looked up that gives these errors. EAGAIN: anything on the host was renamed
# or mounted while `..` was followed (openat2(2)). ELOOP: a walk that the kernel begins again counts
# the links of both walks (total_link_count in fs/namei.c).
_TRIES: Final = {errno.EAGAIN: 20, errno.ELOOP: 3}


def look_up(text: str, roots: Sequence[RootDirectory], complete: bool) -> dict[str, Any]:
    """The fields of a ResolvedLink, as JSON carries them."""
    targets: dict[str, bool] = {}
    found, missing = [], []
    sure = complete
    for number, root in enumerate(roots):
        try:
            target, mount = _read_link(root.fd, text)
        except OSError as error:
            if error.errno not in _NO_SUCH_LINK:
                sure = False
                continue
            target, mount = "", _mount_above(root.fd, text)
        path = store_path_of(target)
        if path is not None:
            home = number == 0 and mount == root.mount
            targets[path] = targets.get(path, False) or home
            found.append(_place(root, text, mount))
        else:
            missing.append(_place(root, text, mount))
    return {"targets": targets, "found": found, "missing": missing, "sure": sure}


def _place(root: RootDirectory, text: str, mount: int) -> str:
    """The root directory and, if `mount` begins below it, the component of `text` where."""
    if mount == root.mount:
        return root.identity
    components = [part for part in text.split("/") if part]
    first: int | None = None
    for count in range(len(components) - 1, -1, -1):
        try:
            if _mount_id_at(root.fd, components[:count]) == mount:
                first = count
            elif first is not None:
                break
        except OSError:
            continue
    return f"{root.identity}@{first}"


def _mount_id_at(root: int, components: Sequence[str]) -> int:
    """The mount of a directory below `root`."""
    path = "/".join(components) or "."
    with opened(_open(root, path, os.O_DIRECTORY)) as directory:
        return mount_id(directory)


def _read_link(root: int, text: str) -> tuple[str, int]:
    """The text of the link at the path `text`, empty if it is no link, and its mount."""
    with opened(_open(root, text.lstrip("/"), os.O_NOFOLLOW)) as link:
        mount = mount_id(link)
        try:
            return os.readlink("", dir_fd=link), mount
        except FileNotFoundError:
            return "", mount  # readlink(2): an empty path that is no link


def _open(root: int, path: str, flags: int) -> int:
    tries = 0
    while True:
        tries += 1
        try:
            return openat2(root, path, os.O_PATH | flags, _RESOLVE)
        except OSError as error:
            if tries >= _TRIES.get(error.errno or 0, 1):
                raise


def _mount_above(root: int, text: str) -> int:
    """The mount of the deepest directory of the path `text` that exists."""
    components = [part for part in text.split("/") if part]
    low, high = 0, len(components)
    deepest = mount_id(root)
    while low < high:
        middle = (low + high) // 2
        try:
            deepest = _mount_id_at(root, components[:middle])
            low = middle + 1
        except OSError:
            high = middle
    return deepest
