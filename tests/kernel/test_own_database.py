"""What an instance is shown is registered in the database inside, whatever that database is."""

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from support.containers import Sandbox, apart

from inx_sidecar.base.errors import InstanceError, UnsupportedError
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_REC,
    mount,
    mount_setattr,
    open_tree,
    opened,
    unshare,
)
from inx_sidecar.nix import own_database
from inx_sidecar.nix.closure import Registration
from inx_sidecar.nix.own_database import Rows, encode, is_registered
from kernel.views import name_of

pytestmark = pytest.mark.isolated

WEB, SHOP = (f"{number}0000000-0000-4000-8000-000000000000" for number in (1, 2))
SYSTEM, LIBRARY, OWN, DEEP = map(name_of, ("system", "library", "own", "deep"))
GONE: Final = name_of("gone")


def registration(name: str, *references: str, nar_hash: str = "sha256:host") -> Registration:
    return Registration(name, nar_hash, 7, 100, "key:sig", "", references)


ROWS: Final = encode(
    [registration(LIBRARY, LIBRARY), registration(SYSTEM, LIBRARY, SYSTEM)], WEB
)  # fmt: skip


@pytest.fixture
def nix(sandbox: Sandbox) -> Path:
    """/nix in the root file system of the sandbox, with an upper layer."""
    path = sandbox.rootfs / "nix"
    sandbox.inside(lambda: os.makedirs("/nix/.inx/upper"))
    return path


def write(
    sandbox: Sandbox,
    rows: Rows = ROWS,
    *,
    starts: bool = True,
    seconds: int = 20,
    lock_seconds: int = 5,
) -> int:
    return asyncio.run(written(sandbox, rows, starts, seconds, lock_seconds))


async def written(
    sandbox: Sandbox, rows: Rows, starts: bool = True, seconds: int = 20, lock_seconds: int = 5
) -> int:
    with contextlib.ExitStack() as fds:
        clone = fds.enter_context(opened(open_tree(AT_FDCWD, str(sandbox.rootfs))))
        flags = MOUNT_ATTR_NOSYMFOLLOW | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID
        mount_setattr(clone, flags, propagation=MS_PRIVATE)
        place = fds.enter_context(opened(os.open("nix", os.O_PATH, dir_fd=clone)))
        user = None
        if not sandbox.privileged:
            user = os.open(f"/proc/{sandbox.pid}/ns/user", os.O_RDONLY)
            fds.callback(os.close, user)
        return await own_database.write(
            place, user, rows, "web", starts=starts, seconds=seconds, lock_seconds=lock_seconds
        )


def opened_database(nix: Path) -> sqlite3.Connection:
    (nix / "var/nix/db").mkdir(parents=True, exist_ok=True)
    return sqlite3.connect(nix / "var/nix/db/db.sqlite", isolation_level=None)


def rows_of(nix: Path) -> dict[str, tuple[str, list[str]]]:
    """The hash and the references of each valid path, by names."""
    with closing(opened_database(nix)) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert db.execute("pragma foreign_key_check").fetchall() == []
        found: dict[str, tuple[str, list[str]]] = {
            path: (nar_hash, [])
            for path, nar_hash in db.execute("select path, hash from ValidPaths")
        }
        query = (
            "select a.path, b.path from Refs join ValidPaths a on a.id = referrer "
            "join ValidPaths b on b.id = reference order by b.path"
        )
        for referrer, reference in db.execute(query):
            found[referrer][1].append(os.path.basename(reference))
    return {os.path.basename(path): row for path, row in found.items()}


SHOWN: Final = {
    LIBRARY: ("sha256:host", [LIBRARY]),
    SYSTEM: ("sha256:host", [LIBRARY, SYSTEM]),
}


def count_of(nix: Path) -> int:
    """How many rows the database has; none, if it has no tables, or is not there."""
    with closing(opened_database(nix)) as db:
        tables = {name for (name,) in db.execute("select name from sqlite_master")}
    return len(rows_of(nix)) if "ValidPaths" in tables else 0


