"""Whether anything can have changed at the registered paths of a running container since a child
looked at them. The event loop asks this itself: nothing here waits for a file system.

The state is that of directories, below each root directory of the container: of the directory that
a path lies in, or else of the deepest one on the way that exists. A state that is the same as
before the look of the child says that its answers hold:

- Whoever makes, removes or replaces an entry of a directory changes the directory's change time,
  which nobody can set. A link is never written in place. So the child gives no state if a change
  time is too new for the next change to have another one, or of a file system that need not keep
  change times: FUSE, network file systems, overlays.
- The way to each directory is walked again, with all its links and mounts. If the next component
  after the deepest directory is a link, which leads nowhere, there is no state: it may lead
  somewhere later, without a change of this directory.
- All mounts that each root directory sees are part of the state, so a mount over a link is, too.
  Their ids are used again. So the number of the mount namespace is part of it as well.

The sidecar keeps the host's rights. It reads no link and no directory, and nothing that it finds is
given to anyone: so the worst that a container can get by it is that its own links are looked at
later. Why it does not wait (Linux):

- openat2 with RESOLVE_CACHED walks in RCU mode alone (LOOKUP_CACHED, fs/namei.c): what is not in
  the cache of directory entries, an automount, or a file system that would have to ask (-ECHILD,
  as d_revalidate, permission and get_link of fs/fuse/dir.c give) ends the walk with EAGAIN.
- At the end of a walk, a file system is asked again only if the last step was a jump, as to a root
  directory or by `..` in a link (complete_walk, d_weak_revalidate): NFS and 9P do that.
- statx with AT_STATX_DONT_SYNC takes the attributes that the kernel has (fuse_update_get_attr); 9P
  may ask. So there is no state if a root directory sees a mount of a kind that is not in _QUIET.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base.paths import GCROOTS_INSIDE
from inx_sidecar.kernel.change_times import newest_settled
from inx_sidecar.kernel.syscalls import (
    RESOLVE_CACHED,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    CachedStatus,
    cached_status_of,
    openat2,
    opened,
)
from inx_sidecar.links.root_directories import RootDirectory, known_root_directories
from inx_sidecar.links.time_limit import TimeLimit

# File systems whose directories keep a change time, and that ask nobody.
_LOCAL: Final = {
    b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"zfs", b"f2fs", b"bcachefs", b"tmpfs",
}  # fmt: skip
# Those, and others that ask nobody for what is in the cache.
_QUIET: Final = _LOCAL | {
    b"fuse", b"overlay", b"proc", b"sysfs", b"cgroup", b"cgroup2", b"devtmpfs", b"devpts",
    b"mqueue", b"ramfs", b"autofs", b"bpf", b"binfmt_misc", b"configfs", b"debugfs", b"efivarfs",
    b"fusectl", b"hugetlbfs", b"nsfs", b"pstore", b"securityfs", b"tracefs", b"squashfs", b"erofs",
    b"iso9660", b"vfat", b"exfat", b"ntfs3",
}  # fmt: skip
_MISSING: Final = {
    errno.EAGAIN, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY
_RESOLVE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
# The event loop looks at so many directories in about two milliseconds.
_MAX_DIRECTORIES: Final = 256
_MAX_TEXT: Final = 1 << 14  # the sidecar remembers the directories
_MAX_COMPONENTS: Final = 64
# The container's own copy of what is registered: it has to be complete.
_COPY: Final = f"{GCROOTS_INSIDE}/auto"

# How many components of the way exist, and the status of the directory there.
_Deepest = tuple[int, CachedStatus]
_Find = Callable[[RootDirectory, Sequence[str]], _Deepest]


@dataclass(frozen=True)
class LinkState:
    """The state of the `directories` of some paths, as a digest. `mounts` are digests of what each
    root directory sees."""

    directories: tuple[str, ...]
    mounts: frozenset[str]
    digest: str


class _UnsettledError(Exception):
    """No state says whether something has changed."""


def look_at(
    roots: Sequence[RootDirectory], texts: Iterable[str], *, cached: bool
) -> LinkState | None:
    """The state of the paths `texts`, None if there is none; in a child.

    With `cached`, the call does not wait, and a directory that is not in the cache counts as one
    that does not exist. There is no state if that takes longer than it may take the event loop.
    """
    limit = TimeLimit() if cached else None
    kinds: dict[int, Mapping[int, bytes]] = {}
    newest = newest_settled()

    def find(root: RootDirectory, way: Sequence[str]) -> _Deepest:
        depth, status, leads_away = _find(root, way, cached=cached, limit=limit)
        seconds, nanoseconds = status.changed
        if leads_away or seconds * 1_000_000_000 + nanoseconds > newest:
            raise _UnsettledError
        _check_kind(kinds[root.fd], status.mount)
        return depth, status

    try:
        directories = _directories_of(texts)
        _check_number(roots, directories)
        for root in roots:
            kinds[root.fd] = _kinds(root.mounts or b"")
            if not {kind.partition(b".")[0] for kind in kinds[root.fd].values()} <= _QUIET:
                raise _UnsettledError
            _check_kind(kinds[root.fd], root.mount)
        digest = _digest_of(roots, directories, find)
    except (_UnsettledError, OSError):
        return None
    return LinkState(directories, frozenset(_digest(root.mounts or b"") for root in roots), digest)


def is_unchanged(pid: int, started: int, states: Sequence[LinkState]) -> bool:
    """Whether all of the `states` of the container whose init is `pid` are the present ones.

    False also if the event loop cannot find out.
    """
    known = states[0].mounts if states else frozenset()
    if any(state.mounts != known for state in states):
        return False
    limit = TimeLimit()

    def is_known(mounts: bytes) -> bool:
        return not limit.passed and _digest(mounts) in known

    def find(root: RootDirectory, way: Sequence[str]) -> _Deepest:
        depth, status, _ = _find(root, way, cached=True, limit=limit)
        return depth, status

    roots = known_root_directories(pid, started, is_known)
    if roots is None:
        return False
    try:
        return all(_digest_of(roots, state.directories, find) == state.digest for state in states)
    except (_UnsettledError, OSError):
        return False
    finally:
        for root in roots:
            os.close(root.fd)


def _directories_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The directories of the paths, relative to a root directory."""
    found = {_COPY}
    for text in texts:
        first, *components = text.split("/")
        if first or len(components) > _MAX_COMPONENTS or {"", ".", ".."} & set(components):
            raise _UnsettledError
        found.add("/".join(components[:-1]))
    if sum(map(len, found)) > _MAX_TEXT:
        raise _UnsettledError
    return tuple(sorted(found))


