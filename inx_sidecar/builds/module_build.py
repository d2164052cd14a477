"""How modules become a system: their texts are parsed, nixpkgs is locked, and a flake is written.

A user of the build alone parses and evaluates. What comes from a server is fetched as `build_user`
before.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import BuildError
from inx_sidecar.base.process import Completed
from inx_sidecar.builds.build_commands import EXPERIMENTAL, LOG_FORMAT
from inx_sidecar.builds.build_request import BuildRequest
from inx_sidecar.builds.build_run import BuildRun
from inx_sidecar.builds.build_service import BuildService
from inx_sidecar.builds.build_user import FILE_SCHEMES, Evaluator
from inx_sidecar.builds.module_errors import module_error
from inx_sidecar.builds.module_flake import (
    COPIED,
    NIX_FILES,
    Nodes,
    fetches_base,
    fetches_nixpkgs,
    flake_files,
    is_impure,
    nodes_of_base,
)
from inx_sidecar.builds.module_texts import bodies_among
from inx_sidecar.config.credentials import redact
from inx_sidecar.config.locks import Lock, is_release, lock_of
from inx_sidecar.config.sources import Flake, Modules
from inx_sidecar.incus.status_keys import LOCKED, STATE_VERSION

_PARSE_SECONDS: Final = 60


class CommandFailedError(BuildError):
    """A command of Nix that `evaluator` has run for a build failed, as `done`."""

    def __init__(self, done: Completed, evaluator: Evaluator) -> None:
        super().__init__(module_error(done))
        self.done = done
        self.evaluator = evaluator


class ModuleBuild:
    """The build of modules, as `evaluator` has been chosen for them.

    `kept` are the keys that the instance keeps of a build that succeeds.
    """

    def __init__(
        self,
        request: BuildRequest,
        evaluator: Evaluator,
        service: BuildService,
        running: BuildRun,
    ) -> None:
        asked, seen = request.source, service.source()
        assert isinstance(asked, Modules) and isinstance(seen, Modules)
        if not request.settings.allows_everything:
            # Who edits the instance can edit what is locked.
            seen = replace(seen, lock=None)
        self._request = request
        self._source = seen
        self._reference = asked.nixpkgs
        self._evaluator = evaluator
        self._service = service
        self._running = running
        self.kept: Mapping[str, str] = {}

    async def prepare(self) -> list[str]:
        """The command that builds the system.

        BuildError with the key and the line if a text is no module; CommandFailedError if nixpkgs
        cannot be fetched.
        """
        source, kept = self._source, dict[str, str]()
        os.makedirs(self._service.flake, exist_ok=True)
        bodies = await bodies_among(dict(source.texts), self._parse)
        lock = self._usable_lock()
        if lock is None and fetches_nixpkgs(source):
            lock = await self._lock(source)
            kept[LOCKED] = lock.text()
        base = await self._nodes_of_base(source.base) if fetches_base(source) else None
        if source.base is None and not source.state_version:
            self._write(source, bodies, lock)
            source = replace(source, state_version=await self._release(source))
            kept[STATE_VERSION] = source.state_version
        self._write(source, bodies, lock, base)
        self._tell(source, lock)
        self.kept = kept
        wanted = f'nixosConfigurations."{source.attr}".config.system.build.toplevel'
        return [*EXPERIMENTAL, "build", *LOG_FORMAT, *_options(source), "--no-write-lock-file",
                "--out-link", self._service.link,
                "--", f"path:{self._service.flake}#{wanted}"]  # fmt: skip

    def _usable_lock(self) -> Lock | None:
        lock = self._source.lock
        if lock is not None and lock.store_path and not os.path.exists(lock.store_path):
            self._running.record(f"inx: {lock} of the builds before is gone; taking a new nixpkgs")
            return None
        return lock if fetches_nixpkgs(self._source) else None

    async def _lock(self, source: Modules) -> Lock:
        """The nixpkgs that is there now, fetched."""
        # Nix 2.26 fetches the global registry also for what no registry has, and fails without it.
        direct = re.match(r"(?!flake:)[a-z][a-z0-9+.-]*:", source.nixpkgs)
        alone = ["--option", "flake-registry", ""] if direct else []
        fetched = await self._fetch("prefetch", *alone, "--", source.nixpkgs)
        lock = lock_of(self._reference, self._request.update, fetched, source.below)
        if lock is None:
            raise BuildError(f"Nix does not say what {source.nixpkgs} is by now: {fetched}")
        return lock

    async def _nodes_of_base(self, base: Flake | None) -> Nodes:
        """The flake that is there now, with all its inputs, fetched."""
        assert base is not None
        told = await self._fetch("metadata", "--no-write-lock-file", "--", base.ref)
        await self._fetch("archive", "--no-write-lock-file", "--", base.ref)
        try:
            nodes = nodes_of_base(told)
        except (KeyError, TypeError, AttributeError):
            raise BuildError(f"Nix does not say what {redact(base.ref)} is by now") from None
        self._running.record(f"inx: with {redact(str(told.get('url', '')))}")
        return nodes

    async def _fetch(self, verb: str, *arguments: str) -> dict[str, Any]:
        """What 'nix flake VERB' says of a reference.

        What comes from a server is fetched as `build_user`, whose caches and credentials serve all
        fetches: nothing of a text is evaluated by that.
        """
        service, evaluator = self._service, self._evaluator
        if not arguments[-1].startswith(("git+file:", *FILE_SCHEMES)):
            evaluator = replace(evaluator, doubt="")
            service = BuildService(self._request.uuid, evaluator)
        command = ("flake", verb, "--refresh", "--json", *arguments)
        if service is self._service:
            return await self._json(evaluator, service, *command)
        with service.environment():
            return await self._json(evaluator, service, *command)

    async def _release(self, source: Modules) -> str:
        """The release of nixpkgs."""
        flake = f"path:{self._service.flake}#inx"
        told = await self._json(
            self._evaluator, self._service,
            "eval", *_options(source), "--json", "--no-write-lock-file", "--", flake,
        )  # fmt: skip
        release = told.get("release")
        if not is_release(release):
            raise BuildError(f"{source.nixpkgs} says no release of NixOS in lib.trivial.release")
        return str(release)

    async def _json(
        self, evaluator: Evaluator, service: BuildService, *command: str
    ) -> dict[str, Any]:
        """The object that a command of Nix prints."""
        begin = [*EXPERIMENTAL, *command[: command.index("--")], *LOG_FORMAT]
        argv = [*begin, *command[command.index("--") :]]
        done = await self._running.follow(argv, hidden="{", service=service)
        if done.status:
            raise CommandFailedError(done, evaluator)
        for line in reversed(done.output.splitlines()):
            with suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    return value
        return {}

    async def _parse(self, key: str, text: str) -> Completed:
        path = f"{self._service.flake}/{key}"
        _write_file(path, text)
        return await self._running.ask(["nix-instantiate", "--parse", "--", path], _PARSE_SECONDS)

    def _write(
        self,
        source: Modules,
        bodies: frozenset[str],
        lock: Lock | None,
        base: Nodes | None = None,
    ) -> None:
        for name, text in flake_files(source, bodies, lock, base).items():
            _write_file(f"{self._service.flake}/{name}", text)
        for name in COPIED:
            shutil.copyfile(f"{NIX_FILES}/{name}", f"{self._service.flake}/{name}")

    def _tell(self, source: Modules, lock: Lock | None) -> None:
        """Keep the flake, and say of what the system is built."""
        if source.base is None:
            self._running.record(f"inx: with nixpkgs {lock or source.nixpkgs}")
        place = paths.flake_dir(self._request.uuid)
        with suppress(OSError):  # a build does not need it
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(self._service.flake, place)
            self._running.record(f"inx: the configuration is in {place}")
        for line in flake_files(source, frozenset(), lock)["flake.nix"].splitlines():
            self._running.note(f"inx: {line}")


def _options(source: Modules) -> list[str]:
    return ["--no-accept-flake-config", *(["--impure"] if is_impure(source) else [])]


def _write_file(path: str, text: str) -> None:
    with open(path, "w", newline="") as file:
        file.write(text)
