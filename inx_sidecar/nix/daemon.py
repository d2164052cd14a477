"""The nix-daemon of one instance: systemd listens on its socket and starts it on first use."""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InxError, UnsupportedError
from inx_sidecar.base.process import run
from inx_sidecar.base.storage import storage_error
from inx_sidecar.base.units import Units
from inx_sidecar.kernel.cgroups import hierarchy

# One connection to systemd serves the daemons of all instances.
_UNITS: Final = Units()

log = logging.getLogger(__name__)


def is_running(uuid: str) -> bool:
    """Whether the daemon of instance `uuid` has a control group."""
    unit = paths.daemon_service_unit(uuid)
    return os.path.isdir(f"{hierarchy()}/inx.slice/inx-nix.slice/{unit}")


class NixDaemon:
    """Starts and stops the units of the daemon, in the background and one change after the other.

    A hook that begins a change does not wait for it, so that the container starts meanwhile.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._socket_unit = paths.daemon_socket_unit(uuid)
        self._service_unit = paths.daemon_service_unit(uuid)
        self._change: asyncio.Task[InxError | None] | None = None
        # This process has stopped both units last, and since then nobody has asked it for a start.
        self._stopped = False

    def prepare(self) -> None:
        """Make the directories and the link that the units need; nothing is ever removed.

        UnsupportedError if that fails.
        """
        try:
            self._make_directories()
        except OSError as error:
            text = f"cannot make {error.filename}: {error.strerror}"
            raise (storage_error(error) or UnsupportedError(text)) from None

    def _make_directories(self) -> None:
        uuid = self._uuid
        os.makedirs(os.path.dirname(paths.GC_SOCKET), mode=0o755, exist_ok=True)
        # Private to root: every user of the host who reached the socket below could use it.
        os.makedirs(paths.run_dir(uuid), mode=0o700, exist_ok=True)
        # Private to root: builds keep files there.
        os.makedirs(paths.NIX_BUILDS, mode=0o700, exist_ok=True)
        for directory in (
            paths.auto_dir(uuid), paths.gcroots_dir(uuid), paths.daemon_socket_dir(uuid),
            paths.daemon_etc_dir(uuid), paths.daemon_builds_dir(uuid),
        ):  # fmt: skip
            os.makedirs(directory, mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(paths.auto_dir(uuid), f"{paths.gcroots_dir(uuid)}/auto")

    @property
    def is_running(self) -> bool:
        """Whether the service has a control group: some process of it may be left."""
        return is_running(self._uuid)

    def begin_start(self) -> None:
        """Listen on the socket; a daemon of a former container ends before."""
        if self.is_running:
            self.begin_end()
        self._begin(self._start_socket, is_needed=True)

    def begin_stop(self) -> None:
        """End the daemon and its socket."""
        self._begin(self._stop_both)

    def begin_kill(self) -> None:
        """As `begin_stop`, at once: a process of the daemon may take long to end by itself, since
        it looks for a signal only now and then."""
        if self.is_running:
            self._begin(lambda: _UNITS.kill(self._service_unit))
        self.begin_stop()

    def begin_end(self) -> None:
        """End the daemon with all its builds; the next client starts another one."""
        self._begin(lambda: self._stop(self._service_unit))

    async def wait_until_done(self, seconds: float | None = None) -> None:
        """Wait for the last change, but at most `seconds`.

        UnsupportedError if the socket could not be started.
        """
        change = self._change
        if change is None:
            return
        done, _ = await asyncio.wait([change], timeout=seconds)
        if not done:
            log.warning("systemd still ends the Nix daemon of %s", self._uuid)
            return
        if self._change is change:
            self._change = None
        error = change.result()
        if error is not None:
            raise error

    async def refuse_clients(self, seconds: float) -> None:
        """Put a socket in place that no process listens on, at the latest after `seconds`.

        Without a socket, a Nix client inside would open the store without a daemon. systemd removes
        the file of a socket that it stops, so it has to have done so before.
        """
        if not self._stopped or self._change is not None or self.is_running:
            self.begin_stop()
            await self.wait_until_done(seconds)
        path = f"{paths.daemon_socket_dir(self._uuid)}/socket"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unused:
            unused.bind(path)
        os.chmod(path, 0o666)

    def remove_traces(self) -> None:
        """The instance is deleted: remove what its daemon has outside the instance's directories.

        Its user ids are free as soon as those directories and the daemon are gone (build_ids.py).
        """
        shutil.rmtree(paths.daemon_limits_dir(self._uuid), ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(paths.daemon_builds_dir(self._uuid))

    async def _start_socket(self) -> None:
        self._stopped = False
        await _UNITS.start(self._socket_unit)

    async def _stop_both(self) -> None:
        await self._stop(self._socket_unit, self._service_unit)
        self._stopped = True

    async def _stop(self, *units: str) -> None:
        """Stop `units`, and remove what builds have left."""
        try:
            await _UNITS.stop(*units)
        finally:
            await self._remove_builds()

    async def _remove_builds(self) -> None:
        """Remove what builds have left. A program of its own does this: it may be much."""
        directory = paths.daemon_builds_dir(self._uuid)
        if os.path.isdir(directory) and os.listdir(directory) and not self.is_running:
            find = ["find", directory, "-xdev", "-mindepth", "1", "-delete"]
            done = await run(find)
            if done.status:
                log.error("cannot empty %s: %s", directory, done.output)

    def _begin(self, change: Callable[[], Awaitable[None]], *, is_needed: bool = False) -> None:
        """Let systemd do `change`; a failure of what `is_needed` is told to whoever waits."""
        before = self._change

        async def carry_out() -> InxError | None:
            if before is not None:
                await asyncio.wait([before])
            try:
                await change()
            except InxError as error:
                if is_needed:
                    return error
                log.error("%s", error)
            return None

        self._change = asyncio.create_task(carry_out())
