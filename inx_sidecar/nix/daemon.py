"""The nix-daemon of one instance: systemd listens on its socket and starts it on first use."""

import asyncio
import contextlib
import logging
import os
import socket

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InxError, UnsupportedError
from inx_sidecar.base.process import run

log = logging.getLogger(__name__)


class NixDaemon:
    """Starts and stops the units of the daemon, in the background and one change after the other.

    A hook that begins a change does not wait for it, so that the container starts meanwhile.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._change: asyncio.Task[InxError | None] | None = None

    def prepare(self) -> None:
        """Make the directories and the link that the units need; nothing is ever removed.

        UnsupportedError if that fails.
        """
        try:
            self._make_directories()
        except OSError as error:
            raise UnsupportedError(f"cannot make {error.filename}: {error.strerror}") from None

    def _make_directories(self) -> None:
        uuid = self._uuid
        os.makedirs(os.path.dirname(paths.GC_SOCKET), mode=0o755, exist_ok=True)
        # Private to root: every user of the host who reached the socket below could use it.
        os.makedirs(paths.run_dir(uuid), mode=0o700, exist_ok=True)
        for directory in (
            paths.auto_dir(uuid), paths.gcroots_dir(uuid), paths.daemon_socket_dir(uuid),
        ):  # fmt: skip
            os.makedirs(directory, mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(paths.auto_dir(uuid), f"{paths.gcroots_dir(uuid)}/auto")

    def begin_start(self) -> None:
        self._begin("start", [paths.daemon_socket_unit(self._uuid)])

    def begin_stop(self) -> None:
        units = [paths.daemon_socket_unit(self._uuid), paths.daemon_service_unit(self._uuid)]
        self._begin("stop", units)

    async def wait_until_done(self) -> None:
        """Wait for the last change; UnsupportedError if the socket could not be started."""
        change, self._change = self._change, None
        error = None if change is None else await change
        if error is not None:
            raise error

    async def refuse_clients(self) -> None:
        """Put a socket in place that no process listens on.

        Without a socket, a Nix client inside would open the store without a daemon.
        """
        self.begin_stop()
        await self.wait_until_done()
        path = f"{paths.daemon_socket_dir(self._uuid)}/socket"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unused:
            unused.bind(path)
        os.chmod(path, 0o666)

    def _begin(self, verb: str, units: list[str]) -> None:
        before = self._change

        async def systemctl() -> InxError | None:
            if before is not None:
                await asyncio.wait([before])
            done = await run(["systemctl", verb, "--quiet", *units])
            if done.status == 0:
                return None
            error = UnsupportedError(f"'{done.command}' failed: {done.output}")
            if verb == "start":
                return error
            log.error("%s", error)
            return None

        self._change = asyncio.create_task(systemctl())