def give_to_root_inside(sandbox: Sandbox, nix: Path) -> None:
    for path in (nix, *nix.rglob("*")):
        os.chown(path, sandbox.first_id, sandbox.first_id, follow_symlinks=False)


def insert(sandbox: Sandbox, nix: Path, *names: str, needs: Iterable[tuple[str, str]] = ()) -> None:
    """What Nix inside registers."""
    with closing(opened_database(nix)) as db:
        add = "insert into ValidPaths (path, hash, registrationTime) values (?, 'sha256:own', 1)"
        for name in names:
            db.execute(add, (f"/nix/store/{name}",))
        ids = {
            os.path.basename(path): number
            for path, number in db.execute("select path, id from ValidPaths")
        }
        for referrer, reference in needs:
            db.execute("insert into Refs values (?, ?)", (ids[referrer], ids[reference]))
    give_to_root_inside(sandbox, nix)


def test_a_new_database_is_as_nix_makes_it(sandbox: Sandbox, nix: Path) -> None:
    write(sandbox)
    directory = nix / "var/nix/db"
    assert (directory / "schema").read_text() == "10"
    assert rows_of(nix) == SHOWN
    with closing(opened_database(nix)) as db:
        assert db.execute("pragma journal_mode").fetchone() == ("wal",)
        query = (
            "select registrationTime, deriver, narSize, ultimate, sigs, ca from ValidPaths "
            "where path like '%system'"
        )
        assert db.execute(query).fetchone() == (7, None, 100, None, "key:sig", None)
        names = {name for (name,) in db.execute("select name from sqlite_master")}
        assert names >= {"DerivationOutputs", "DeleteSelfRefs", "IndexReferrer", "IndexReference"}
    owners = {path.lstat().st_uid for path in nix.rglob("*") if not path.name.startswith("db.sql")}
    assert owners == {sandbox.first_id}
    assert directory.joinpath("db.sqlite").stat().st_uid == sandbox.first_id


def test_the_same_rows_change_nothing(sandbox: Sandbox, nix: Path) -> None:
    for starts in (True, True, False):
        write(sandbox, starts=starts)
        assert rows_of(nix) == SHOWN


def test_nix_can_delete_what_was_registered(sandbox: Sandbox, nix: Path) -> None:
    """A path that refers to itself, by the trigger of Nix."""
    write(sandbox)
    with closing(opened_database(nix)) as db:
        db.execute("pragma foreign_keys = on")
        db.execute("delete from ValidPaths where path like '%system'")
    assert rows_of(nix) == {LIBRARY: SHOWN[LIBRARY]}
    write(sandbox)
    assert rows_of(nix) == SHOWN


def test_a_start_keeps_what_nix_inside_has_and_removes_what_is_not_there(
    sandbox: Sandbox, nix: Path
) -> None:
    write(sandbox)
    hidden, above = name_of("hidden"), name_of("above")
    needs = [(OWN, LIBRARY), (DEEP, GONE), (above, DEEP), (above, above), (OWN, OWN)]
    insert(sandbox, nix, OWN, GONE, DEEP, above, hidden, needs=needs)
    for name in (OWN, DEEP, above):
        (nix / ".inx/upper" / name).mkdir()
    os.mknod(nix / ".inx/upper" / hidden, stat.S_IFCHR, os.makedev(0, 0))
    # What the instance has made, and cannot be valid any more, is counted.
    assert write(sandbox) == len((DEEP, above))
    assert rows_of(nix) == SHOWN | {OWN: ("sha256:own", [LIBRARY, OWN])}
    assert write(sandbox) == 0


def test_outputs_of_a_derivation_that_is_gone_are_forgotten(sandbox: Sandbox, nix: Path) -> None:
    write(sandbox)
    insert(sandbox, nix, GONE)
    with closing(opened_database(nix)) as db:
        db.execute("insert into DerivationOutputs select id, 'out', path from ValidPaths")
    write(sandbox)
    with closing(opened_database(nix)) as db:
        found = {path for (path,) in db.execute("select path from DerivationOutputs")}
    assert found == {f"/nix/store/{name}" for name in (LIBRARY, SYSTEM)}


