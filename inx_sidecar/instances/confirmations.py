"""Updates that wait to be confirmed: one task for each instance, which ends with its update.

The task sleeps until the time is over, the configuration changes or the next check is due. It goes
back by the same code as an update, in the task `build` of the instance, so that a stop is not
delayed. Checks and failures have growing pauses.
"""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from inx_sidecar.base.errors import ActivationError, InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.storage import names_full_storage
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.instances import unconfirmed
from inx_sidecar.instances import unconfirmed_record as record
from inx_sidecar.instances.deployment import Deployment
from inx_sidecar.instances.instance_state import InstanceState
from inx_sidecar.instances.retries import Retries
from inx_sidecar.instances.roll_back import as_configured, roll_back
from inx_sidecar.instances.run_check import problem_of
from inx_sidecar.instances.status_text import BUG, ready_text
from inx_sidecar.instances.unconfirmed import CONFIRMED, UNCONFIRMED, Clock, Step, Unconfirmed
from inx_sidecar.instances.update_end import current_number, prune, tell
from inx_sidecar.nix.gc_client import GcClient

_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
# One run of a check may take so long; one that begins when the time is over less.
_CHECK_SECONDS: Final = 30.0
_LAST_CHECK_SECONDS: Final = 5.0
# A way back that takes longer is told before its end.
_TELL_SECONDS: Final = 5.0


