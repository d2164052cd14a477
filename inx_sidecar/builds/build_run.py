"""The commands of one build, one after the other: what they print, and why systemd ended one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import FileIO
from typing import Final, Self

from inx_sidecar.base import paths
from inx_sidecar.base.process import Completed, run
from inx_sidecar.builds.build_request import BuildRequest, Listener
from inx_sidecar.builds.build_service import BuildService
from inx_sidecar.builds.nix_log import NixLog, Progress
from inx_sidecar.config.credentials import redact

_LOG_MAX_BYTES: Final = 16 << 20


class BuildRun:
    """Of the last command that was followed, `limit` says which limit ended it, if one did, and
    `progress` how far it came."""

    def __init__(
        self, request: BuildRequest, service: BuildService, listener: Listener, log: FileIO
    ) -> None:
        self._request = request
        self._service = service
        self._listener = listener
        self._log = log
        self.limit = ""
        self.progress = Progress()

    @classmethod
    @contextmanager
    def begun(
        cls, request: BuildRequest, service: BuildService, listener: Listener
    ) -> Iterator[Self]:
        """The run of a build, with a log; nothing is kept if the file system of logs takes no
        file."""
        try:
            log = FileIO(paths.build_log(request.uuid), "w")
        except OSError:
            log = FileIO(os.devnull, "w")
        with log, service.environment():
            yield cls(request, service, listener, log)

    @property
    def log(self) -> str:
        """The path of the log, or empty."""
        return "" if self._log.name == os.devnull else str(self._log.name)

    def record(self, line: str) -> None:
        """Write `line` into the log, and show it."""
        line = redact(line)
        self.note(line)
        self._listener.say(line)

    def note(self, line: str) -> None:
        """Write `line` into the log alone."""
        with suppress(OSError):  # a build needs no log
            if self._log.tell() < _LOG_MAX_BYTES:
                self._log.write(f"{redact(line)}\n".encode(errors="replace"))

    async def follow(
        self, command: list[str], *, hidden: str = "\n", service: BuildService | None = None
    ) -> Completed:
        """Run a command of Nix with the log format internal-json, and show what it does, without
        the lines that begin with `hidden`. `service` is another one to run it in."""

        def show(line: str) -> None:
            if not line.startswith(hidden):
                self.record(line)

        names = self._request.names
        nix = NixLog(names=names)

        def read(line: str) -> list[str]:
            lines = nix.read(line)
            self._listener.report(nix.progress.text(names=names))
            return lines

        argv = (service or self._service).command_line(command, self._request.settings)
        done = await run(argv, on_line=show, read=read)
        self.progress = nix.progress
        self.limit = await self._limit_of(done)
        return done

    async def ask(self, command: list[str], seconds: int) -> Completed:
        """Run a command that is a question, for `seconds` at most. `limit` stays as it is: the
        settings of the host say nothing of a question."""
        settings = self._request.settings
        limited = replace(settings, build_timeout=min(settings.build_timeout, seconds))
        done = await run(self._service.command_line(command, limited))
        await self._limit_of(done)
        return done

    async def _limit_of(self, done: Completed) -> str:
        """The limit that made systemd end the command (Result= in systemd.exec(5), environment
        variables); empty if none did.

        The failed unit is then reset, so that its name can be used again.
        """
        if done.status == 0:
            return ""
        unit = paths.build_unit(self._request.uuid)
        shown = await run(["systemctl", "show", "--property=Result", "--value", unit])
        await run(["systemctl", "reset-failed", "--quiet", unit])
        raise_it = f"raise that in {paths.CONFIG}"
        settings = self._request.settings
        return {
            "timeout": f"it took over {settings.build_timeout} s (build_timeout); {raise_it}",
            "oom-kill": f"it took over {settings.build_memory_max} of memory (build_memory_max); "
            + raise_it,
            "signal": "it was killed; 'journalctl -k' may say why",
        }.get(shown.output.strip(), "")
