"""A closure is read from Nix's database: all that paths need, and no more."""

import asyncio
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from inx_sidecar.base import paths
from inx_sidecar.base.errors import SystemMissingError, UnsupportedError
from inx_sidecar.nix import closure
from inx_sidecar.nix.closure import Registration, closure_of, registrations_of, sizes_of
from inx_sidecar.nix.own_database import encode

pytestmark = pytest.mark.isolated

# As Nix 2 makes it (libstore/schema.sql).
SCHEMA: Final = """
    pragma journal_mode = wal;
    create table ValidPaths (
        id integer primary key autoincrement not null,
        path text unique not null,
        hash text not null,
        registrationTime integer not null,
        deriver text,
        narSize integer,
        ultimate integer,
        sigs text,
        ca text
    );
    create table Refs (
        referrer integer not null,
        reference integer not null,
        primary key (referrer, reference),
        foreign key (referrer) references ValidPaths(id) on delete cascade,
        foreign key (reference) references ValidPaths(id) on delete restrict
    );
    create index IndexReferrer on Refs(referrer);
    create index IndexReference on Refs(reference);
"""
NEEDS: Final[Mapping[str, str]] = {
    "alone": "",
    "itself": "itself",
    "first": "second",
    "second": "third",
    "third": "",
    "top": "left right",
    "left": "bottom",
    "right": "bottom right",
    "bottom": "",
    "egg": "hen",
    "hen": "egg alone",
    "deep0": "deep1",
    **{f"deep{number}": f"deep{number + 1}" for number in range(1, 2000)},
    "deep2000": "",
}


def stored(name: str) -> str:
    return f"/nix/store/{'0' * 32}-{name}"


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """Nix's database, kept open as the daemon keeps it while it writes."""
    monkeypatch.setattr(paths, "NIX_DB", str(tmp_path / "db.sqlite"))
    with closing(sqlite3.connect(paths.NIX_DB)) as db:
        db.executescript(SCHEMA)
        add = "insert into ValidPaths (path, hash, registrationTime) values (?, '', 0)"
        numbers = {name: db.execute(add, (stored(name),)).lastrowid for name in NEEDS}
        for name, needs in NEEDS.items():
            for need in needs.split():
                db.execute("insert into Refs values (?, ?)", (numbers[name], numbers[need]))
        db.commit()
        yield db


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("alone", "alone"),
        ("itself", "itself"),
        ("first", "first second third"),
        ("second", "second third"),
        ("top", "top left right bottom"),
        ("egg", "egg hen alone"),
        ("first left", "first second third left bottom"),
        ("first third", "first second third"),
        ("alone alone", "alone"),
        ("deep0", " ".join(f"deep{number}" for number in range(2001))),
    ],
    ids=str.split,
)
def test_a_closure_is_all_that_paths_need_and_no_more(wanted: str, found: str) -> None:
    closed = asyncio.run(closure_of([stored(name) for name in wanted.split()]))
    assert closed == {stored(name) for name in found.split()}


@pytest.mark.parametrize("wanted", [["gone"], ["first", "gone"], ["gone", "first"]])
def test_a_path_that_is_not_valid_has_no_closure(
    database: sqlite3.Connection, wanted: list[str]
) -> None:
    add = "insert into ValidPaths (path, hash, registrationTime) values (?, '', 0)"
    database.execute(add, (stored("gone"),))  # not committed: not valid yet
    with pytest.raises(SystemMissingError, match=f"^{stored('gone')} is not in the store$"):
        asyncio.run(closure_of([stored(name) for name in wanted]))
    database.commit()
    assert stored("gone") in asyncio.run(closure_of([stored(name) for name in wanted]))


def test_the_sizes_of_closures(database: sqlite3.Connection) -> None:
    database.execute("update ValidPaths set narSize = 7 where path = ?", (stored("third"),))
    database.commit()
    assert asyncio.run(sizes_of([stored("first"), stored("alone")])) == [
        {stored("first"): 0, stored("second"): 0, stored("third"): 7},
        {stored("alone"): 0},
    ]
    with pytest.raises(SystemMissingError, match=f"^{stored('gone')} is not in the store$"):
        asyncio.run(sizes_of([stored("first"), stored("gone")]))