# libstore/ca-specific-schema.sql of Nix 2.26, which is used with the feature ca-derivations.
REALISATIONS: Final = """
    create table Realisations (
        id integer primary key autoincrement not null,
        drvPath text not null,
        outputName text not null,
        outputPath integer not null,
        signatures text,
        foreign key (outputPath) references ValidPaths(id) on delete cascade
    );
    create trigger DeleteSelfRefsViaRealisations before delete on ValidPaths
      begin
        delete from RealisationsRefs where realisationReference in (
          select id from Realisations where outputPath = old.id
        );
      end;
    create table RealisationsRefs (
        referrer integer not null,
        realisationReference integer,
        foreign key (referrer) references Realisations(id) on delete cascade,
        foreign key (realisationReference) references Realisations(id) on delete restrict
    );
"""


def test_outputs_that_are_named_by_their_content_are_forgotten_with_their_paths(
    sandbox: Sandbox, nix: Path
) -> None:
    write(sandbox)
    with closing(opened_database(nix)) as db:
        db.executescript(REALISATIONS)
    insert(sandbox, nix, GONE, OWN)
    (nix / ".inx/upper" / OWN).mkdir()
    with closing(opened_database(nix)) as db:
        for name in (GONE, OWN):
            db.execute(
                "insert into Realisations (drvPath, outputName, outputPath) "
                "select 'drv', 'out', id from ValidPaths where path = ?", (f"/nix/store/{name}",),
            )  # fmt: skip
        db.execute("insert into RealisationsRefs select id, id from Realisations")
    write(sandbox)
    assert rows_of(nix).keys() == {LIBRARY, SYSTEM, OWN}
    with closing(opened_database(nix)) as db:
        for table in ("Realisations", "RealisationsRefs"):
            assert db.execute(f"select count(*) from {table}").fetchone() == (1,)


def test_a_reference_to_a_path_that_is_not_there_takes_what_is_shown_with_it_and_back(
    sandbox: Sandbox, nix: Path
) -> None:
    write(sandbox)
    insert(sandbox, nix, GONE, needs=[(LIBRARY, GONE)])
    write(sandbox)
    assert rows_of(nix) == SHOWN


ODD: Final = [
    "", ".", "..", "../store", f"{OWN}/bin", "//", f"x/../{OWN}", "a" * 300, "\x00", f"{OWN}\x00",
]  # fmt: skip


def test_only_entries_of_the_upper_layer_are_the_instances_own(sandbox: Sandbox, nix: Path) -> None:
    (nix / ".inx/upper" / OWN / "bin").mkdir(parents=True)
    (nix / ".inx/upper/odd\nname").mkdir()
    write(sandbox)
    insert(sandbox, nix, OWN, "odd\nname", *ODD)
    with closing(opened_database(nix)) as db:
        add = "insert into ValidPaths (path, hash, registrationTime) values (?, 'x', 1)"
        for path in (b"\xff\xfe", b"/nix/store/\xff", 7, f"/nix/./store/{OWN}", f"nix/store/{OWN}"):
            db.execute(add, (path,))
    write(sandbox)
    assert rows_of(nix).keys() == {LIBRARY, SYSTEM, OWN, "odd\nname"}


def test_a_path_that_nix_inside_has_built_is_the_hosts_after_a_start(
    sandbox: Sandbox, nix: Path
) -> None:
    """The start shows the host's copy. While the instance runs, its own copy stays, and its row."""
    write(sandbox, encode([], WEB))
    insert(sandbox, nix, SYSTEM, OWN, needs=[(SYSTEM, OWN), (OWN, SYSTEM)])
    (nix / ".inx/upper" / OWN).mkdir()
    write(sandbox, starts=False)
    own = (OWN, ("sha256:own", [SYSTEM]))
    assert rows_of(nix) == dict(
        [own, (SYSTEM, ("sha256:own", [OWN])), (LIBRARY, SHOWN[LIBRARY])]
    )  # fmt: skip
    write(sandbox)
    assert rows_of(nix) == SHOWN | dict([own])


