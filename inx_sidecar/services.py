"""The processes that units keep running: the sidecar, the barrier and the guard.

Each of them imports what it needs when it begins, and little else: all of that stays in memory.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final

from inx_sidecar.base.errors import InxError, UnsupportedError

# Modules of Python with hashes of its own; some distributions leave these to OpenSSL.
_HASHES: Final = ("_sha1", "_sha2" if sys.version_info >= (3, 12) else "_sha256")
_OPENSSL: Final = ("ssl", "_hashlib")


@contextmanager
def without_openssl() -> Iterator[None]:
    """What is imported in this context does without OpenSSL, which takes 5 MiB.

    Nothing here speaks TLS. asyncio and hashlib do without these modules if their import fails, as
    it does for a module that is None (Python's language reference, "The module cache"). Other
    packages need them, so they can be imported later.
    """
    left_out = [name for name in _OPENSSL if name not in sys.modules]
    if not all(find_spec(name) for name in _HASHES):
        left_out = []
    sys.modules.update(dict.fromkeys(left_out))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in left_out:
            del sys.modules[name]


def only_root() -> None:
    """Without the rights of root, everything looks broken."""
    if os.geteuid():
        print("inx: error: only root may do this; run it as root", file=sys.stderr)
        sys.exit(1)


@contextmanager
def report_errors(prefix: str) -> Iterator[None]:
    """Print an expected failure in one line, after `prefix`, and exit with its status."""
    try:
        yield
    except InxError as error:
        print(f"{prefix}{error}", file=sys.stderr)
        sys.exit(error.status)


def run() -> None:
    """The sidecar: serve the hooks."""
    with without_openssl():
        import asyncio

        from inx_sidecar import server
        from inx_sidecar.base import journal

    journal.log_to_journal()
    # A full collection need not look at what is imported, all of which stays: 1 ms instead of 10.
    gc.freeze()
    with report_errors("<3>"):
        asyncio.run(server.serve(server.listening_socket()))


def barrier() -> None:
    """Hold collections until all roots stand."""
    only_root()
    with without_openssl():
        import asyncio

        from inx_sidecar.base import journal
        from inx_sidecar.roots import barrier

    journal.log_to_journal()
    with report_errors("<3>"), _start_without_support():
        asyncio.run(barrier.guard())


def guard() -> None:
    """Keep containers from the lock files of the store."""
    only_root()
    with without_openssl():
        from inx_sidecar.base import journal
        from inx_sidecar.config import settings
        from inx_sidecar.incus import running_record
        from inx_sidecar.nix import store_locks

    journal.log_to_journal()
    with report_errors("<3>"), _start_without_support():
        store_locks.guard(settings.lock_patience, running_record.name_of)


@contextmanager
def _start_without_support() -> Iterator[None]:
    """Tell systemd that a service has started which this kernel cannot run, and let it end.

    Else its start is a failure (Type=notify), which ends `install` and a switch of NixOS.
    """
    from inx_sidecar.base.systemd_notify import notify

    try:
        yield
    except UnsupportedError as error:
        notify(f"READY=1\nSTATUS={error}")
        raise


# By the argument of `inx-sidecar`.
SERVICES: Final[Mapping[str, Callable[[], None]]] = {"run": run, "barrier": barrier, "guard": guard}
