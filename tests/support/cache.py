"""Programs of this machine that make disposable hosts, and a cache of what they make."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

REPO = Path(__file__).resolve().parent.parent.parent
CACHE = Path(os.environ.get("INX_TESTBED_CACHE", "/var/cache/inx-testbed")).absolute()

logger = logging.getLogger("testbed")


class HostError(Exception):
    """One sentence says what failed. Output that explains it follows on more lines."""


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    logger.info("%-36s %5.1f s", what, time.monotonic() - begin)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def tool(
    argv: Sequence[str | Path],
    *,
    log: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    lock: int | None = None,
) -> None:
    """Run a program of this machine. HostError, with the output, if the program fails.

    The program inherits `lock`: if this process is killed, the lock is held until the program ends.
    """
    done = subprocess.run(
        argv,
        check=False,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=() if lock is None else (lock,),
    )
    text = done.stdout.decode(errors="replace")
    if log:
        log.write_text(text)
    if done.returncode:
        where = f" (all of it: {log})" if log else ""
        end = "\n".join(text.splitlines()[-20:])
        begin = " ".join(map(str, argv[:3]))
        raise HostError(f"'{begin} ...' ended with status {done.returncode}{where}\n{end}")


def remove(path: Path) -> None:
    tool(["rm", "-rf", "--one-file-system", "--", path])


def cached(name: str, key: object, make: Callable[[Path, int], None]) -> Path:
    """The path CACHE/NAME-KEY. `make` makes it once, with a lock held.

    A second process waits for the first one. A killed process leaves no incomplete result.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    path = CACHE / f"{name}-{digest}"
    if path.exists():
        return path
    with locked(path.with_suffix(".lock")) as lock, step(f"make {path.name}"):
        if not path.exists():
            fresh = path.with_suffix(".new")
            remove(fresh)
            make(fresh, lock)
            fresh.rename(path)
    return path
