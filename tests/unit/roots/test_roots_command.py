"""`inx-sidecar roots` lists each root with its age, the size of its closure and its store path."""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, UnsupportedError
from inx_sidecar.links import indirect_roots
from inx_sidecar.roots import roots_command
from inx_sidecar.roots.link_roots import root_name

pytestmark = pytest.mark.gc

WEB = "11111111-2222-3333-4444-555555555555"
SHOP = "21111111-2222-3333-4444-555555555555"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def store(digit: str) -> str:
    return f"/nix/store/{digit * 32}-x{digit}"


ONE, TWO, LOOP, OTHER, BIG, LOST = (store(digit) for digit in "123459")
SIZES = {ONE: 3 * MIB, TWO: 512, LOOP: 10 * KIB, OTHER: 20 * KIB, BIG: 5 * GIB // 2}
REFERENCES = [(ONE, TWO), (ONE, ONE), (LOOP, OTHER), (OTHER, LOOP), (BIG, ONE)]


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path / "gcroots"))
    monkeypatch.setattr(paths, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(paths, "NIX_DB", str(tmp_path / "db.sqlite"))
    with closing(sqlite3.connect(paths.NIX_DB)) as db:
        db.executescript("""
            create table ValidPaths (
                id integer primary key autoincrement, path text unique not null, narSize integer);
            create table Refs (referrer integer, reference integer);
        """)  # fmt: skip
        db.executemany("insert into ValidPaths (path, narSize) values (?, ?)", SIZES.items())
        db.executemany(
            "insert into Refs select a.id, b.id from ValidPaths a, ValidPaths b "
            "where a.path = ? and b.path = ?",
            REFERENCES,
        )
        db.commit()


def root(name: str, path: str, *, instance: str = "web", uuid: str = WEB, age: float = 0) -> None:
    place = Path(paths.GCROOTS, f"{instance}.{uuid}", name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(path)
    then = time.time() - age
    os.utime(place, (then, then), follow_symlinks=False)


def link(
    text: str, path: str, *, uuid: str = WEB, home: bool = True, instance: str = "web"
) -> None:
    os.makedirs(paths.auto_dir(uuid), exist_ok=True)
    indirect_roots.put(uuid, text)
    root(root_name(indirect_roots.name_of(text), path, home), path, instance=instance, uuid=uuid)


def rows(instance: str | None = None) -> list[list[str]]:
    """The cells of each root."""
    found = [root.row() for root in roots_command.read(instance)]
    assert all(cell.isprintable() and cell.isascii() for row in found for cell in row)
    assert all(len(row) == len(roots_command.HEADINGS) for row in found)
    return [list(row) for row in found]


def ends() -> list[str]:
    """The cells after the age, with single spaces between them."""
    return [" ".join(row[2:]) for row in rows()]


def test_without_roots_nothing_is_listed() -> None:
    assert rows() == []


def test_the_last_column_names_the_owner_of_each_kind_of_root() -> None:
    link("/root/result", TWO)
    link("/mnt/disk/result", TWO, home=False)
    root("system-1", TWO)
    root("booted-system", TWO)
    root("snapshots/before.1f.2a/x", TWO)
    root(f"shown/{'2' * 32}", TWO)
    assert sorted(ends()) == sorted(
        f"512 B {TWO} {what}"
        for what in (
            "/root/result", "/mnt/disk/result", "system-1", "booted-system", "snapshot before",
            "its own store, until it is deleted there",
        )
    )  # fmt: skip


def test_all_instances_or_one_are_listed() -> None:
    root("system-1", ONE)
    root("system-1", TWO, instance="shop_web", uuid=SHOP)
    root("system-1", TWO, uuid=SHOP)
    assert [row[0] for row in rows()] == ["shop_web", "web", "web"]
    assert [row[0] for row in rows("shop_web")] == ["shop_web"]
    assert [row[0] for row in rows("web")] == ["web", "web"]


@pytest.mark.parametrize("name", ["we", "WEB", "web.", "", "*", f"web.{WEB}"])
def test_an_instance_without_roots_is_an_error(name: str) -> None:
    root("system-1", ONE)
    with pytest.raises(InstanceError, match=f"no instance {name!r}".replace("*", r"\*")):
        roots_command.read(name)


@pytest.mark.parametrize(
    ("path", "size"),
    [
        (TWO, "512 B"),
        (ONE, "3 MiB"),
        (LOOP, "30 KiB"),
        (BIG, "2.5 GiB"),
        (LOST, "lost"),
        ("/nix/store/garbage", "lost"),
        ("x", "lost"),
    ],
)
def test_the_size_is_that_of_the_closure(path: str, size: str) -> None:
    root("system-1", path)
    assert ends()[0].startswith(f"{size} ")


@pytest.mark.parametrize(
    ("bytes_", "shown"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536 * KIB, "2 MiB"),
        (MIB, "1 MiB"), (1023 * MIB, "1023 MiB"), (GIB, "1.0 GiB"), (5000 * GIB, "5000.0 GiB"),
    ],
)  # fmt: skip
def test_a_size_is_short(bytes_: int, shown: str) -> None:
    assert roots_command._size(bytes_) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"), (59, "59s"), (60, "1m"), (3599, "60m"), (3600, "1h"), (86399, "24h"),
        (86400, "1d"), (400 * 86400, "400d"),
    ],
)  # fmt: skip
def test_an_age_is_short(seconds: int, shown: str) -> None:
    assert roots_command._age(seconds) == shown


