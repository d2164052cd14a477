"""A running instance follows its configuration: build, generation, activation, in this order.

Asked again at any time, also for no reason: it compares what the configuration asks for with what
there is. A newer wish ends the build of an older one; an activation is waited for.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from inx_sidecar import activation, builds, generations, mounts, roots, systems
from inx_sidecar.collector import Collector
from inx_sidecar.errors import (
    ActivationError,
    InstanceError,
    InxError,
    SystemMissingError,
    one_line,
)
from inx_sidecar.generations import Append, Change, Generations, Select
from inx_sidecar.incus import IncusError
from inx_sidecar.instance import Instance
from inx_sidecar.life import Life
from inx_sidecar.mounts import Container
from inx_sidecar.plan import Boot
from inx_sidecar.running import Running
from inx_sidecar.seals import sealed
from inx_sidecar.start import BUG, UNMAPPED, Start, decide_start
from inx_sidecar.status import Reporter, Status
from inx_sidecar.storepath import valid_paths

_TEST: Final = "test"
_PRINTED_MAX: Final = 16 << 10

log = logging.getLogger(__name__)


class Updater:
    """`soon` is called when roots have to be compared again."""

    def __init__(
        self,
        collector: Collector,
        reporter: Reporter,
        turns: builds.Turns,
        soon: Callable[[], None],
    ) -> None:
        self._collector = collector
        self._reporter = reporter
        self._turns = turns
        self._soon = soon

    async def update(self, life: Life, instance: Instance) -> None:
        """Begin what it takes that `instance` has the system it asks for; nothing if it has.

        With the lock of `life`, whose instance runs its system.
        """
        present = generations.read(instance.rootfs, instance.name)
        try:
            start = await decide_start(self._collector, instance, running=True)
        except InxError as error:
            await life.end_build()
            self._refuse(instance, present, error)
            return
        running = Running.recall(instance.uuid)
        if running is None:
            return
        the_same = life.start is not None and life.start.mark == start.mark
        if life.build is not None and not life.build.done():
            if the_same:
                return
            await life.end_build()
        life.start = start
        plan = start.plan
        if isinstance(plan, Boot) and plan.change is None and plan.trouble:
            if not the_same:  # else its start has said so
                self._refuse(instance, present, SystemMissingError(plan.trouble))
        elif start.wish.activate == "none" or (isinstance(plan, Boot) and plan.change is None):
            self._report(start, present, running.note, life.mapped)
            _remember(instance.uuid, tried="")
        elif start.mark != running.tried:
            life.build = asyncio.create_task(self._follow(life, start, present))

    async def _follow(self, life: Life, start: Start, present: Generations) -> None:
        instance = start.instance
        try:
            system, change = await self._wanted(start, present)
            life.activating = True
            note = await self._switch(life, start, present, system, change)
            after = generations.read(instance.rootfs, instance.name)
            await systems.keep_systems(self._collector, instance, after, None)
            on_trial = start.wish.activate == _TEST
            _remember(instance.uuid, tried=start.mark if on_trial else "", note=note)
            if not on_trial:
                roots.drop_if_there(instance.lxc_name, instance.uuid, systems.NEXT)
            self._soon()
            self._report(start, after, note, life.mapped)
            log.info("%s: runs %s from %s", instance.lxc_name, system, start.wish.source)
        except InxError as error:
            if Running.recall(instance.uuid) is None:
                log.info("%s: %s", instance.lxc_name, error)  # its next start looks
                return
            if not isinstance(error, IncusError):  # else it is tried again once Incus is back
                _remember(instance.uuid, tried=start.mark)
            self._refuse(instance, present, error)
        except Exception:
            log.exception("%s: the update ended in a bug", instance.lxc_name)
            self._tell(instance, f"failed: {BUG}", present)
        except asyncio.CancelledError:
            self._report(start, present, "", life.mapped)  # and no longer that it builds
            raise
        finally:
            life.activating = False

    async def _wanted(self, start: Start, present: Generations) -> tuple[str, Change]:
        """The system to activate, built if need be, and the generation that it becomes."""
        instance, plan = start.instance, start.plan
        if isinstance(plan, Boot):
            assert plan.change is not None
            return plan.system, plan.change
        self._tell(instance, "building", present)
        log.info("%s: %s", instance.lxc_name, plan.describe())

        def say(line: str) -> None:
            log.info("%s: %s", instance.lxc_name, line)

        system = await builds.in_turn(
            self._turns, instance.uuid, instance.name, start.wish.source, plan.missing,
            start.settings, say,
        )  # fmt: skip
        return system, Append(system, plan.fingerprint, start.wish.keep)

    async def _switch(
        self, life: Life, start: Start, present: Generations, system: str, change: Change
    ) -> str:
        """Make the generation and activate it; what did not go well, if it can be tolerated."""
        instance, mode = start.instance, start.wish.activate
        await roots.add(self._collector, instance.lxc_name, instance.uuid, {systems.NEXT: system})
        await builds.forget(instance.uuid)
        made = None if mode == _TEST else sealed(change)
        with _inside(instance) as (container, running):
            if start.wish.isolated:
                # What runs was started from these; of the generations, those with a seal count.
                before = valid_paths({running.booted, start.present.system or ""})
                store = await start.store(system, *before)
                life.mapped = await mounts.show(container, store, made)
            elif made is not None:
                await mounts.write_generation(container, made)
        try:
            status = await activation.run(instance, system, mode, start.settings.build_timeout)
            with _inside(instance) as (container, _):
                printed = await mounts.read_end(container, activation.LOG, _PRINTED_MAX)
            lines = [line.strip() for line in printed.splitlines() if line.strip()]
            for line in lines:
                log.info("%s: %s", instance.lxc_name, one_line(line))
            return activation.note(status, lines, system, instance.name)
        except (ActivationError, IncusError):
            # The next start tries it again.
            if made is not None and present.current is not None:
                back = Select(present.current, present.pinned, present.fingerprint)
                with _inside(instance) as (container, _):
                    await mounts.write_generation(container, back)
            raise

    def _report(self, start: Start, present: Generations, note: str, mapped: bool) -> None:
        more = note or ("" if mapped else UNMAPPED)
        self._tell(start.instance, f"ready ({more})" if more else "ready", present)

    def _refuse(self, instance: Instance, present: Generations, error: InxError) -> None:
        log.error("%s: %s", instance.lxc_name, error)
        runs = f"; generation {present.current} runs on" if present.current else ""
        self._tell(instance, f"failed: {error}{runs}", present)

    def _tell(self, instance: Instance, text: str, present: Generations) -> None:
        status = Status(text, present.system or "", present.current)
        self._reporter.report(instance, status, calmly=True)


@contextmanager
def _inside(instance: Instance) -> Iterator[tuple[Container, Running]]:
    """The container that runs, not for long: held, its namespaces keep its file systems busy."""
    running = Running.recall(instance.uuid)
    if running is None:
        raise InstanceError(f"{instance.name!r} has ended")
    with Container(running.pid, instance.lxc_name) as container:
        if Running.recall(instance.uuid) is None:
            raise InstanceError(f"{instance.name!r} has ended")
        yield container, running


def _remember(uuid: str, tried: str, note: str | None = None) -> None:
    """`tried`, and `note` unless it is None, of Running, for whoever looks next."""
    running = Running.recall(uuid)
    if running is not None:
        then = replace(running, tried=tried, note=running.note if note is None else note)
        if then != running:
            then.remember(uuid)
