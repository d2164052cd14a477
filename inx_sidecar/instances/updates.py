"""A running instance follows its configuration: build, write a generation, activate it.

`Updater.update` may be called at any time. It does nothing if the spec is the one that it dealt
with last, with success or not. A newer spec cancels the build of an older one; an activation is
awaited.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.storage import names_full_storage
from inx_sidecar.builds.build_slots import BuildSlots
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.request import IncusError
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.incus.status_keys import BUILDING
from inx_sidecar.incus.update_key import asked_now
from inx_sidecar.instances.activate_update import activate_update, undo_generation
from inx_sidecar.instances.change_report import begin_report
from inx_sidecar.instances.confirmations import Confirmations
from inx_sidecar.instances.deployment import Deployment, deploy
from inx_sidecar.instances.instance_state import InstanceState
from inx_sidecar.instances.obtain_system import change_of, obtain_system
from inx_sidecar.instances.plan import Boot
from inx_sidecar.instances.rollout import Turn, held_text, queued_text
from inx_sidecar.instances.sealing import present_generations
from inx_sidecar.instances.status_text import (
    BUG,
    failed_update_text,
    ready_text,
    running_status,
    shown_text,
)
from inx_sidecar.instances.try_system import forget_other_try, try_system
from inx_sidecar.instances.unconfirmed_record import text_of
from inx_sidecar.instances.update_decision import UpdateStep, update_needed
from inx_sidecar.nix import generations
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generation_changes import Append, Select
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots import direct_roots, system_roots, tried_system


class Updater:
    """`compare_soon` is called when the GC roots have to be compared again."""

    def __init__(
        self,
        gc: GcClient,
        statuses: StatusWriter,
        slots: BuildSlots,
        compare_soon: Callable[[], None],
    ) -> None:
        self._gc = gc
        self._statuses = statuses
        self._slots = slots
        self._compare_soon = compare_soon
        self.confirmations = Confirmations(gc, statuses, compare_soon, self.update)

    async def update(
        self, state: InstanceState, instance: Instance, turn: Turn | None = None
    ) -> bool:
        """Begin the update that `instance` needs, if any; False if an activation runs, which has to
        be awaited first. The update takes `turn`, if it is part of a rollout.

        The caller holds the lock of `state`, and the instance runs its system. InxError, which the
        status tells as well, if the configuration is not possible.
        """
        try:
            if state.build is None or state.build.done():
                await undo_generation(instance)  # an earlier sidecar ended during an activation
            deployment = await deploy(self._gc, instance, running=True)
        except InxError as error:
            if state.activating:
                return False
            await state.cancel_build()
            self._publish_end(instance, _failed(instance, error))
            raise
        if state.activating:
            return False
        running = Running.load(instance.uuid)
        if running is None:
            return True
        builds_now = state.build is not None and not state.build.done()
        building = state.deployment.digest if builds_now and state.deployment else None
        spec = deployment.spec
        step = update_needed(deployment.digest, spec.activate, deployment.plan, running, building)
        if step is UpdateStep.CONTINUE:
            return True
        if builds_now:
            await state.cancel_build()
        state.deployment = deployment
        match step:
            case UpdateStep.NOTHING:
                self._publish_end(instance, shown_text(running))
            case UpdateStep.RECORD:
                self._record(state, deployment, _fallback_failure(deployment))
            case UpdateStep.DEPLOY:
                if turn is not None:
                    turn.taken = True
                state.build = asyncio.create_task(self._deploy_in_turn(state, deployment, turn))
                if turn is not None:
                    # A task that is cancelled before its first step runs no "finally".
                    state.build.add_done_callback(lambda _: turn.end())
        return True

    async def _deploy_in_turn(
        self, state: InstanceState, deployment: Deployment, turn: Turn | None
    ) -> None:
        """As `_deploy`, unless the rollout has ended by then."""
        if turn is None:
            await self._deploy(state, deployment)
            return
        succeeded = True
        try:
            names = not deployment.spec.isolated
            if turn.must_wait:
                text = queued_text(turn.waits_for(), names=names)
                self._publish(deployment.instance, text)
            if failures := await self._wait_for(turn, deployment.instance):
                self._hold_back(state, deployment, failures)
            else:
                succeeded = await self._deploy(state, deployment)
        finally:
            turn.end(failed=not succeeded)

    def _hold_back(self, state: InstanceState, deployment: Deployment, failures: list[str]) -> None:
        """The update is dealt with, also if an activation before it has failed half-way."""
        instance = deployment.instance
        running = Running.load(instance.uuid)
        if running is not None and running.attempted_digest:
            Running.amend(instance.uuid, attempted_digest=deployment.digest)
        text = held_text(failures, names=not deployment.spec.isolated)
        self._record(state, deployment, _failed(instance, text))
        instance_log(instance.lxc_name).warning("%s", held_text(failures, names=True))

    async def _wait_for(self, turn: Turn, instance: Instance) -> list[str]:
        try:
            return await turn.wait()
        except asyncio.CancelledError:
            running = Running.load(instance.uuid)
            if running is not None:
                self._publish(instance, shown_text(running))  # instead of "queued"
            raise

    async def _deploy(self, state: InstanceState, deployment: Deployment) -> bool:
        """False if the update has failed; the status says why."""
        instance, spec = deployment.instance, deployment.spec
        owner = instance.lxc_name, instance.uuid
        report = None
        try:
            system, change = await self._system_and_change(deployment)
            await direct_roots.add(self._gc, *owner, {system_roots.NEXT: system})
            report = await begin_report(instance, spec.activate, _system_of(instance), system)
            # From here on, a newer spec waits: a program inside may run.
            state.activating = True
            if spec.only_tries:
                text, outcome = await try_system(self._gc, state, deployment, report), "tried"
            else:
                text = await self.confirmations.tried(
                    state, deployment, system,
                    lambda: activate_update(self._gc, state, deployment, report, change),
                )  # fmt: skip
                outcome = await self._root_generations(deployment)
            if spec.activate in ("switch", "test"):
                Running.amend(instance.uuid, boot_text="")  # switching waits until it is up
            direct_roots.drop_if_there(*owner, system_roots.NEXT)
            report.write(outcome)
            self._record(state, deployment, _fallback_failure(deployment) or text, report.line)
            self._compare_soon()
            if not spec.only_tries:
                instance_log(instance.lxc_name).info("runs %s from %s", system, spec.source)
            return not _fallback_failure(deployment)
        except InxError as error:
            if report is not None:
                report.write("failed")
            instance_log(instance.lxc_name).error("%s", error)
            if isinstance(error, IncusError):  # the update is tried again once Incus answers
                self._publish_end(instance, _failed(instance, error))
            else:
                self._record(state, deployment, _failed(instance, error), changes="")
        except Exception:
            instance_log(instance.lxc_name).exception("the update ended in a bug")
            self._record(state, deployment, _failed(instance, BUG), changes="")
        except asyncio.CancelledError:
            running = Running.load(instance.uuid)
            if running is not None:
                self._publish(instance, shown_text(running))  # instead of "building"
            raise
        finally:
            state.activating = False
        return False

    async def _root_generations(self, deployment: Deployment) -> str:
        """The generation that was made gets a root; which it is, for the log."""
        instance = deployment.instance
        present = generations.read(instance.rootfs, instance.name)
        await system_roots.add_system_roots(self._gc, instance, present, None)
        if deployment.spec.activate == "test":
            return "no generation"
        tried_system.forget(instance.lxc_name, instance.uuid)
        return f"generation {present.current}"

    @names_full_storage
    async def _system_and_change(self, deployment: Deployment) -> tuple[str, Select | Append]:
        """The system to activate, built if needed, and the generation that holds it."""
        instance, plan, present = deployment.instance, deployment.plan, deployment.present
        if isinstance(plan, Boot):
            if plan.change is None:  # it is current, but another system was activated since
                assert present.current is not None
                return plan.system, Select(present.current, present.pinned)
            if isinstance(plan.change, Append):
                # Old generations are pruned once the new one is active: an undo may need them.
                return plan.system, replace(plan.change, keep=None)
            return plan.system, plan.change
        self._publish(instance, BUILDING)
        journal = instance_log(instance.lxc_name)
        journal.info("%s", plan.describe())
        system = await obtain_system(
            self._slots, deployment, plan, lambda line: journal.info("%s", line),
            lambda text: self._publish(instance, text), BUILDING,
            lambda keys: self._statuses.keep(instance, keys),
        )  # fmt: skip
        return system, change_of(plan, system, keep=None)

    def _record(
        self,
        state: InstanceState,
        deployment: Deployment,
        text: str,
        changes: str | None = None,
    ) -> None:
        """The spec was carried out, or has failed: an update with the same spec does nothing.

        `changes` as in `Status`."""
        instance = deployment.instance
        if forget_other_try(deployment):
            changes = changes or ""
        text = text or text_of(instance.uuid) or ready_text(mapped=state.mapped)
        if Running.load(instance.uuid) is not None:
            Running.amend(
                instance.uuid,
                spec_digest=deployment.digest,
                status_text=text,
                profile_system=present_generations(instance).system or "",
                update=asked_now(instance.config),
            )
            running = Running.load(instance.uuid)
            self._publish(instance, shown_text(running) if running else text, changes)

    def _publish_end(self, instance: Instance, text: str) -> None:
        """As `_publish`; the value of user.inx.update is dealt with."""
        running, asked = Running.load(instance.uuid), asked_now(instance.config)
        if running is not None and running.update != asked:
            Running.amend(instance.uuid, update=asked)
        self._publish(instance, text)

    def _publish(self, instance: Instance, text: str, changes: str | None = None) -> None:
        running = Running.load(instance.uuid)
        if running is not None:
            status = running_status(text, present_generations(instance), running)
            status = replace(status, changes=changes)
            self._statuses.publish(instance, status, delayed=True)


def _fallback_failure(deployment: Deployment) -> str:
    """The status if another system was taken, since the one that is asked for does not exist."""
    plan = deployment.plan
    reason = plan.fallback_reason if isinstance(plan, Boot) else ""
    return _failed(deployment.instance, reason) if reason else ""


def _system_of(instance: Instance) -> str:
    """The system that runs. Root inside says which was activated there. Root of an isolated
    container is not asked: the status would tell of a system that this root may not see."""
    running = Running.load(instance.uuid)
    if running is None:
        return ""
    asked = not instance.isolated and valid_paths({running.current})
    return running.current if asked else running.system


def _failed(instance: Instance, reason: InxError | str) -> str:
    running = Running.load(instance.uuid)
    return failed_update_text(str(reason), present_generations(instance), running)
