"""Build or fetch the system of an instance, in a transient systemd service for each build."""

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import BuildError
from inx_sidecar.base.process import run
from inx_sidecar.base.storage import names_full_storage
from inx_sidecar.builds import build_counts
from inx_sidecar.builds.build_commands import build_command, fetch_command
from inx_sidecar.builds.build_request import BuildRequest, Listener
from inx_sidecar.builds.build_result import result_of
from inx_sidecar.builds.build_run import BuildRun
from inx_sidecar.builds.build_service import BuildService
from inx_sidecar.builds.build_slots import BuildSlots, queue_text
from inx_sidecar.builds.build_user import Evaluator, evaluator_of, slot_owner
from inx_sidecar.builds.explanation import explain
from inx_sidecar.builds.fetch import fetch_options
from inx_sidecar.builds.missing_attribute import SECONDS
from inx_sidecar.builds.module_build import CommandFailedError, ModuleBuild
from inx_sidecar.builds.module_evaluator import evaluator_of_modules
from inx_sidecar.builds.module_flake import is_impure
from inx_sidecar.builds.nix_log import Progress
from inx_sidecar.config.sources import Modules, System

_SOURCE_MAX: Final = 200


@dataclass(frozen=True)
class Chosen:
    """Who builds; `refusal` says why the source cannot be evaluated, and a system is fetched."""

    evaluator: Evaluator
    refusal: str = ""


async def build_in_slot(slots: BuildSlots, request: BuildRequest, listener: Listener) -> str:
    """As `build`, once its owner has a free slot. When this task is cancelled, so is the build.

    Who evaluates is looked up when a slot is free, since it may change meanwhile. If the owner has
    enough builds then, the slot is given back for another one.
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
            listener.say(f"inx: waiting for other builds of {owner} (not all {limit} are for one)")
        holder = request.project, request.name
        async with slots.take(limit, owner, holder=holder, waits=waits) as slot:
            try:
                request.settings.check_allowed(request.source)
                chosen = await _choose_evaluator(request)
                owner = slot_owner(chosen.evaluator, request.project)
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
    uuid, source, missing = request.uuid, request.source, request.missing
    failed, say, begin = _failed(request), listener.say, time.monotonic()
    evaluator, refusal = chosen.evaluator, chosen.refusal
    await stop(uuid)
    await remove_build_directory(uuid)
    service = BuildService(uuid, evaluator)
    seen, reason, done = service.source(), "", None
    alone = evaluator.doubt and f" (evaluated by a user without rights: {evaluator.doubt})"
    say(
        f"inx: building the system of {request.name!r} from {source}"
        + (alone or f" as {evaluator.user.name}")
    )
    listener.report(Progress().text())
    with BuildRun.begun(request, service, listener) as running:
        modules, failed_as = None, evaluator
        if missing is not None:
            fetch = fetch_command(missing, service.link, await fetch_options())
            done = await running.follow(fetch)
        if (done is None or done.status) and not isinstance(seen, System):
            if done is not None:
                running.record(f"inx: {missing} cannot be fetched; building {source}")
            try:
                if isinstance(seen, Modules):
                    modules = ModuleBuild(request, evaluator, service, running)
                    command = await modules.prepare()
                else:
                    command = build_command(seen, service.link, write_lock=not alone)
                done = await running.follow(command)
            except CommandFailedError as error:
                done, failed_as = error.done, error.evaluator
            except BuildError as error:
                reason = str(error)
        seconds = time.monotonic() - begin
        if done is not None and done.status == 0 and not reason:
            say(f"inx: done in {seconds:.0f} s, {running.progress.done}")
            system = result_of(service.link, request)
            listener.keep(modules.kept if modules is not None else {})
            return system
        say(f"inx: failed after {seconds:.0f} s, {running.progress.done}")
        if not refusal:
            if not reason:
                assert done is not None
                ask = partial(running.ask, seconds=SECONDS)
                explained = await explain(source, seen, failed_as, done, running.log, ask)
                reason = running.limit or explained
            by = "" if alone or evaluator.user.uid == 0 else f" as {evaluator.user.name}"
            refusal = f"{by}: {reason}"
    if alone:
        await remove_build_directory(uuid)  # with its caches, which serve no other build
    # A text reads no file, whoever evaluates it.
    by = "" if isinstance(seen, Modules) and not is_impure(seen) else alone
    raise BuildError(f"{failed}{refusal}{by}")


async def _choose_evaluator(request: BuildRequest) -> Chosen:
    """BuildError if the source cannot be evaluated, and no system can be fetched instead."""
    settings, name = request.settings, request.name
    try:
        if isinstance(request.source, Modules):
            return Chosen(await evaluator_of_modules(request.source, settings, name))
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
