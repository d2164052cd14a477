"""Build or fetch the system of an instance, in a transient systemd service for each build."""

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from io import FileIO
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import BuildError
from inx_sidecar.base.process import Completed, run
from inx_sidecar.base.storage import names_full_storage
from inx_sidecar.builds import build_counts
from inx_sidecar.builds.build_commands import commands
from inx_sidecar.builds.build_request import BuildRequest, Listener
from inx_sidecar.builds.build_service import BuildService
from inx_sidecar.builds.build_slots import BuildSlots, queue_text
from inx_sidecar.builds.build_user import Evaluator, evaluator_of, slot_owner
from inx_sidecar.builds.explanation import explain
from inx_sidecar.builds.fetch import fetch_options
from inx_sidecar.builds.missing_attribute import SECONDS
from inx_sidecar.builds.nix_log import NixLog, Progress
from inx_sidecar.config.credentials import redact
from inx_sidecar.config.settings import Settings
from inx_sidecar.config.sources import System
from inx_sidecar.nix.store_paths import STORE_PATH, check_toplevel, valid_paths

_LOG_MAX_BYTES: Final = 16 << 20
_SOURCE_MAX: Final = 200


@dataclass(frozen=True)
class Chosen:
    """Who builds; `refusal` says why the source cannot be evaluated, and a system is fetched."""

    evaluator: Evaluator
    refusal: str = ""


async def build_in_slot(slots: BuildSlots, request: BuildRequest, listener: Listener) -> str:
    """As `build`, once there is a free slot for who evaluates. When this task is cancelled, the
    build is stopped.

    Who evaluates is looked up when a slot is free, since it may change meanwhile. If this user has
    enough builds, the slot is given back for another one.
    """
    with build_counts.counted(request.uuid):
        return await _build_in_slot(slots, request, listener)


async def _build_in_slot(slots: BuildSlots, request: BuildRequest, listener: Listener) -> str:
    limit = request.settings.max_builds
    owner: str | None = None

    def waits() -> None:
        of = request.project if request.names else ""
        listener.report(queue_text(slots.holders(owner, limit), of))

    while True:
        if slots.taken >= limit:
            listener.say(f"inx: waiting for other builds ({limit} at a time)")
        elif not slots.has_room(owner, limit):
            listener.say(f"inx: waiting for other builds as {owner} (not all {limit} for one user)")
        holder = request.project, request.name
        async with slots.take(limit, owner, holder=holder, waits=waits) as slot:
            try:
                request.settings.check_allowed(request.source)
                chosen = await _choose_evaluator(request)
                owner = slot_owner(chosen.evaluator)
                if slot.give_to(owner):
                    return await build(request, chosen, listener)
            except asyncio.CancelledError:
                await stop(request.uuid)
                raise


@names_full_storage
async def build(request: BuildRequest, chosen: Chosen, listener: Listener) -> str:
    """The store path of the system.

    The link in the build directory roots the system until `remove_build_directory` is called.
    BuildError with one sentence of why if the build fails.
    """
    uuid, source, missing, settings = (
        request.uuid, request.source, request.missing, request.settings,
    )  # fmt: skip
    failed, say, begin = _failed(request), listener.say, time.monotonic()
    evaluator, refusal = chosen.evaluator, chosen.refusal
    await stop(uuid)
    await remove_build_directory(uuid)
    service = BuildService(uuid, evaluator)
    alone = evaluator.doubt and f" (evaluated by a user without rights: {evaluator.doubt})"
    say(
        f"inx: building the system of {request.name!r} from {source}"
        + (alone or f" as {evaluator.user.name}")
    )
    listener.report(Progress().text())
    with _open_log(uuid) as log:

        def record(line: str) -> None:
            line = redact(line)
            with suppress(OSError):  # a build needs no log
                if log.tell() < _LOG_MAX_BYTES:
                    log.write(f"{line}\n".encode(errors="replace"))
            say(line)

        options = await fetch_options() if missing else ()
        attempts = commands(service.source(), missing, service.link, options, write_lock=not alone)
        with service.environment():
            for number, command in enumerate(attempts):
                if number:
                    record(f"inx: {missing} cannot be fetched; building {source}")
                nix = NixLog(names=request.names)

                def read(line: str, nix: NixLog = nix) -> list[str]:
                    lines = nix.read(line)
                    listener.report(nix.progress.text(names=request.names))
                    return lines

                argv = service.command_line(command, settings)
                done = await run(argv, on_line=record, read=read)
                seconds = time.monotonic() - begin
                if done.status == 0:
                    say(f"inx: done in {seconds:.0f} s, {nix.progress.done}")
                    return _result(service.link, request)
                limit = await _exceeded_limit(uuid, settings)
            say(f"inx: failed after {seconds:.0f} s, {nix.progress.done}")
            if not refusal:
                kept = "" if log.name == os.devnull else str(log.name)
                reason = limit or await _reason(request, service, evaluator, done, kept)
                by = "" if alone or evaluator.user.uid == 0 else f" as {evaluator.user.name}"
                refusal = f"{by}: {reason}"
    if alone:
        await remove_build_directory(uuid)  # with its caches, which serve no other build
    raise BuildError(f"{failed}{refusal}{alone}")