def test_rows_are_only_added_while_the_instance_runs(sandbox: Sandbox, nix: Path) -> None:
    write(sandbox, encode([], WEB))
    insert(sandbox, nix, GONE)
    write(sandbox, starts=False)
    assert rows_of(nix) == SHOWN | {GONE: ("sha256:own", [])}


def test_a_database_that_was_removed_is_made_by_a_start_alone(sandbox: Sandbox, nix: Path) -> None:
    """It would name what an update adds, and nothing of what is shown already."""
    write(sandbox)
    (nix / "var/nix/db/db.sqlite").unlink()
    with pytest.raises(InstanceError, match=r"^the Nix database inside 'web' was removed"):
        write(sandbox, starts=False)
    assert not (nix / "var/nix/db/db.sqlite").exists()
    write(sandbox)
    assert rows_of(nix) == SHOWN


def test_a_path_that_a_build_inside_has_begun_is_not_registered(
    sandbox: Sandbox, nix: Path
) -> None:
    """Its part in the upper layer hides what the host shows."""
    write(sandbox, encode([], WEB))
    (nix / ".inx/upper" / LIBRARY).mkdir()
    message = f"^a build inside 'web' has begun to make {LIBRARY}, which the new system needs; "
    with pytest.raises(InstanceError, match=message):
        write(sandbox, starts=False)
    assert count_of(nix) == 0
    insert(sandbox, nix, LIBRARY)
    write(sandbox, starts=False)
    assert rows_of(nix)[LIBRARY] == ("sha256:own", [])


def test_what_a_killed_build_has_left_does_not_hinder_a_start(sandbox: Sandbox, nix: Path) -> None:
    """The start moves it away (container/upper_layer.give_way)."""
    (nix / ".inx/upper" / LIBRARY).mkdir()
    write(sandbox)
    assert rows_of(nix) == SHOWN


def test_nothing_else_of_the_host_gets_into_the_instance(sandbox: Sandbox, nix: Path) -> None:
    write(sandbox)
    texts = b"".join(path.read_bytes() for path in nix.rglob("*") if path.is_file())
    assert texts.count(b"/nix/store/") >= 2
    for word in (b".drv", str(sandbox.rootfs).encode(), os.fsencode(os.uname().nodename)):
        assert word not in texts


def test_what_was_registered_last_need_not_be_written_again(sandbox: Sandbox, nix: Path) -> None:
    rootfs = str(sandbox.rootfs)
    assert not is_registered(rootfs, "web", ROWS)
    write(sandbox)
    assert is_registered(rootfs, "web", ROWS)
    assert not is_registered(rootfs, "web", encode([registration(LIBRARY)], WEB))
    more = encode([registration(LIBRARY, LIBRARY), registration(SYSTEM, LIBRARY, SYSTEM)], SHOP)
    assert not is_registered(rootfs, "web", more), "a copy has another uuid"
    with closing(opened_database(nix)) as db:
        assert db.execute("select count(*) from ValidPaths").fetchone() == (2,)
    assert is_registered(rootfs, "web", ROWS), "Nix inside has only looked"


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("change", ["deleted", "added", "grown"])
def test_what_was_written_since_the_last_start_is_written_again(
    sandbox: Sandbox, nix: Path, change: str, in_order: bool
) -> None:
    """Nix forgets a path, and then deletes it. If it is killed in between, the path is there."""
    write(sandbox)
    with contextlib.ExitStack() as files:
        if not in_order:  # the log is moved to the database when the last process closes it
            reader = files.enter_context(closing(opened_database(nix)))
            reader.execute("select count(*) from ValidPaths").fetchone()
        if change == "deleted":
            with closing(opened_database(nix)) as db:
                db.execute("delete from Refs")
                db.execute("delete from ValidPaths where path = ?", (f"/nix/store/{SYSTEM}",))
        elif change == "added":
            insert(sandbox, nix, GONE)
        else:
            write(sandbox, encode([registration(DEEP)], WEB), starts=False)
        give_to_root_inside(sandbox, nix)
        assert not is_registered(str(sandbox.rootfs), "web", ROWS)
    write(sandbox)
    assert is_registered(str(sandbox.rootfs), "web", ROWS)
    assert set(rows_of(nix)) == {SYSTEM, LIBRARY}


