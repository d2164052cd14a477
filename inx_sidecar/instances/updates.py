"""A running instance follows its configuration: build, generation, activation, in this order.

Asked again at any time, also for no reason: it acts only on a spec other than the last that was
carried out or failed. A newer spec ends the build of an older one; an activation is waited for.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Final

from inx_sidecar.base.errors import InstanceError, InxError, one_line
from inx_sidecar.base.journal import about
from inx_sidecar.builds import build
from inx_sidecar.container import activation, mounts
from inx_sidecar.container.mounts import Container
from inx_sidecar.incus.api import IncusError
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running import Running
from inx_sidecar.incus.status import Status, StatusWriter
from inx_sidecar.instances.deployment import BUG, Start, decide_start, ready
from inx_sidecar.instances.plan import Boot
from inx_sidecar.instances.state import InstanceState
from inx_sidecar.nix import generations
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generations import Append, Back, Change, Generations, Prune, Select
from inx_sidecar.nix.seals import only_sealed, with_seal
from inx_sidecar.nix.store import valid_paths
from inx_sidecar.roots import direct_roots, system_roots

_PRINTED_MAX: Final = 16 << 10


class Updater:
    """`soon` is called when roots have to be compared again."""

    def __init__(
        self,
        gc: GcClient,
        statuses: StatusWriter,
        turns: build.Turns,
        soon: Callable[[], None],
    ) -> None:
        self._gc = gc
        self._statuses = statuses
        self._turns = turns
        self._soon = soon

    async def update(self, state: InstanceState, instance: Instance) -> bool:
        """Begin what it takes that `instance` has the system it asks for; nothing if it has.

        With the lock of `state`, whose instance runs its system. False if an activation has to be
        waited for. InxError, which its status tells too, if what it takes cannot be decided.
        """
        try:
            if state.build is None or state.build.done():
                await _undo(instance)  # a sidecar ended before an activation did
            start = await decide_start(self._gc, instance, running=True)
        except InxError as error:
            if state.activating:
                return False
            await state.end_build()
            self._tell(instance, f"failed: {error}{_runs_on(instance)}")
            raise
        if state.activating:
            return False
        running = Running.load(instance.uuid)
        if running is None:
            return True
        if state.build is not None and not state.build.done():
            if state.start is not None and state.start.mark == start.mark:
                return True
            await state.end_build()
        state.start = start
        # What an activation that failed, or was left behind, has changed is put right by another.
        half_done = running.tried not in ("", start.mark)
        if start.mark == running.mark and not half_done:
            self._tell(instance, running.text)
            return True
        if start.spec.activate == "none" or (_nothing_to_do(start) and not half_done):
            self._settle(state, start, _trouble(start, instance))
        else:
            state.build = asyncio.create_task(self._follow(state, start))
        return True

    async def _follow(self, state: InstanceState, start: Start) -> None:
        instance = start.instance
        try:
            system, change = await self._wanted(start)
            state.activating = True
            note = await self._switch(state, start, system, change)
            present = generations.read(instance.rootfs, instance.name)
            await system_roots.add_system_roots(self._gc, instance, present, None)
            direct_roots.drop_if_there(instance.lxc_name, instance.uuid, system_roots.NEXT)
            self._settle(state, start, _trouble(start, instance) or note)
            self._soon()
            about(instance.lxc_name).info("runs %s from %s", system, start.spec.source)
        except InxError as error:
            about(instance.lxc_name).error("%s", error)
            text = f"failed: {error}{_runs_on(instance)}"
            if isinstance(error, IncusError):  # tried again once Incus is back
                self._tell(instance, text)
            else:
                self._settle(state, start, text)
        except Exception:
            about(instance.lxc_name).exception("the update ended in a bug")
            self._settle(state, start, f"failed: {BUG}{_runs_on(instance)}")
        except asyncio.CancelledError:
            running = Running.load(instance.uuid)
            if running is not None:
                self._tell(instance, running.text)  # and no longer that it builds
            raise
        finally:
            state.activating = False

    async def _wanted(self, start: Start) -> tuple[str, Select | Append]:
        """The system to activate, built if need be, and the generation that it becomes."""
        instance, plan = start.instance, start.plan
        if isinstance(plan, Boot):
            if plan.change is None:  # it is current, but another was tried since
                assert start.present.current is not None
                return plan.system, Select(start.present.current, start.present.pinned)
            if isinstance(plan.change, Append):
                # What may be needed to go back to is dropped when the new one is active.
                return plan.system, replace(plan.change, keep=None)
            return plan.system, plan.change
        self._tell(instance, "building")
        about(instance.lxc_name).info("%s", plan.describe())

        def say(line: str) -> None:
            about(instance.lxc_name).info("%s", line)

        system = await build.in_turn(
            self._turns, instance.uuid, instance.name, start.spec.source, plan.missing,
            start.settings, say,
        )  # fmt: skip
        return system, Append(system, plan.fingerprint, keep=None)

    async def _switch(
        self, state: InstanceState, start: Start, system: str, change: Select | Append
    ) -> str:
        """Make the generation and activate it; the status that it has then, if not just ready."""
        instance, mode = start.instance, start.spec.activate
        owner = instance.lxc_name, instance.uuid
        await direct_roots.add(self._gc, *owner, {system_roots.NEXT: system})
        await build.forget(instance.uuid)
        activation.check(instance, system)
        made = None if mode == "test" else with_seal(change)
        if made is not None:
            Running.amend(instance.uuid, undo=_to_undo(instance, start))
        try:
            await self._write(state, start, system, made)
            if mode != "boot":
                Running.amend(instance.uuid, tried=start.mark)
            status = await activation.run(instance, system, mode, start.settings.build_timeout)
            lines = await _printed(instance)
            note = activation.note(status, lines, system, instance.name)
        except Exception:
            await _undo(instance)
            raise
        # From here on it is active, or for `boot` what the next start takes.
        if mode != "boot":
            await direct_roots.add(self._gc, *owner, {system_roots.ACTIVE: system})
            Running.amend(instance.uuid, active=system, tried="", undo=None)
        else:
            Running.amend(instance.uuid, undo=None)
        if isinstance(made, Append):
            with _inside(instance) as (container, _):
                await mounts.write_generation(container, Prune(start.spec.keep))
        return f"ready ({note})" if note else ""

    async def _write(
        self, state: InstanceState, start: Start, system: str, made: Change | None
    ) -> None:
        """Write the generation; before, an isolated container gets to see its closure as well."""
        instance = start.instance
        with _inside(instance) as (container, running):
            if start.spec.isolated and system not in running.shown:
                before = valid_paths({running.booted, running.system})
                shown = (system, *sorted(before - {system}))
                state.mapped = await mounts.show(container, await start.store(*shown), made)
                Running.amend(instance.uuid, shown=shown)
            elif made is not None:
                await mounts.write_generation(container, made)

    def _settle(self, state: InstanceState, start: Start, text: str) -> None:
        """The spec was carried out, or failed: nobody has to look at it again."""
        instance = start.instance
        text = text or ready(mapped=state.mapped)
        present = _present(instance)
        if Running.load(instance.uuid) is not None:
            Running.amend(instance.uuid, mark=start.mark, text=text, profile=present.system or "")
            self._tell(instance, text)

    def _tell(self, instance: Instance, text: str) -> None:
        present, running = _present(instance), Running.load(instance.uuid)
        if running is not None:
            self._statuses.publish(instance, status(text, present, running), calmly=True)


def status(text: str, present: Generations, running: Running) -> Status:
    """What runs is what was activated last, unless somebody inside has chosen since."""
    system = running.system if present.system in (None, running.profile) else present.system
    return Status(text, system or "", number_of(system, present))


def number_of(system: str | None, present: Generations) -> int | None:
    if system == present.system:
        return present.current
    return max((n for n, path in present.links.items() if path == system), default=None)


def _nothing_to_do(start: Start) -> bool:
    return isinstance(start.plan, Boot) and start.plan.change is None


def _trouble(start: Start, instance: Instance) -> str:
    """The status if what is wished for is not there, and something else was taken."""
    trouble = start.plan.trouble if isinstance(start.plan, Boot) else ""
    return f"failed: {trouble}{_runs_on(instance)}" if trouble else ""


def _runs_on(instance: Instance) -> str:
    running, present = Running.load(instance.uuid), _present(instance)
    number = None if running is None else status("", present, running).generation
    return f"; generation {number} runs on" if number else ""


def _present(instance: Instance) -> Generations:
    try:
        present = generations.read(instance.rootfs, instance.name)
    except InxError as error:
        about(instance.lxc_name).error("%s", error)
        return Generations()
    return only_sealed(present, instance.isolated)


def _to_undo(instance: Instance, start: Start) -> dict[str, Any] | None:
    """The profile as it is, to go back to; what an isolated container made up is no way back."""
    present = start.present
    if present.current is None:
        return None
    numbers = generations.read(instance.rootfs, instance.name).links
    return asdict(
        Back(present.current, present.pinned, present.fingerprint, tuple(sorted(numbers)))
    )


async def _undo(instance: Instance) -> None:
    running = Running.load(instance.uuid)
    if running is not None and running.undo is not None:
        back = Back(**{**running.undo, "numbers": tuple(running.undo["numbers"])})
        with _inside(instance) as (container, _):
            await mounts.write_generation(container, back)
        Running.amend(instance.uuid, undo=None)


async def _printed(instance: Instance) -> list[str]:
    """The last lines of what an activation printed."""
    try:
        with _inside(instance) as (container, _):
            printed = await mounts.read_end(container, activation.LOG, _PRINTED_MAX)
    except InxError as error:
        about(instance.lxc_name).warning("%s", error)
        return []
    lines = [one_line(line) for line in printed.splitlines() if line.strip()]
    for line in lines:
        about(instance.lxc_name).info("%s", line)
    return lines


@contextmanager
def _inside(instance: Instance) -> Iterator[tuple[Container, Running]]:
    """The container that runs, not for long: held, its namespaces keep its file systems busy."""
    running = Running.load(instance.uuid)
    if running is None:
        raise InstanceError(f"{instance.name!r} has ended")
    with Container(running.pid, instance.lxc_name) as container:
        if Running.load(instance.uuid) is None:
            raise InstanceError(f"{instance.name!r} has ended")
        yield container, running
