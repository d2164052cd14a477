"""Write the Nix database inside an instance, a file that its root can write: a program of its own.

Whoever can write a database file may try to overrun SQLite. So no process opens it that has memory
of the sidecar, or rights of the host. `own_database` starts Python with this file. The program
loads all that it needs, becomes the container's root, gives up every capability, the network and
all files but /nix in the root file system of the instance, and only then opens the database.

Arguments: the descriptor of the container's user namespace, or "-"; a descriptor of /nix; "start"
or "grow"; the digest of the rows, and the seconds that the program may take, and may wait for a
lock. The rows come on stdin (own_database.encode). One line on stdout is the answer: a word, and
perhaps a text.
"""

import contextlib
import errno
import os
import resource
import signal
import sqlite3
import stat
import sys
from collections.abc import Iterable
from typing import Final

if __name__ == "__main__":
    # Without `site`, Python does not know where inx is.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))

from inx_sidecar.kernel.confinement import confine
from inx_sidecar.kernel.syscalls import CLONE_NEWUSER, setns
from inx_sidecar.nix.own_database_sql import (
    STORE,
    Refused,
    Row,
    write_rows,
)

# Relative to /nix of the instance.
_DIRECTORY: Final = "var/nix/db"
_UPPER: Final = ".inx/upper"
DATABASE: Final = "db.sqlite"
# A link whose text tells the rows of the last start, and the state of the database that has them.
REGISTERED: Final = "inx-registered"
# What SQLite has written, and not yet moved to the database.
PENDING: Final = ("db.sqlite-wal", "db.sqlite-journal")
_SCHEMA: Final = b"10"
_TEXT_MAX: Final = 200
_LIMITS: Final = {
    resource.RLIMIT_AS: 1 << 30,
    resource.RLIMIT_FSIZE: 1 << 30,
    resource.RLIMIT_NOFILE: 32,
}
_FILL: Final = 1 << 18
# A database may take all the memory that _LIMITS leave: if the host has less, the kernel kills this
# process before any other (proc_pid_oom_score_adj(5)).
_KILLED_FIRST: Final = "1000"


def registered_text(digest: str, database: os.stat_result) -> str:
    """The text of the link REGISTERED, if nobody has written `database` since.

    Nobody can set a change time. That of an open database changes when it is closed at the latest.
    """
    return f"{digest} {database.st_ino} {database.st_size} {database.st_ctime_ns}"


def main() -> None:
    try:
        answer = _run(*sys.argv[1:])
    except Refused as refused:
        answer = str(refused)
    except sqlite3.Error as error:
        answer = _answer_to(error)
    except MemoryError:
        answer = "unreadable it takes too much memory"
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        place = f"{error.filename}: " if error.filename else ""
        answer = "full" if full else f"unusable {place}{error.strerror}"
    os.write(1, answer.encode(errors="replace")[:_TEXT_MAX])
    os._exit(0)  # all is committed and closed


def _run(user: str, nix: str, mode: str, digest: str, seconds: str, lock_seconds: str) -> str:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(_KILLED_FIRST)
    rows = _read_rows(sys.stdin.buffer)
    signal.alarm(int(seconds))  # if no sidecar lives to kill this process, the kernel does
    try:
        _become_root_inside(None if user == "-" else int(user), int(nix), int(seconds))
    except OSError as error:
        raise Refused(f"failed {error.strerror}") from None
    lost = _write(rows, digest, int(lock_seconds), starts=mode == "start")
    return f"ok {lost}"


def _become_root_inside(user: int | None, nix: int, seconds: int) -> None:
    if user is not None:
        setns(user, CLONE_NEWUSER)
        os.close(user)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.umask(0o022)
    confine(nix, {**_LIMITS, resource.RLIMIT_CPU: seconds})
    os.close(nix)


def _read_rows(lines: Iterable[bytes]) -> dict[bytes, Row]:
    """The rows by their names: the values of _INSERT, and the references as numbers of rows."""
    rows: dict[bytes, Row] = {}
    for line in lines:
        name, nar_hash, registered, size, signatures, ca, needed = line.decode().split("\t")
        values = (
            nar_hash, int(registered), int(size) if size else None, signatures or None, ca or None,
            f"{STORE.decode()}{name}",
        )  # fmt: skip
        rows[name.encode()] = values, [int(number) for number in needed.split()]
    return rows


def _write(rows: dict[bytes, Row], digest: str, lock_seconds: int, *, starts: bool) -> int:
    """As write_rows, in the directory of the database."""
    with contextlib.suppress(FileExistsError):
        os.makedirs(_DIRECTORY)
    os.chdir(_DIRECTORY)
    version = _read_file("schema")
    if version is not None and version.strip() != _SCHEMA:
        raise Refused(f"schema {version.strip()[:20].decode(errors='replace')}")
    is_new = not _is_used(DATABASE)
    if is_new and not starts:
        raise Refused("gone")  # a new one would name only a part of what is shown
    for suffix in ("-wal", "-shm", "-journal"):
        _is_used(f"{DATABASE}{suffix}")
    lost = write_rows(
        DATABASE, rows, _is_own, starts=starts, is_new=is_new, lock_seconds=lock_seconds
    )
    if version is None:
        _write_file("schema", _SCHEMA)
    if starts:
        _set_link(REGISTERED, registered_text(digest, os.stat(DATABASE)))
    return lost


def _is_own(name: bytes) -> bool:
    """Whether the upper layer of the store has an entry of this name that hides nothing."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        return False
    try:
        status = os.lstat(b"/%b/%b" % (_UPPER.encode(), name))
    except OSError:
        return False
    return not (stat.S_ISCHR(status.st_mode) and status.st_rdev == 0)  # a whiteout


def _is_used(name: str) -> bool:
    """Whether the file exists and has content; nothing but a file may have its name."""
    try:
        status = os.lstat(name)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"unusable {name} is not a file")
    return status.st_size > 0


def _read_file(name: str) -> bytes | None:
    """The begin of the file; None if it is missing or empty, as Nix takes it."""
    if not _is_used(name):
        return None
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, _TEXT_MAX)
    finally:
        os.close(fd)


def _write_file(name: str, content: bytes) -> None:
    """Replace the file in one step, and after what was written before."""
    new = f".inx-{name}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, content)
    os.fsync(fd)
    os.close(fd)
    os.rename(new, name)


def _set_link(name: str, text: str) -> None:
    new = f".inx-{name}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    os.symlink(text, new)
    os.rename(new, name)


def _answer_to(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full()):
        return "full"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "locked"
    return f"unreadable {error}"


def _is_full() -> bool:
    """Whether the file system takes no more: SQLite calls a quota an input/output error."""
    try:
        _write_file("full", bytes(_FILL))
        os.unlink("full")
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(".inx-full")
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return False


if __name__ == "__main__":
    main()