def _check_number(roots: Sequence[RootDirectory], directories: Sequence[str]) -> None:
    if len(roots) * len(directories) > _MAX_DIRECTORIES:
        raise _UnsettledError


def _digest_of(roots: Sequence[RootDirectory], directories: Sequence[str], find: _Find) -> str:
    _check_number(roots, directories)
    found = {}
    ways = [directory.split("/") if directory else [] for directory in directories]
    for root in roots:
        status = cached_status_of(root.fd)
        # A new mount namespace may have the mounts of one that ended, with the same ids.
        place = status.mount, status.device, status.inode
        key = root.identity, place, _digest(root.mounts or b"")
        found[key] = [find(root, way) for way in ways]
    return _digest(json.dumps(sorted(found.items())).encode())


def _find(
    root: RootDirectory, way: Sequence[str], *, cached: bool, limit: TimeLimit | None = None
) -> tuple[int, CachedStatus, bool]:
    """The deepest directory of the way, and, unless `cached`, whether the next component is a link:
    it leads nowhere. With `cached`, it is the deepest one that is in the cache; the digest says
    whether a child found the same."""
    resolve = _RESOLVE | RESOLVE_CACHED if cached else _RESOLVE
    for depth in range(len(way), 0, -1):
        if limit is not None and limit.passed:
            raise _UnsettledError
        fd = _open(root.fd, "/".join(way[:depth]), resolve)
        if fd is not None:
            with opened(fd):
                away = not cached and depth < len(way) and _is_link(fd, way[depth])
                return depth, cached_status_of(fd), away
    return 0, cached_status_of(root.fd), not cached and bool(way) and _is_link(root.fd, way[0])


def _open(root: int, path: str, resolve: int) -> int | None:
    """A descriptor of the directory; None if it does not exist or is not in the cache."""
    for again in (True, False):
        try:
            return openat2(root, path, _DIRECTORY, resolve)
        except OSError as error:
            if error.errno not in _MISSING:
                raise
            # A mount or rename anywhere on the host can end a walk in RCU mode.
            if error.errno != errno.EAGAIN or not again:
                return None
    return None


def _is_link(directory: int, name: str) -> bool:
    try:
        with opened(openat2(directory, name, os.O_PATH | os.O_NOFOLLOW, _RESOLVE)) as entry:
            return stat.S_ISLNK(cached_status_of(entry).mode)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        return False


def _kinds(mounts: bytes) -> dict[int, bytes]:
    """The kind of file system of each mount, by the id of the mount, as mountinfo tells it."""
    kinds = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(b" - ")
        kinds[int(before.partition(b" ")[0])] = after.partition(b" ")[0]
    return kinds


def _check_kind(kinds: Mapping[int, bytes], mount: int) -> None:
    if kinds.get(mount) not in _LOCAL:
        raise _UnsettledError


def _digest(text: bytes) -> str:
    # Python's own is twice as fast as its own SHA-256.
    return hashlib.blake2b(text, digest_size=32).hexdigest()