async def _choose_evaluator(request: BuildRequest) -> Chosen:
    """BuildError if the source cannot be evaluated, and no system can be fetched instead."""
    settings, name = request.settings, request.name
    try:
        return Chosen(await evaluator_of(request.source, settings, name))
    except BuildError as error:
        if request.missing is None:
            raise BuildError(f"{_failed(request)}: {error}") from None
        # The system was built before: perhaps it can be fetched although its source is gone.
        fetched = await evaluator_of(System(request.missing), settings, name)
        return Chosen(fetched, f": {error}")


def _failed(request: BuildRequest) -> str:
    source = str(request.source)  # its reason has to be read, too
    shown = source if len(source) <= _SOURCE_MAX else source[:_SOURCE_MAX] + "..."
    return f"cannot build the system of {request.name!r} from {shown}"


async def remove_build_directory(uuid: str) -> None:
    """Remove the build directory, and with it the root of the system that was built.

    A program of its own does this: a user may have put any number of files there.
    """
    await run(["rm", "-rf", "--one-file-system", "--", paths.build_dir(uuid)])


async def stop(uuid: str) -> None:
    """Stop a build of this instance that still runs, with all its processes."""
    await run(["systemctl", "stop", "--quiet", paths.build_unit(uuid)])
    await run(["systemctl", "reset-failed", "--quiet", paths.build_unit(uuid)])


async def stop_all() -> None:
    """Stop the builds of a sidecar that died: nobody waits for them any more."""
    await run(["systemctl", "stop", "--quiet", paths.build_unit("*")])


def _result(link: str, request: BuildRequest) -> str:
    """The store path that `link` names. The build user owns the link, so only its text is used,
    and only if Nix knows that path as valid."""
    try:
        path = os.readlink(link)
    except OSError:
        path = ""
    if not path:
        raise BuildError(
            f"the build of {request.name!r} from {request.source} gave no result: what it names is "
            "no derivation; name config.system.build.toplevel"
        )
    if not STORE_PATH.fullmatch(path) or path not in valid_paths({path}):
        raise BuildError(
            f"the build of {request.name!r} from {request.source} gave {path!r}, no store path; "
            "name config.system.build.toplevel"
        )
    check_toplevel(path, f"the result of {request.source}")
    return path


def _open_log(uuid: str) -> FileIO:
    """The log of the build; nothing is kept if the file system of logs takes no file."""
    try:
        return FileIO(paths.build_log(uuid), "w")
    except OSError:
        return FileIO(os.devnull, "w")


async def _reason(
    request: BuildRequest, service: BuildService, evaluator: Evaluator, done: Completed, log: str
) -> str:
    """Why the build, which ended as `done`, failed, with the way out."""
    settings = request.settings
    limits = replace(settings, build_timeout=min(settings.build_timeout, SECONDS))

    async def ask(command: list[str]) -> Completed:
        answer = await run(service.command_line(command, limits))
        await _exceeded_limit(request.uuid, limits)
        return answer

    return await explain(request.source, service.source(), evaluator, done, log, ask)


async def _exceeded_limit(uuid: str, settings: Settings) -> str | None:
    """The limit that made systemd end the build (Result= in systemd.exec(5), environment
    variables), if any.

    The failed unit is then reset, so that its name can be used again.
    """
    unit = paths.build_unit(uuid)
    shown = await run(["systemctl", "show", "--property=Result", "--value", unit])
    await run(["systemctl", "reset-failed", "--quiet", unit])
    raise_it = f"raise that in {paths.CONFIG}"
    return {
        "timeout": f"it took over {settings.build_timeout} s (build_timeout); {raise_it}",
        "oom-kill": f"it took over {settings.build_memory_max} of memory (build_memory_max); "
        + raise_it,
        "signal": "it was killed; 'journalctl -k' may say why",
    }.get(shown.output.strip())
