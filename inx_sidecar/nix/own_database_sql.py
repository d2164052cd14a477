"""What is written to the Nix database inside an instance: tables, and rows of what is shown.

Only `own_database_writer` runs this, in a process that has given up everything else. All that the
database says is the word of root inside.
"""

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Final

STORE: Final = b"/nix/store/"
_VALUE_MAX: Final = 1 << 20

# libstore/schema.sql of Nix, unchanged since Nix 2.0; Nix makes further tables when it needs them.
_TABLES: Final = ("ValidPaths", "Refs", "DerivationOutputs")
# Triggers of Nix, each with the table in which it deletes; the second one is that of
# libstore/ca-specific-schema.sql.
_TRIGGERS: Final = {
    "DeleteSelfRefs": "Refs",
    "DeleteSelfRefsViaRealisations": "RealisationsRefs",
}
_STATEMENTS: Final = (
    """create table if not exists ValidPaths (
        id integer primary key autoincrement not null,
        path text unique not null,
        hash text not null,
        registrationTime integer not null,
        deriver text,
        narSize integer,
        ultimate integer,
        sigs text,
        ca text
    )""",
    """create table if not exists Refs (
        referrer integer not null,
        reference integer not null,
        primary key (referrer, reference),
        foreign key (referrer) references ValidPaths(id) on delete cascade,
        foreign key (reference) references ValidPaths(id) on delete restrict
    )""",
    "create index if not exists IndexReferrer on Refs(referrer)",
    "create index if not exists IndexReference on Refs(reference)",
    """create trigger if not exists DeleteSelfRefs before delete on ValidPaths
    begin
        delete from Refs where referrer = old.id and reference = old.id;
    end""",
    """create table if not exists DerivationOutputs (
        drv integer not null,
        id text not null,
        path text not null,
        primary key (drv, id),
        foreign key (drv) references ValidPaths(id) on delete cascade
    )""",
    "create index if not exists IndexDerivationOutputs on DerivationOutputs(path)",
)
# https://www.sqlite.org/security.html; the directory of temporary files is not there.
_PRAGMAS: Final = (
    "trusted_schema = off", "cell_size_check = on", "mmap_size = 0", "temp_store = memory",
    "foreign_keys = on", "synchronous = full",
)  # fmt: skip
_ACTIONS: Final = frozenset(
    {
        sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_TRIGGER,
        sqlite3.SQLITE_DELETE, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_PRAGMA, sqlite3.SQLITE_READ,
        sqlite3.SQLITE_REINDEX, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_TRANSACTION,
        sqlite3.SQLITE_UPDATE,
    }
)  # fmt: skip
_INSERT: Final = (
    "insert into ValidPaths (hash, registrationTime, narSize, sigs, ca, path) "
    "values (?, ?, ?, ?, ?, ?)"
)
# What is read now is the host's copy, which nobody inside has built.
_UPDATE: Final = (
    "update ValidPaths set hash = ?, registrationTime = ?, narSize = ?, sigs = ?, ca = ?, "
    "ultimate = null where path = ?"
)

Row = tuple[tuple[str | int | None, ...], list[int]]


class Refused(Exception):
    """The answer: a word of `own_database`, and a text."""


def write_rows(
    file: str,
    rows: Mapping[bytes, Row],
    own: Callable[[bytes], bool],
    *,
    starts: bool,
    is_new: bool,
    lock_seconds: int,
) -> int:
    """Register `rows` in the database `file`, all of them or none.

    `own` tells whether the instance has a path of this name itself. With `starts`, the database
    then has exactly what is there: rows of other paths stay only if they are the instance's own,
    and rows of the same paths become the host's, also where a build or a collection that was killed
    has left a part of the path. Otherwise rows are only added: Nix inside may have built the same
    path with another content. Refused if it has begun to.

    Returns how many of the instance's own paths lost their row, since they need what is not there.

    sqlite3.Error or Refused if the database cannot be written, or is not what Nix makes.
    """
    with closing(sqlite3.connect(file, timeout=lock_seconds, isolation_level=None)) as db:
        db.set_authorizer(_authorize)
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_MAX)
        db.text_factory = bytes  # a text of the container need not be UTF-8
        for pragma in _PRAGMAS:
            db.execute(f"pragma {pragma}")
        if is_new:
            db.execute("pragma journal_mode = wal")
        db.execute("begin immediate")
        _check_tables(db)
        for statement in _STATEMENTS:
            db.execute(statement)
        lost = _purge(db, rows, own) if starts else 0
        _register(db, rows, own, replace=starts)
        db.execute("commit")
    return lost