@pytest.mark.parametrize("damage", ["database", "copy", "file", "fifo", "text", "directory"])
def test_what_is_not_sure_to_be_registered_is_written_again(
    sandbox: Sandbox, nix: Path, damage: str
) -> None:
    write(sandbox)
    directory = nix / "var/nix/db"
    mark = directory / "inx-registered"
    text = os.readlink(mark)
    if damage == "database":
        (directory / "db.sqlite").unlink()
    elif damage == "copy":
        shutil.copytree(directory, nix / "copied", symlinks=True)
        shutil.rmtree(directory)
        (nix / "copied").rename(directory)
    elif damage == "directory":
        directory.rename(nix / "elsewhere")
        directory.symlink_to(nix / "elsewhere")
    else:
        mark.unlink()
        if damage == "file":
            mark.write_text(text)
        elif damage == "fifo":
            os.mkfifo(mark)
        else:
            mark.symlink_to(text.upper())
    assert not is_registered(str(sandbox.rootfs), "web", ROWS)


def test_what_was_registered_before_a_crash_of_the_host_is_written_again(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nix inside does not wait for the disk."""
    sandbox.inside(lambda: os.makedirs("/nix/.inx/upper"))
    write(sandbox)
    monkeypatch.setattr(own_database, "boot_id", lambda: "the next one")
    again = encode([registration(LIBRARY, LIBRARY), registration(SYSTEM, LIBRARY, SYSTEM)], WEB)
    assert again.data == ROWS.data
    assert not is_registered(str(sandbox.rootfs), "web", again)


def test_a_restored_database_with_the_same_inode_number_is_written_again(
    sandbox: Sandbox, nix: Path
) -> None:
    """A file system gives the number of a file that is gone to a later one."""
    write(sandbox)
    database, mark = (nix / "var/nix/db" / name for name in ("db.sqlite", "inx-registered"))
    digest, inode, *rest = os.readlink(mark).split()
    assert inode == str(database.stat().st_ino)
    shutil.copy(database, nix / "restored")
    (nix / "restored").rename(database)
    mark.unlink()
    mark.symlink_to(" ".join([digest, str(database.stat().st_ino), *rest]))
    assert not is_registered(str(sandbox.rootfs), "web", ROWS)


def view(db: sqlite3.Connection) -> None:
    db.execute("alter table ValidPaths rename to Real")
    db.execute("create view ValidPaths as select * from Real")


def virtual_table(db: sqlite3.Connection) -> None:
    db.execute("drop table Refs")
    db.execute("create virtual table refs using fts5(referrer, reference)")


def insert_trigger(db: sqlite3.Connection) -> None:
    db.execute(
        "create trigger Mine after insert on ValidPaths begin "
        "insert into DerivationOutputs values (new.id, new.path, new.path); end"
    )


def trigger_without_end(db: sqlite3.Connection) -> None:
    db.execute(
        "create trigger Mine before insert on Refs begin select count(*) from "
        "(with recursive n(i) as (select 1 union all select i + 1 from n) select i from n); end"
    )


def trigger_in_nixs_place(db: sqlite3.Connection) -> None:
    db.execute("drop trigger DeleteSelfRefs")
    db.execute(
        "create trigger DeleteSelfRefs after insert on ValidPaths begin "
        "update ValidPaths set hash = randomblob(1000000000); end"
    )


def other_columns(db: sqlite3.Connection) -> None:
    db.execute("drop table Refs")
    db.execute("create table Refs (a, b)")


def check_that_calls(db: sqlite3.Connection) -> None:
    db.execute("drop table Refs")
    db.execute(
        "create table Refs (referrer, reference, check (length(randomblob(1000000000)) > 0), "
        "primary key (referrer, reference))"
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (view, "ValidPaths is not a table"),
        (virtual_table, "refs is not a table"),
        (insert_trigger, "not authorized"),
        (trigger_without_end, "not authorized"),
        (trigger_in_nixs_place, "not authorized"),
        (other_columns, "no such column: referrer"),
        (check_that_calls, "string or blob too big"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_database_that_is_not_nixs_is_refused_and_left_alone(
    sandbox: Sandbox, nix: Path, damage: Callable[[sqlite3.Connection], None], reason: str
) -> None:
    write(sandbox, encode([], WEB))
    insert(sandbox, nix, GONE, needs=[(GONE, GONE)])
    with closing(opened_database(nix)) as db:
        damage(db)
        before = list(db.iterdump())
    give_to_root_inside(sandbox, nix)
    message = (
        rf"^the Nix database inside 'web' cannot be read \((access to .* is prohibited|{reason}"
        r").*\); remove /nix/var/nix/db/db.sqlite, with 'incus file delete' if the instance is "
        r"stopped, and start again$"
    )
    with pytest.raises(InstanceError, match=message):
        write(sandbox)
    with closing(opened_database(nix)) as db:
        assert list(db.iterdump()) == before
        (nix / "var/nix/db/db.sqlite").unlink()  # with all else that SQLite has made left there
    write(sandbox)
    assert rows_of(nix) == SHOWN


FILES: Final = ("db.sqlite", "db.sqlite-wal", "db.sqlite-shm", "db.sqlite-journal", "schema")


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "device"])
@pytest.mark.parametrize("name", FILES)
def test_only_a_file_is_opened(unprivileged: Sandbox, name: str, kind: str) -> None:
    directory = unprivileged.rootfs / "nix/var/nix/db"
    unprivileged.inside(lambda: os.makedirs("/nix/var/nix/db"))
    if kind == "fifo":
        os.mkfifo(directory / name)
    elif kind == "link":
        (directory / name).symlink_to("../target")
    elif kind == "directory":
        (directory / name).mkdir()
    else:
        os.mknod(directory / name, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(InstanceError, match=rf"cannot be used \({name} is not a file\)"):
        write(unprivileged)
    assert not (directory / "../target").exists()


@pytest.mark.parametrize("place", ["var", "var/nix", "var/nix/db"])
def test_a_link_in_the_place_of_the_directory_is_not_followed(
    unprivileged: Sandbox, place: str
) -> None:
    unprivileged.inside(lambda: os.makedirs("/nix/elsewhere/nix/db"))
    path = unprivileged.rootfs / "nix" / place
    unprivileged.inside(lambda: os.makedirs(os.path.dirname(f"/nix/{place}"), exist_ok=True))
    path.symlink_to("/elsewhere")
    with pytest.raises(InstanceError, match=r"cannot be used .*Too many levels of symbolic links"):
        write(unprivileged)
    assert list((unprivileged.rootfs / "nix/elsewhere").rglob("*.sqlite")) == []


@pytest.mark.parametrize("content", [b"not a database" * 999, b"SQLite format 3\0" + b"x" * 5000])
def test_what_is_no_database_is_refused_and_left_alone(
    unprivileged: Sandbox, content: bytes
) -> None:
    unprivileged.inside(lambda: os.makedirs("/nix/var/nix/db"))
    file = unprivileged.rootfs / "nix/var/nix/db/db.sqlite"
    file.write_bytes(content)
    os.chown(file, unprivileged.first_id, unprivileged.first_id)
    with pytest.raises(InstanceError, match=r"cannot be read \(.*(not a database|malformed)\)"):
        write(unprivileged)
    assert file.read_bytes() == content


def test_a_damaged_database_is_refused(unprivileged: Sandbox) -> None:
    many = [registration(name_of(f"{number:05}")) for number in range(3000)]
    unprivileged.inside(lambda: os.makedirs("/nix"))
    write(unprivileged, encode(many, WEB))
    file = unprivileged.rootfs / "nix/var/nix/db/db.sqlite"
    with open(file, "r+b") as damaged:
        damaged.seek(4096)
        damaged.write(b"\xff" * (file.stat().st_size - 8192))
    with pytest.raises(InstanceError, match=r"cannot be read \(database disk image is malformed\)"):
        write(unprivileged, encode(many[1:], WEB))


@pytest.mark.parametrize("name", ["db.sqlite", "db.sqlite-wal"])
def test_a_file_of_ten_terabytes_takes_neither_time_nor_space(
    unprivileged: Sandbox, name: str
) -> None:
    unprivileged.inside(lambda: os.makedirs("/nix"))
    write(unprivileged)
    nix = unprivileged.rootfs / "nix"
    file = nix / "var/nix/db" / name
    file.touch()
    os.truncate(file, 10 << 40)
    give_to_root_inside(unprivileged, nix)
    with contextlib.suppress(InstanceError):
        write(unprivileged, seconds=20)
    assert file.exists() is (name == "db.sqlite")
    assert file.stat().st_blocks * 512 < 4 << 20 if file.exists() else True


@pytest.mark.parametrize(
    ("text", "shown"),
    [("11", "11"), ("9\n", "9"), ("\x1b[31m\nred", r"\?\[31m red"), ("x" * 9999, "x" * 20)],
)
def test_another_schema_is_refused(unprivileged: Sandbox, text: str, shown: str) -> None:
    unprivileged.inside(lambda: os.makedirs("/nix"))
    write(unprivileged)
    (unprivileged.rootfs / "nix/var/nix/db/schema").write_text(text)
    message = rf"^the Nix database inside 'web' has the schema {shown}, which inx does not know; "
    with pytest.raises(InstanceError, match=message):
        write(unprivileged)


@pytest.mark.parametrize("words", ["begin immediate", "begin exclusive"])
def test_a_database_that_is_locked_is_named(sandbox: Sandbox, nix: Path, words: str) -> None:
    write(sandbox)
    with closing(opened_database(nix)) as db:
        db.execute(words)
        give_to_root_inside(sandbox, nix)
        with pytest.raises(InstanceError, match=r"^the Nix database inside 'web' is locked by a"):
            write(sandbox, lock_seconds=0)
    write(sandbox)
    assert rows_of(nix) == SHOWN


def writers() -> list[int]:
    """The processes that run the program."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if b"own_database_writer" in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(int(entry))
    return [pid for pid in found if parent_of(pid) == os.getpid()]


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def test_what_takes_too_long_is_ended(sandbox: Sandbox, nix: Path) -> None:
    write(sandbox)
    with closing(opened_database(nix)) as db:
        db.execute("begin immediate")
        give_to_root_inside(sandbox, nix)
        with pytest.raises(InstanceError, match="was not written within 1 s; try again, or remove"):
            write(sandbox, seconds=1, lock_seconds=30)
    assert writers() == []


def test_a_full_disk_is_named_and_the_next_start_completes(sandbox: Sandbox) -> None:
    many = encode([registration(name_of(f"{number:05}")) for number in range(3000)], WEB)

    def host() -> tuple[str, int, int]:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        owner = f"uid={sandbox.first_id},gid={sandbox.first_id}"
        mount("small", str(sandbox.rootfs), "tmpfs", 0, f"size=400k,mode=755,{owner}")
        nix = sandbox.rootfs / "nix"
        nix.mkdir()
        os.chown(nix, sandbox.first_id, sandbox.first_id)
        try:
            write(sandbox, many)
        except InstanceError as error:
            text = str(error)
        before = count_of(nix)
        give_to_root_inside(sandbox, nix)
        mount("none", str(sandbox.rootfs), "", 32, "size=40m")
        write(sandbox, many)
        return text, before, len(rows_of(nix))

    assert apart(host) == (
        "the Nix database inside 'web' cannot be written: its disk is full; free space, or give "
        "the root device a larger size",
        0,
        3000,
    )


def test_a_kill_at_any_moment_leaves_all_rows_or_none(unprivileged: Sandbox) -> None:
    many = encode([registration(name_of(f"{number:05}"), LIBRARY) for number in range(3000)]
                  + [registration(LIBRARY)], WEB)  # fmt: skip
    unprivileged.inside(lambda: os.makedirs("/nix"))
    nix = unprivileged.rootfs / "nix"
    directory = nix / "var/nix/db"

    async def kill_after(seconds: float) -> bool:
        task = asyncio.create_task(written(unprivileged, many))
        begin = time.monotonic()
        while not task.done() and time.monotonic() - begin < seconds:
            await asyncio.sleep(0.001)
        for pid in writers():
            os.kill(pid, signal.SIGKILL)
        try:
            await task
        except InstanceError as error:
            assert str(error) == (
                "the program that writes the Nix database inside 'web' was killed; restart the "
                "instance, or set user.inx.update, to try again"
            )
            return True
        return False

    killed = []
    for step in range(12):
        shutil.rmtree(directory, ignore_errors=True)
        killed.append(asyncio.run(kill_after(0.02 * step)))
        complete = is_registered(str(unprivileged.rootfs), "web", many)
        count = count_of(nix)
        assert count in (0, 3001)
        assert not complete or count == 3001
        give_to_root_inside(unprivileged, nix)
        write(unprivileged, many)
        assert len(rows_of(nix)) == 3001
    assert any(killed)


def test_whoever_opens_the_database_has_nothing_of_the_host(sandbox: Sandbox, nix: Path) -> None:
    write(sandbox)

    def look(pid: int) -> tuple[set[str], str, dict[str, str], bool]:
        files = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":\t") for line in lines if ":\t" in line)
        status["oom"] = Path(f"/proc/{pid}/oom_score_adj").read_text().strip()
        same_network = os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino
        return files, os.readlink(f"/proc/{pid}/root"), status, same_network

    async def look_while_it_waits() -> tuple[set[str], str, dict[str, str], bool]:
        task = asyncio.create_task(written(sandbox, ROWS))
        while True:
            await asyncio.sleep(0.001)
            assert not task.done()
            for pid in writers():
                with contextlib.suppress(FileNotFoundError):  # it opens and closes files
                    found = look(pid)
                    if any("db.sqlite" in file for file in found[0]):
                        os.kill(pid, signal.SIGKILL)
                        with pytest.raises(InstanceError):
                            await task
                        return found

    with closing(opened_database(nix)) as db:
        db.execute("begin immediate")
        give_to_root_inside(sandbox, nix)
        files, root, status, same_network = asyncio.run(look_while_it_waits())
    others = {file for file in files if "db.sqlite" not in file}
    assert len(others) == 3
    assert all(file.startswith(("/memfd:rows", "/dev/null", "pipe:", "socket:")) for file in others)
    assert root == "/nix"
    assert status["Uid"].split() == [str(sandbox.first_id)] * 4
    assert (status["Groups"].strip(), status["CapPrm"], status["NoNewPrivs"]) == ("", "0" * 16, "1")
    assert not same_network
    assert status["oom"] == "1000"


def test_the_task_that_waits_can_be_cancelled(sandbox: Sandbox, nix: Path) -> None:
    write(sandbox)

    async def cancel() -> None:
        task = asyncio.create_task(written(sandbox, ROWS, True, 30, 30))
        while not writers():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with closing(opened_database(nix)) as db:
        db.execute("begin immediate")
        asyncio.run(cancel())
    assert writers() == []


def test_a_python_that_is_gone_is_named(
    unprivileged: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    unprivileged.inside(lambda: os.makedirs("/nix"))
    monkeypatch.setattr("sys.executable", "/gone/python")
    with pytest.raises(UnsupportedError, match=r"^cannot start /gone/python: No such file"):
        write(unprivileged)


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before