def test_the_age_is_the_age_of_the_root() -> None:
    root("system-1", ONE, age=3 * 86400)
    root("system-2", ONE, age=2 * 3600 + 60)
    root("system-3", ONE, age=-500)
    assert [row[1] for row in rows()] == ["3d", "2h", "0s"]


HOSTILE = {
    "escape sequences": ("/tmp/\x1b[2J\x1b]0;x\x07", r"/tmp/\x1b[2J\x1b]0;x\x07"),
    "lines of its own": ("/tmp/a\nweb 1d 1 B", r"/tmp/a\nweb 1d 1 B"),
    "a return": ("/tmp/a\rroot", r"/tmp/a\rroot"),
    "no unicode": (os.fsdecode(b"/tmp/\xff\x9b"), r"/tmp/\udcff\udc9b"),
    "letters in another order": ("/tmp/\u202egnp", r"/tmp/\u202egnp"),
    "letters": ("/home/ü", r"/home/\xfc"),
    "quotes": ("/tmp/'\"", r"/tmp/\'" + '"'),
    "a quote": ("/tmp/it's", "/tmp/it's"),
    "a backslash": ("/tmp/\\x1b", r"/tmp/\\x1b"),
    "a long one": ("/" + "x" * 4000, "/" + "x" * 4000),
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_text_from_a_container_is_shown_as_plain_text(text: str, shown: str) -> None:
    link(text, TWO)
    assert ends() == [f"512 B {TWO} {shown}"]


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("before.1f.2a", "before"),
        ("v1.2.3.1f.2a", "v1.2.3"),
        ("a\x1b[2Jb.1f.2a", r"a\x1b[2Jb"),
        ("ü.1f.2a", r"\xfc"),
    ],
)
def test_a_snapshot_is_named_as_incus_does_and_in_plain_text(key: str, shown: str) -> None:
    root(f"snapshots/{key}/{'2' * 32}", TWO)
    assert ends() == [f"512 B {TWO} snapshot {shown}"]


def test_a_root_without_a_registration_is_listed() -> None:
    link("/root/result", TWO)
    indirect_roots.forget(WEB, [indirect_roots.name_of("/root/result")])
    assert ends() == [f"512 B {TWO} ?"]


def test_an_unfinished_link_of_a_crash_is_listed() -> None:
    root("links/.0123456789abcdef", TWO)
    root(".0123456789abcdef", TWO)
    assert sorted(ends()) == [f"512 B {TWO} .0123456789abcdef", f"512 B {TWO} ?"]


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 100])
def test_a_database_that_cannot_be_read_is_an_error(content: bytes | None) -> None:
    root("system-1", ONE)
    os.unlink(paths.NIX_DB)
    if content is not None:
        Path(paths.NIX_DB).write_bytes(content)
    with pytest.raises(UnsupportedError, match="cannot read Nix's database"):
        roots_command.read(None)
    assert os.path.exists(paths.NIX_DB) == (content is not None)


def test_the_database_is_only_read() -> None:
    root("system-1", ONE)
    before = Path(paths.NIX_DB).read_bytes()
    assert len(rows()) == 1
    assert Path(paths.NIX_DB).read_bytes() == before
