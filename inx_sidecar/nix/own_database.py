"""Register what an instance with a store of its own is shown, in the Nix database inside.

Nix inside takes a path of the store for valid only if its own database says so. The database is a
file in the root file system of the instance, which root inside can write: another program opens it
(own_database_writer). Its answer is text of the container.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NoReturn

from inx_sidecar.base.errors import InstanceError, UnsupportedError, one_line
from inx_sidecar.kernel.process_times import boot_id
from inx_sidecar.kernel.safe_open import open_directory, read_link
from inx_sidecar.kernel.syscalls import opened
from inx_sidecar.nix import own_database_writer
from inx_sidecar.nix.closure import Registration

_DATABASE_INSIDE: Final = "nix/var/nix/db"
# It works for an instance that does not start, too. SQLite removes what else belongs to the file.
_WAY_OUT: Final = (
    f"remove /{_DATABASE_INSIDE}/{own_database_writer.DATABASE}, with 'incus file delete' if the "
    "instance is stopped, and start again"
)
_SECONDS: Final = 20
_LOCK_SECONDS: Final = 5
_REAP_SECONDS: Final = 2.0
_ANSWER_MAX: Final = 400
_COUNT: Final = re.compile("[0-9]{1,9}")
# It changes with what the program writes for the same rows.
_FORMAT: Final = 1


@dataclass(frozen=True)
class Rows:
    """Registrations as the program reads them. `digest` tells them, their instance, and this boot
    of the host from others: a crash of the host may leave less than what was registered."""

    data: bytes
    digest: str


def encode(registrations: Iterable[Registration], uuid: str) -> Rows:
    """The rows of `registrations`, which have all references of each other, for the instance
    `uuid`: a line for each, with tabs between the values, and references as numbers of lines."""
    found = list(registrations)
    number_of = {registration.name: number for number, registration in enumerate(found)}
    lines = []
    for name, nar_hash, registered, size, signatures, address, references in found:
        numbers = " ".join(str(number_of[reference]) for reference in references)
        length = "" if size is None else str(size)
        lines.append(
            "\t".join([name, nar_hash, str(registered), length, signatures, address, numbers])
        )
    data = "".join(f"{line}\n" for line in lines).encode()
    digest = hashlib.sha256(f"{_FORMAT} {uuid} {boot_id()}\n".encode() + data).hexdigest()
    return Rows(data, digest)


def is_registered(rootfs: str, instance: str, rows: Rows) -> bool:
    """Whether a start of this instance registered `rows`, and nobody has written to it since.

    A process inside that was killed may have removed rows of paths that are still there: Nix first
    forgets a path that it deletes. A database that was copied or restored is another file.
    What cannot be read was not registered.
    """
    try:
        with opened(os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
            with opened(open_directory(root, _DATABASE_INSIDE, instance)) as place:
                if any(_has_content(place, name) for name in own_database_writer.PENDING):
                    return False
                found = os.stat(own_database_writer.DATABASE, dir_fd=place, follow_symlinks=False)
                text = read_link(place, own_database_writer.REGISTERED)
    except (OSError, InstanceError):
        return False
    # Some file systems keep whole seconds, in which more may have been written.
    exact = found.st_ctime_ns % 1_000_000_000 != 0
    return exact and text == own_database_writer.registered_text(rows.digest, found)


def _has_content(directory: int, name: str) -> bool:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_size > 0
    except FileNotFoundError:
        return False


async def write(
    nix: int,
    user: int | None,
    rows: Rows,
    instance: str,
    *,
    starts: bool,
    seconds: int = _SECONDS,
    lock_seconds: int = _LOCK_SECONDS,
) -> int:
    """Register `rows` in the database of `instance`, as the container's root. Returns how many
    paths that the instance has made itself are not valid any more, since they need others that are
    not there.

    `nix` is an O_PATH descriptor of /nix in the instance's root file system, on a mount that
    follows no link and has no devices. `user` is the user namespace of the container, None for a
    privileged one.

    With `starts`, while nothing runs inside, the database then has exactly what is there: rows of
    paths that neither `rows` nor the upper layer has are removed, with all that refers to them, and
    other rows of the paths in `rows` are replaced. Otherwise rows are only added.

    InstanceError if the database cannot be written within `seconds`, is locked for `lock_seconds`,
    or if a build inside has begun to make one of the paths; UnsupportedError if the program cannot
    be started.
    """
    text = await _run_writer(nix, user, rows, instance, starts, seconds, lock_seconds)
    word, _, rest = text.partition(" ")
    if word != "ok":
        _raise(word, rest, instance)
    return int(rest) if _COUNT.fullmatch(rest) else 0


async def _run_writer(
    nix: int, user: int | None, rows: Rows, name: str, starts: bool, seconds: int, lock_seconds: int
) -> str:
    given = [nix] if user is None else [nix, user]
    arguments = [
        "-" if user is None else user, nix, "start" if starts else "grow", rows.digest, seconds,
        lock_seconds,
    ]  # fmt: skip
    # -I and -S: no environment, and no modules but those of Python (hook.py).
    argv = [sys.executable, "-I", "-S", own_database_writer.__file__, *map(str, arguments)]
    with opened(os.memfd_create("rows")) as file:
        with open(file, "wb", closefd=False) as writable:
            writable.write(rows.data)
        os.lseek(file, 0, os.SEEK_SET)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=file,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={},
                pass_fds=given,
            )
        except OSError as error:
            raise UnsupportedError(f"cannot start {argv[0]}: {error.strerror}") from None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(seconds):
            answer = await process.stdout.read(_ANSWER_MAX)
    except TimeoutError:
        raise InstanceError(
            f"the Nix database inside {name!r} was not written within {seconds} s; try again, or "
            f"{_WAY_OUT}"
        ) from None
    finally:
        if process.returncode is None:
            # Not process.kill(): it may reap the process before asyncio does, which then warns.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            # The kernel does not kill a process that waits for a disk that does not answer.
            async with asyncio.timeout(_REAP_SECONDS):
                await process.wait()
    if not answer and process.returncode == -signal.SIGKILL:
        raise InstanceError(
            f"the program that writes the Nix database inside {name!r} was killed; restart the "
            "instance, or set user.inx.update, to try again"
        )
    return one_line(answer.decode(errors="replace"))


def _raise(word: str, rest: str, instance: str) -> NoReturn:
    """Raise the error that the answer of the program stands for."""
    if word == "schema":
        raise InstanceError(
            f"the Nix database inside {instance!r} has the schema {rest or 'of a former Nix'}, "
            "which inx does not know; update inx, or use user.inx.store=isolated"
        )
    if word == "full":
        raise InstanceError(
            f"the Nix database inside {instance!r} cannot be written: its disk is full; free "
            "space, or give the root device a larger size"
        )
    if word == "failed":
        raise InstanceError(f"the Nix database inside {instance!r} cannot be written: {rest}")
    if word == "locked":
        raise InstanceError(
            f"the Nix database inside {instance!r} is locked by a process inside; end it, and set "
            "user.inx.update to try again"
        )
    if word == "gone":
        raise InstanceError(
            f"the Nix database inside {instance!r} was removed; restart the instance, which makes "
            "another one"
        )
    if word == "begun":
        raise InstanceError(
            f"a build inside {instance!r} has begun to make {rest}, which the new system needs; "
            "wait for its end, or run 'nix-collect-garbage' inside, and set user.inx.update to try "
            "again"
        )
    if word == "unusable":
        raise InstanceError(
            f"/{_DATABASE_INSIDE} of {instance!r} cannot be used ({rest}); remove what stands in "
            "its place"
        )
    reason = rest if word == "unreadable" and rest else "the program that reads it has ended"
    raise InstanceError(
        f"the Nix database inside {instance!r} cannot be read ({reason}); {_WAY_OUT}"
    )