def _authorize(
    action: int, first: str | None, _second: str | None, _db: str | None, source: str | None
) -> int:
    """Allow what the statements of this module need, and of triggers and views of the database
    only what Nix' own triggers do. SQLite asks when it compiles a statement.

    Constraints and indexes may still call functions, in this process, which can be killed.
    """
    if source is None:
        return sqlite3.SQLITE_OK if action in _ACTIONS else sqlite3.SQLITE_DENY
    deletes = action == sqlite3.SQLITE_DELETE and first == _TRIGGERS.get(source)
    reads = action in (sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT)
    if source in _TRIGGERS and (deletes or reads):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _check_tables(db: sqlite3.Connection) -> None:
    """Refuse views and virtual tables in the place of Nix' tables: they have no root page."""
    marks = ", ".join("?" * len(_TABLES))
    query = (
        f"select name from sqlite_master where name collate nocase in ({marks}) "
        "and (type <> 'table' or rootpage = 0)"
    )
    for (name,) in db.execute(query, _TABLES):
        raise Refused(f"unreadable {_text_of(name)} is not a table")


def _purge(db: sqlite3.Connection, rows: Mapping[bytes, Row], own: Callable[[bytes], bool]) -> int:
    """Remove the rows of paths that are not there, and all that refers to them. Returns how many of
    these are the instance's own."""
    gone: set[int] = set()
    own_ones: set[int] = set()
    for number, path in db.execute("select id, path from ValidPaths").fetchall():
        is_name = isinstance(path, bytes) and path.startswith(STORE)
        name = path.removeprefix(STORE) if is_name else b""
        if name not in rows:
            (own_ones if own(name) else gone).add(number)
    todo = list(gone)
    while todo:
        wanted = (todo.pop(),)
        for (referrer,) in db.execute("select referrer from Refs where reference = ?", wanted):
            if referrer not in gone:
                gone.add(referrer)
                todo.append(referrer)
    for statement in ("delete from Refs where referrer = ?", "delete from ValidPaths where id = ?"):
        db.executemany(statement, ((number,) for number in gone))
    return len(gone & own_ones)


def _register(
    db: sqlite3.Connection,
    rows: Mapping[bytes, Row],
    own: Callable[[bytes], bool],
    *,
    replace: bool,
) -> None:
    present = dict(db.execute("select path, hash from ValidPaths"))
    names = list(rows)
    new, changed = [], []
    for name in names:
        values, _ = rows[name]
        nar_hash = present.get(STORE + name)
        if nar_hash is None:
            if own(name) and not replace:
                raise Refused(f"begun {name.decode()}")
            new.append(name)
        elif replace and nar_hash != str(values[0]).encode():
            changed.append(name)
    db.executemany(_INSERT, (rows[name][0] for name in new))
    db.executemany(_UPDATE, (rows[name][0] for name in changed))
    ids = dict(db.execute("select path, id from ValidPaths")) if new or changed else {}
    db.executemany(
        "delete from Refs where referrer = ?", ((ids[STORE + name],) for name in changed)
    )
    references = (
        (ids[STORE + name], ids[STORE + names[number]])
        for name in (*new, *changed)
        for number in rows[name][1]
    )
    db.executemany("insert or ignore into Refs (referrer, reference) values (?, ?)", references)


def _text_of(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
