"""Places: where a path lies, whatever it is called.

A bind mount gives a second name to a directory, and so does a link. A place is the file system and
the path within it (proc_pid_mountinfo(5)), which are the same for all names.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from inx_sidecar.kernel.syscalls import mount_id, opened

MOUNTINFO: Final = "/proc/self/mountinfo"


@dataclass(frozen=True)
class Place:
    """`device` is that of the whole file system: on btrfs, st_dev of a subvolume is another one."""

    device: str
    path: str

    def is_within(self, other: "Place") -> bool:
        below = f"{other.path.rstrip('/')}/"
        return self.device == other.device and f"{self.path}/".startswith(below)


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo. `root` is the directory of the file system that is seen at `point`."""

    mount_id: int
    device: str
    root: str
    point: str
    kind: str
    source: str

    @property
    def place(self) -> Place:
        return Place(self.device, self.root)


def parse_mounts(text: str) -> list[Mount]:
    """The mounts in the text of mountinfo."""
    return list(_parse(text.splitlines()))


def read_mounts() -> list[Mount]:
    with open(MOUNTINFO, errors="surrogateescape") as file:
        return parse_mounts(file.read())


def find_mount(mounts: Iterable[Mount], path: str) -> Mount:
    """The mount that has `path`, whose last component is not followed.

    OSError if the path does not exist or its mount is not listed.
    """
    with opened(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
        wanted = mount_id(fd)
    for mount in mounts:
        if mount.mount_id == wanted:
            return mount
    raise OSError(0, "it is on a mount that is not listed", path)


def place_of(mounts: Iterable[Mount], path: str) -> Place:
    """Where `path` lies; its last component is not followed. OSError if that is not known."""
    return locate(mounts, path)[1]


def locate(mounts: Iterable[Mount], path: str) -> tuple[Mount, Place]:
    """As `place_of`, with the mount that has `path`."""
    parent, name = os.path.split(path)
    real = f"{os.path.realpath(parent, strict=True).rstrip('/')}/{name}"
    mount = find_mount(mounts, real)
    if not f"{real}/".startswith(f"{mount.point.rstrip('/')}/"):
        raise OSError(0, "its mount is elsewhere", path)
    rest = real[len(mount.point.rstrip("/")) :]
    return mount, Place(mount.device, f"{mount.root.rstrip('/')}{rest}".rstrip("/") or "/")


def mounts_below(mounts: Iterable[Mount], path: str) -> list[Mount]:
    """What is mounted below the real path `path`."""
    below = f"{path.rstrip('/')}/"
    return [mount for mount in mounts if mount.point.startswith(below)]


def places_below(mounts: Iterable[Mount], path: str) -> list[Place]:
    """Where the real path `path` lies, and everything that is mounted below it."""
    mounts = list(mounts)
    return [place_of(mounts, path), *(mount.place for mount in mounts_below(mounts, path))]


def _parse(lines: Iterable[str]) -> Iterator[Mount]:
    for line in lines:
        fields, _, rest = line.partition(" - ")
        number, _, device, root, point, *_ = fields.split(" ")
        kind, source, *_ = rest.split(" ")
        yield Mount(int(number), device, *(_plain(text) for text in (root, point, kind, source)))


def _plain(text: str) -> str:
    """Blank, tab, newline and backslash are written in octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