@pytest.mark.usefixtures("database")
def test_a_closure_without_end_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closure, "_COMPARED_MAX", 3)
    assert len(asyncio.run(sizes_of([stored("first")]))[0]) == 3
    with pytest.raises(UnsupportedError, match=r"deep0 has over 3 store paths$"):
        asyncio.run(sizes_of([stored("deep0")]))


def test_sizes_need_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "NIX_DB", str(tmp_path / "none.sqlite"))
    with pytest.raises(UnsupportedError, match="cannot read Nix's database"):
        asyncio.run(sizes_of([stored("first")]))


def registration(name: str, references: str = "") -> Registration:
    names = tuple(named(reference) for reference in references.split())
    return Registration(named(name), "", 0, None, "", "", names)


def named(name: str) -> str:
    return stored(name).removeprefix("/nix/store/")


@pytest.mark.usefixtures("database")
def test_registrations_are_in_the_order_of_names_and_refer_to_each_other() -> None:
    wanted = [named(name) for name in ("right", "top", "left", "bottom")]
    assert asyncio.run(registrations_of(wanted)) == [
        registration("bottom"),
        registration("left", "bottom"),
        registration("right", "bottom right"),
        registration("top", "left right"),
    ]


def test_a_registration_has_all_but_the_deriver(database: sqlite3.Connection) -> None:
    database.execute(
        "update ValidPaths set hash = 'sha256:00', registrationTime = 7, narSize = 9, "
        "sigs = 'one:A= two:B=', ca = 'fixed:r:sha256:11', deriver = ?, ultimate = 1 "
        "where path = ?",
        (stored("alone.drv"), stored("alone")),
    )
    database.commit()
    assert asyncio.run(registrations_of([named("alone")])) == [
        Registration(
            named("alone"), "sha256:00", 7, 9, "one:A= two:B=", "fixed:r:sha256:11", ()
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("added", "kept"),
    [
        (b"", "one:A="),
        (b" two:BC+/==", "one:A= two:BC+/=="),
        (b" two:B=\tx\n" + stored("gone").encode() + b"\tsha256:0\t1\t\t\t\t", "one:A="),
        (b" \xff\xfe:B= \0:B= two:B\0 :B= two: two three:B!", "one:A="),
        (b" two:B= " + b"x" * 8192, ""),
    ],
    ids=["none", "another", "lines", "bytes", "long"],
)
def test_only_signatures_are_read_though_any_client_of_a_daemon_can_add_texts(
    database: sqlite3.Connection, added: bytes, kept: str
) -> None:
    database.execute(
        "update ValidPaths set sigs = cast(? as text) where path = ?",
        (b"one:A=" + added, stored("alone")),
    )
    database.commit()
    (found,) = asyncio.run(registrations_of([named("alone")]))
    assert found.signatures == kept
    assert encode([found], "uuid").data.count(b"\n") == 1
    assert encode([found], "uuid").data.count(b"\t") == 6


@pytest.mark.usefixtures("database")
def test_a_reference_to_another_path_is_left_out() -> None:
    assert asyncio.run(registrations_of([named("first")])) == [registration("first")]


@pytest.mark.usefixtures("database")
def test_many_registrations_are_read_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [named(f"deep{number}") for number in range(2001)]
    assert len(asyncio.run(registrations_of(wanted))) == 2001
    monkeypatch.setattr(closure, "_READ_AT_ONCE", 2001)
    assert len(asyncio.run(registrations_of(wanted))) == 2001


@pytest.mark.usefixtures("database")
def test_what_is_not_valid_has_no_registration() -> None:
    with pytest.raises(SystemMissingError, match=f"^{stored('gone')} is not in the store$"):
        asyncio.run(registrations_of([named("alone"), named("gone")]))


def test_registrations_need_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "NIX_DB", str(tmp_path / "none.sqlite"))
    with pytest.raises(UnsupportedError, match="cannot read Nix's database"):
        asyncio.run(registrations_of([named("first")]))


@pytest.mark.usefixtures("database")
def test_nothing_has_no_registration() -> None:
    assert asyncio.run(registrations_of([])) == []


@pytest.mark.usefixtures("database")
def test_registrations_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closure, "_PARAMETERS_MAX", 2)
    wanted = [named(name) for name in ("top", "left", "right", "bottom", "alone")]
    found = asyncio.run(registrations_of(wanted))
    assert [row.name for row in found] == sorted(wanted)
    assert found[-1].references == (named("left"), named("right"))
