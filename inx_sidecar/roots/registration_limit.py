"""End a flood of registrations where it begins: at the Nix daemon of the instance that causes it.

More registrations than the instance may keep are removed (Registrations). A daemon that goes on
making them would keep the sidecar busy, or fill the file system. So the daemon is stopped once far
too many were made. A child then makes a new directory with those that are kept, and exchanges it
for the full one. The daemon starts again after a backoff.
"""

import asyncio
import contextlib
import heapq
import os
import shutil
import time
from collections.abc import Collection, Iterator
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.process import run
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.syscalls import exchange
from inx_sidecar.links.indirect_roots import NAME
from inx_sidecar.nix.daemon import NixDaemon
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.link_roots import LINKS, parse_root_name

_FIRST_SECONDS: Final = 10.0
_LONGEST_SECONDS: Final = 600.0
_TRIM_SECONDS: Final = 60.0


def overfull_at(most: int) -> int:
    """The number of registrations at which the daemon is stopped; `most` are kept."""
    return most + max(1000, most // 2)


class RegistrationLimit:
    """The limit of one instance; `daemon` is that of the instance, None if it does not run."""

    def __init__(self, lxc_name: str, uuid: str, most: int, daemon: NixDaemon | None) -> None:
        self._lxc_name = lxc_name
        self._uuid = uuid
        self._most = most
        self._daemon = daemon
        self._journal = instance_log(lxc_name)
        self._seconds = 0.0
        self._ended_at = -_LONGEST_SECONDS
        self._restart: asyncio.Task[None] | None = None
        self._stopped_mark = f"{paths.run_dir(uuid)}/daemon-stopped"

    @property
    def problem(self) -> str:
        """One sentence while the daemon is stopped; empty otherwise."""
        if self._restart is None:
            return ""
        return (
            f"over {overfull_at(self._most)} GC roots were registered inside, so the Nix daemon of "
            f"{self._lxc_name!r} is stopped for {self._seconds:.0f} s; remove links, or raise "
            f"max_roots_per_instance in {paths.CONFIG}"
        )

    def begin(self) -> None:
        """A sidecar that has ended may have left the daemon stopped: start it after a backoff."""
        if self._daemon is not None and os.path.exists(self._stopped_mark):
            self._start_later(self._daemon)

    def end(self) -> None:
        """The container has ended: its next start starts the daemon."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None

    async def trim(self, known: Collection[str]) -> None:
        """Stop the daemon, and keep only as many registrations as the instance may have: those in
        `known` and those that have roots, then the oldest others. MountError if that fails."""
        if self._daemon is not None and self._restart is None:
            with contextlib.suppress(OSError), open(self._stopped_mark, "w"):
                pass
            self._daemon.begin_kill()
            await self._daemon.wait_until_done()
            self._start_later(self._daemon)
            self._journal.warning("registrations refused: %s", self.problem)

        def replace() -> forked.Result:
            roots = direct_roots.names(self._lxc_name, self._uuid, LINKS)
            rooted = {parse_root_name(root)[0] for root in roots}
            _replace_directory(self._uuid, [*known, *(rooted - set(known))], self._most)
            return None, []

        action = f"removing registrations of {self._lxc_name!r}"
        await forked.run_in_child(replace, action, _TRIM_SECONDS)
        await run(["rm", "-rf", "--one-file-system", "--", _spare_directory(self._uuid)])

    def _start_later(self, daemon: NixDaemon) -> None:
        calm = time.monotonic() - self._ended_at > _LONGEST_SECONDS
        longer = _FIRST_SECONDS if calm else self._seconds * 2
        self._seconds = min(longer, _LONGEST_SECONDS)
        self._restart = asyncio.create_task(self._start_after(self._seconds, daemon))

    async def _start_after(self, seconds: float, daemon: NixDaemon) -> None:
        await asyncio.sleep(seconds)
        self._ended_at = time.monotonic()
        self._restart = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._stopped_mark)
        daemon.begin_start()


def _replace_directory(uuid: str, known: Collection[str], most: int) -> None:
    """Exchange the directory of registrations for one with at most `most` of them.

    The links in it are hard links: if this ends half-way, nothing is lost. OSError if it fails.
    """
    full, spare = paths.auto_dir(uuid), _spare_directory(uuid)
    if os.path.lexists(spare):
        shutil.rmtree(spare)
    os.mkdir(spare, 0o700)
    for name in _names_to_keep(full, known, most):
        with contextlib.suppress(FileNotFoundError):
            os.link(f"{full}/{name}", f"{spare}/{name}", follow_symlinks=False)
    exchange(full, spare)


def _names_to_keep(directory: str, known: Collection[str], most: int) -> list[str]:
    """The names in `known` that exist, in this order; then the others, the oldest first."""
    kept = [name for name in known if os.path.lexists(f"{directory}/{name}")][:most]
    others = heapq.nsmallest(most - len(kept), _others_with_times(directory, set(kept)))
    return kept + [name for _, name in others]


def _others_with_times(directory: str, kept: set[str]) -> Iterator[tuple[int, str]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if NAME.fullmatch(entry.name) and entry.name not in kept:
                with contextlib.suppress(FileNotFoundError):
                    yield entry.stat(follow_symlinks=False).st_ctime_ns, entry.name


def _spare_directory(uuid: str) -> str:
    return f"{paths.auto_dir(uuid)}.spare"
