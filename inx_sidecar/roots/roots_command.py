"""`inx-sidecar roots`: the GC roots of instances, read from the disk."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, UnsupportedError
from inx_sidecar.links import indirect_roots
from inx_sidecar.nix.store_paths import CLOSURE_QUERY
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.lineage import COPIED
from inx_sidecar.roots.link_roots import LINKS, parse_root_name
from inx_sidecar.roots.missing_record import MissingRecord
from inx_sidecar.roots.moved_instances import member_of
from inx_sidecar.roots.snapshot_roots import SNAPSHOTS, snapshot_name
from inx_sidecar.roots.system_roots import SHOWN

_SIZE = CLOSURE_QUERY.format("?") + "select sum(narSize) from ValidPaths where id in closure"


# The headings of the table; the age and the size are numbers.
HEADINGS: Final = ("INSTANCE", "AGE", "SIZE", "PATH", "WHAT HOLDS IT")
NUMBERS: Final = (1, 2)


@dataclass(frozen=True)
class Root:
    """`held_by`: a path inside the instance, a system, or a snapshot. `size` is that of the closure
    in bytes, None if the store path is not valid; `age` is in seconds.

    `instance` is the name in LXC: that of a project other than default has the project before it.
    """

    instance: str
    uuid: str
    age: int
    size: int | None
    path: str
    held_by: str

    def row(self) -> tuple[str, ...]:
        """The cells below HEADINGS, in printable ASCII."""
        size = "lost" if self.size is None else _size(self.size)
        return self.instance, _age(self.age), size, self.path, _plain(self.held_by)

    def as_json(self) -> dict[str, object]:
        """The same for a program. Bytes of a path that are not UTF-8 are lone surrogates, as in
        os.fsdecode."""
        return asdict(self)


def read(instance: str | None, tell: Callable[[str], None] = lambda _: None) -> Sequence[Root]:
    """The roots of one instance, by its name, or of all instances; `tell` gets what is looked at.

    InstanceError if that instance has no root; UnsupportedError if Nix's database cannot be read.
    """
    chosen = [owner for owner in sorted(direct_roots.owners()) if instance in (None, owner[0])]
    if instance is not None and not chosen:
        raise InstanceError(
            f"no instance {instance!r} has roots here; 'inx-sidecar roots' lists all, those of a "
            "project as PROJECT_NAME"
        )
    found: list[Root] = []
    try:
        with closing(sqlite3.connect(f"file:{paths.NIX_DB}?mode=ro", uri=True, timeout=5)) as db:
            for number, (name, uuid) in enumerate(chosen, 1):
                tell(f"looking at {name} ({number} of {len(chosen)})")
                found += _roots(db, name, uuid)
    except sqlite3.Error as error:
        raise UnsupportedError(f"cannot read Nix's database {paths.NIX_DB}: {error}") from None
    return found


def _roots(db: sqlite3.Connection, lxc_name: str, uuid: str) -> Iterator[Root]:
    place = direct_roots.directory(lxc_name, uuid)
    present = direct_roots.read(place)
    record = MissingRecord.load(uuid)
    lost = (
        {root: path for root, path in record.lost.items() if root not in present} if record else {}
    )
    names = {parse_root_name(root)[0] for root in {**present, **lost} if root.startswith(LINKS)}
    texts = indirect_roots.read(uuid, names)
    member = member_of((lxc_name, uuid))
    moved = f", until it has been started on the member {member}" if member else ""
    sizes: dict[str, int | None] = {}
    for root, path in sorted(present.items()):
        if path not in sizes:
            sizes[path] = db.execute(_SIZE, (path,)).fetchone()[0]
        try:
            age = max(0.0, time.time() - os.lstat(f"{place}/{root}").st_mtime)
        except FileNotFoundError:
            continue  # dropped meanwhile
        yield Root(lxc_name, uuid, int(age), sizes[path], path, _held_by(root, texts) + moved)
    for root, path in sorted(lost.items()):
        age = max(0.0, time.time() - record.tried) if record else 0.0
        yield Root(lxc_name, uuid, int(age), None, path, _held_by(root, texts))


def _held_by(root: str, texts: dict[str, str]) -> str:
    if root.startswith(LINKS):
        return texts.get(parse_root_name(root)[0], "?")
    if root.startswith(SNAPSHOTS):
        return f"snapshot {snapshot_name(root.removeprefix(SNAPSHOTS).split('/')[0])}"
    if root.startswith(COPIED):
        return "its source, until it has been started"
    if root.startswith(SHOWN):
        return "its own store, until it is deleted there"
    return root


def _plain(text: str) -> str:
    """Text that a container or a user chose, escaped so that a terminal does not obey it."""
    return ascii(text)[1:-1]


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