class Confirmations:
    """`update_again` is the update of an instance, for which the caller holds the lock."""

    def __init__(
        self,
        gc: GcClient,
        statuses: StatusWriter,
        compare_soon: Callable[[], None],
        update_again: Callable[[InstanceState, Instance], Awaitable[object]],
    ) -> None:
        self._gc = gc
        self._statuses = statuses
        self._compare_soon = compare_soon
        self._update_again = update_again
        self._retries = Retries()
        # By uuid: the task, the instance as it was configured last, and what wakes the task.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._instances: dict[str, Instance] = {}
        self._news: dict[str, asyncio.Event] = {}

    @names_full_storage
    async def tried(
        self,
        state: InstanceState,
        deployment: Deployment,
        system: str,
        activate: Callable[[], Awaitable[str]],
    ) -> str:
        """Call `activate`, which activates `system` for `deployment`; the status text.

        The way back is known before the activation begins. Errors are those of `activate`.
        """
        instance, spec = deployment.instance, deployment.spec
        uuid = instance.uuid
        if _falls_back(deployment):
            return await activate()
        earlier = record.load(uuid)
        update = unconfirmed.of_update(
            spec, instance.config, deployment.present, deployment.plan,
            system, deployment.digest, earlier,
        )  # fmt: skip
        if update is not None:
            await record.begin(self._gc, instance, update)
        try:
            text = await activate()
        except Exception as error:
            running = Running.load(uuid)
            began = running is not None and running.attempted_digest == deployment.digest
            if update is not None and began and isinstance(error, ActivationError):
                update = replace(update, failure=str(error), goes_back=True, until=Clock.now())
                record.try_to_save(instance, update)
                self._begin(state, instance, update)
            elif update is not None and (running is None or running.undo is None):
                record.restore(instance, earlier)  # the profile is as it was before
            raise
        if update is None:
            record.remove(instance)
            self._begin(state, instance, None)
            if earlier is not None:
                await prune(instance, spec.keep)
                self._compare_soon()
            return text
        number = None if update.is_test else current_number(instance, system)
        update = replace(update, generation=number, note=text).begun(Clock.now())
        record.try_to_save(instance, update)
        self._begin(state, instance, update)
        return unconfirmed.waiting_text(update)

    def begin(self, state: InstanceState, instance: Instance) -> None:
        """`instance` runs its system: follow its update, if one waits to be confirmed."""
        self._begin(state, instance, record.load(instance.uuid))

    def _begin(self, state: InstanceState, instance: Instance, update: Unconfirmed | None) -> None:
        uuid = instance.uuid
        former = self._tasks.pop(uuid, None)
        if former is not None:
            former.cancel()
        if update is None:
            return
        self._instances[uuid], self._news[uuid] = instance, asyncio.Event()
        self._tasks[uuid] = task = asyncio.create_task(self._follow(state, uuid, update))
        task.add_done_callback(lambda ended: self._ended(uuid, ended))

    def configuration_changed(self, instance: Instance) -> None:
        before = self._instances.get(instance.uuid)
        if before is not None:
            self._instances[instance.uuid] = instance
            if before.config.get(CONFIRMED) != instance.config.get(CONFIRMED):
                self._wake(instance.uuid)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self, uuid: str) -> None:
        if uuid in self._news:
            self._news[uuid].set()

    def _ended(self, uuid: str, ended: asyncio.Task[None]) -> None:
        if self._tasks.get(uuid) is ended:
            del self._tasks[uuid], self._instances[uuid], self._news[uuid]
            self._retries.succeeded(uuid)

    async def _follow(self, state: InstanceState, uuid: str, update: Unconfirmed) -> None:
        """Until `update` is kept or taken back, or the instance has ended. What is in memory counts
        until then: a record that cannot be written gives no more time."""
        pause, following = _FIRST_PAUSE_SECONDS, True
        while following and Running.load(uuid) is not None:
            if state.activating and state.build is not None:
                await asyncio.wait([state.build])
                continue
            self._news[uuid].clear()
            try:
                update, following = await self._step(state, uuid, update, pause)
            except Exception:
                instance_log(self._instances[uuid].lxc_name).exception("confirming ended in a bug")
                await asyncio.sleep(_LONGEST_PAUSE_SECONDS)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _step(
        self, state: InstanceState, uuid: str, update: Unconfirmed, pause: float
    ) -> tuple[Unconfirmed, bool]:
        """What is known of `update` after one look, and whether it has to be followed on."""
        before = update
        if update.until is None:  # its activation was cut short, and may begin again
            update = update.begun(Clock.now())
        checks = bool(update.check) and not update.passed and not update.goes_back
        if checks:
            seconds = min(_CHECK_SECONDS, max(update.left(Clock.now()), _LAST_CHECK_SECONDS))
            problem = await problem_of(self._instances[uuid], update.check, seconds)
            if state.activating:
                return update, True
            if problem != update.problem or not problem:
                said = problem or "it succeeds"
                instance_log(self._instances[uuid].lxc_name).info("user.inx.check: %s", said)
            update = replace(update, passed=not problem, problem=problem)
        instance, left = self._instances[uuid], update.left(Clock.now())
        update = unconfirmed.with_value_seen(update, instance.config)
        if update != before:
            record.try_to_save(instance, update)
        match unconfirmed.decide(update, instance.config, left):
            case Step.CONFIRMED:
                await self._keep(state, instance, update)
                return update, False
            case Step.GO_BACK if self._retries.must_wait(uuid, update.digest):
                await self._news[uuid].wait()
            case Step.GO_BACK:
                return await self._go_back(state, instance, update)
            case Step.WAIT:
                seconds = min(left, pause) if checks and not update.passed else left
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._news[uuid].wait()
        return update, True

    async def _keep(self, state: InstanceState, instance: Instance, update: Unconfirmed) -> None:
        """The update is confirmed."""
        record.remove(instance)
        instance_log(instance.lxc_name).info("%s is confirmed", update.system)
        running = Running.load(instance.uuid)
        if running is not None and running.status_text.startswith(UNCONFIRMED):
            tell(self._statuses, instance, update.note or ready_text(mapped=state.mapped))
        async with state.lock:
            if not state.activating and not update.is_test:
                await prune(instance, update.keep)
                self._compare_soon()

    async def _go_back(
        self, state: InstanceState, instance: Instance, update: Unconfirmed
    ) -> tuple[Unconfirmed, bool]:
        """Go back, unless the operator has confirmed what no event has told yet."""
        uuid = instance.uuid
        try:
            fresh = self._instances[uuid] = await as_configured(instance)
        except InxError as error:  # nothing can be activated now
            instance_log(instance.lxc_name).error("%s", error)
            self._retries.failed(uuid, update.digest, error, lambda: self._wake(uuid))
            return update, True
        if unconfirmed.decide(update, fresh.config, left=0) is not Step.GO_BACK:
            return update, True
        async with state.lock:
            if state.activating or not state.mounted.is_set():
                return update, state.mounted.is_set()
            builds = state.build is not None and not state.build.done()
            await state.cancel_build()
            update = replace(update, goes_back=True)
            record.try_to_save(instance, update)
            state.build = task = asyncio.create_task(self._roll_back(state, fresh, update))
        await asyncio.wait([task])
        if builds:  # a newer wish was being built
            async with state.lock:
                with contextlib.suppress(InxError):
                    if state.mounted.is_set() and not state.activating:
                        await self._update_again(state, self._instances[uuid])
        return update, record.load(uuid) is not None

    async def _roll_back(
        self, state: InstanceState, instance: Instance, update: Unconfirmed
    ) -> None:
        state.activating = True
        journal = instance_log(instance.lxc_name)
        error: Exception
        text = unconfirmed.returning_text(update)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(_TELL_SECONDS, tell, self._statuses, instance, text)
        try:
            journal.warning("%s", unconfirmed.reason_of_return(update))
            await roll_back(self._gc, state, instance, update)
            record.remove(instance)
            self._retries.succeeded(instance.uuid)
            tell(self._statuses, instance, unconfirmed.returned_text(update), changes="")
            self._compare_soon()
            journal.info("runs %s again", update.before_system)
            return
        except InxError as failure:
            journal.error("%s", failure)
            error, reason = failure, str(failure)
        except Exception as failure:
            journal.exception("going back ended in a bug")
            error, reason = failure, BUG
        finally:
            timer.cancel()
            state.activating = False
        wake = functools.partial(self._wake, instance.uuid)
        self._retries.failed(instance.uuid, update.digest, error, wake)
        tell(self._statuses, instance, unconfirmed.not_returned_text(update, reason))


def _falls_back(deployment: Deployment) -> bool:
    """Whether another system is taken than the one that is asked for."""
    return bool(getattr(deployment.plan, "fallback_reason", ""))
