"""Build the system of an instance whose init waits for it, then let that init boot the system."""

import asyncio
from dataclasses import replace

from inx_sidecar.base.errors import InstanceError, InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.storage import names_full_storage
from inx_sidecar.builds import build
from inx_sidecar.builds.build_slots import BuildSlots
from inx_sidecar.container import bootstrap
from inx_sidecar.container.files import write_generation
from inx_sidecar.container.mounts import attach_store_over
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.incus.status_keys import Status
from inx_sidecar.incus.update_key import asked_now
from inx_sidecar.instances import own_view
from inx_sidecar.instances.change_report import ChangeReport, begin_report
from inx_sidecar.instances.deployment import Deployment, deploy
from inx_sidecar.instances.failure_log import log_failure
from inx_sidecar.instances.instance_state import InstanceState
from inx_sidecar.instances.obtain_system import change_of, obtain_system
from inx_sidecar.instances.plan import Boot, Build, boot_fallback
from inx_sidecar.instances.retries import BuildPauses
from inx_sidecar.instances.sealing import with_all_seals
from inx_sidecar.instances.starting import Starter
from inx_sidecar.instances.status_text import BUG, UNMAPPED, building_text, fallback_text
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots.system_roots import add_system_roots


class BootBuilder:
    """One build for each instance whose init waits; the lock of the instance's state is held by
    the caller of each public method."""

    def __init__(
        self, gc: GcClient, statuses: StatusWriter, slots: BuildSlots, starter: Starter
    ) -> None:
        self._gc = gc
        self._statuses = statuses
        self._slots = slots
        self._starter = starter
        self._pauses = BuildPauses()

    def begin_if_needed(self, state: InstanceState) -> None:
        """Begin a build if the deployment of `state` needs one."""
        deployment = state.deployment
        if deployment is not None and isinstance(deployment.plan, Build):
            instance, now = deployment.instance, asyncio.get_running_loop().time()
            pause, reason = self._pauses.begin(instance.uuid, deployment.digest, now)
            self._statuses.publish(instance, Status(building_text(pause, reason)))
            state.build = asyncio.create_task(
                self._build(state, deployment, deployment.plan, pause)
            )

    def forget(self, uuid: str) -> None:
        """The instance `uuid` was deleted."""
        self._pauses.forget(uuid)

    async def reconsider(self, state: InstanceState, instance: Instance) -> None:
        """The configuration may have changed: if its spec has, begin again with the new one."""
        try:
            deployment = await deploy(self._gc, instance)
        except InxError as error:
            await state.cancel_build()
            await self._fail(instance, console_of(instance), error)
            return
        if state.deployment is not None and state.deployment.digest == deployment.digest:
            return
        await state.cancel_build()
        await self.proceed(state, deployment)

    async def proceed(self, state: InstanceState, deployment: Deployment) -> None:
        """Let the init boot if the system exists, else begin to build it."""
        state.deployment = deployment
        if isinstance(deployment.plan, Boot):
            console = console_of(deployment.instance)
            await self._let_init_boot_or_fall_back(state, deployment, deployment.plan, console)
        else:
            self.begin_if_needed(state)

    async def _build(
        self, state: InstanceState, deployment: Deployment, plan: Build, pause: float
    ) -> None:
        """After `pause` seconds build, then let the init boot; runs beside the start and after
        it."""
        instance = deployment.instance
        console = console_of(instance)
        try:
            if pause:
                console.print(f"inx: {building_text(pause, 'this build has just failed')}")
                await asyncio.sleep(pause)
                self._statuses.publish(instance, Status(building_text()))
            boot = await self._built(deployment, plan, console)
            report = None
            if not boot.fallback_reason:
                before = deployment.present.system or ""
                report = await begin_report(instance, "start", before, boot.system)
            await state.mounted.wait()
            async with state.lock:
                boot = await self._let_init_boot_or_fall_back(
                    state, deployment, boot, console, report
                )
            source = deployment.spec.source
            instance_log(instance.lxc_name).info("runs %s from %s", boot.system, source)
        except InxError as error:
            await self._fail(instance, console, error)
        except Exception:
            instance_log(instance.lxc_name).exception("the build ended in a bug")
            await self._statuses.publish_and_wait(instance, _failure(instance, BUG))
            console.failed(BUG)
        finally:
            console.close()

    async def _built(self, deployment: Deployment, plan: Build, console: bootstrap.Console) -> Boot:
        """What to boot: the system that was built, or the fallback if the build failed."""
        instance, spec = deployment.instance, deployment.spec
        journal, begin = instance_log(instance.lxc_name), asyncio.get_running_loop().time()
        try:
            system = await obtain_system(
                self._slots, deployment, plan, console.print,
                lambda text: self._statuses.publish(instance, Status(text)), building_text(),
                lambda keys: self._statuses.keep(instance, keys),
            )  # fmt: skip
        except InxError as error:
            now = asyncio.get_running_loop().time()
            journal.info("its build failed after %.0f s", now - begin)
            self._pauses.failed(instance.uuid, deployment.digest, str(error), now)
            if plan.fallback is None:
                raise
            log_failure(instance.facts, error)
            system = deployment.present.links[plan.fallback.number]
            return Boot(system, plan.fallback, str(error))
        journal.info("built in %.0f s", asyncio.get_running_loop().time() - begin)
        self._pauses.forget(instance.uuid)
        console.print(f"inx: starting {system}")
        change = change_of(plan, system, spec.keep)
        return Boot(system, change, fallback=plan.fallback)

    async def _let_init_boot_or_fall_back(
        self,
        state: InstanceState,
        deployment: Deployment,
        boot: Boot,
        console: bootstrap.Console,
        report: ChangeReport | None = None,
    ) -> Boot:
        """As `_let_init_boot`; if the generation cannot be written, boot one that is there. Returns
        what is booted."""
        try:
            await self._let_init_boot(state, deployment, boot, console, report)
            return boot
        except InstanceError as error:
            other = boot_fallback(boot, deployment.present, str(error))
            if other is None or state.container is None:
                raise
            await self._let_init_boot(state, deployment, other, console)
            log_failure(deployment.instance.facts, error)
            return other

    @names_full_storage
    async def _let_init_boot(
        self,
        state: InstanceState,
        deployment: Deployment,
        boot: Boot,
        console: bootstrap.Console,
        report: ChangeReport | None = None,
    ) -> None:
        """Write the generation into the container that waits, and let its init continue. `report`
        has what a build gave."""
        assert state.container is not None
        instance = deployment.instance
        # The build's link roots the system until the instance's own root exists.
        await add_system_roots(self._gc, instance, deployment.present, boot.system)
        await build.remove_build_directory(instance.uuid)
        change = with_all_seals(boot.change, instance, deployment.all_generations)
        if deployment.spec.own:
            attached = await own_view.attach(
                state.container, deployment, boot.system, [], change
            )  # fmt: skip
            state.mapped = attached.mapped
            running = Running.load(instance.uuid)
            if running is not None:
                attached.added_to(running).save(instance.uuid)
        elif deployment.spec.isolated:
            store = await deployment.store(boot.system)
            state.mapped = await attach_store_over(state.container, store, change)
        elif change is not None:
            await write_generation(state.container, change)
        if deployment.spec.isolated and not state.mapped:
            instance_log(instance.lxc_name).warning("%s", UNMAPPED)
        state.close_container()
        status = await self._starter.record_boot(state, deployment, boot)
        if report is not None:
            report.write(f"generation {status.generation}")
            status = replace(status, changes=report.line)
        self._statuses.save_for_successor(instance, status)
        console.ready(fallback_text(boot, deployment.present))
        self._statuses.publish(instance, status)

    async def _fail(self, instance: Instance, console: bootstrap.Console, error: InxError) -> None:
        """Tell the reason, then let the init end, which stops the instance."""
        log_failure(instance.facts, error)
        # Before the instance ends: Incus stops an instance slowly while its status is written.
        await self._statuses.publish_and_wait(instance, _failure(instance, str(error)))
        console.failed(str(error))


def _failure(instance: Instance, reason: str) -> Status:
    return Status(f"failed: {reason}", update=asked_now(instance.config))


def console_of(instance: Instance) -> bootstrap.Console:
    """What the init that waits prints; without the names of store paths if it is isolated."""
    return bootstrap.Console(instance.uuid, redacted=instance.isolated)
