"""What happens to an instance from its start to its end: hooks and changes arrive here.

Each step looks at what exists before it acts, so that each step can be repeated: LXC runs a hook
again after the sidecar died, and a new sidecar takes over the instances that run.
"""

import asyncio
import logging
import os
from typing import Final

from inotify_simple import INotify

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.storage import names_full_storage, storage_error
from inx_sidecar.builds import build, build_counts
from inx_sidecar.builds.build_slots import BuildSlots
from inx_sidecar.container import bootstrap
from inx_sidecar.container.namespaces import Container
from inx_sidecar.incus import last_known
from inx_sidecar.incus.instance import Instance, LxcFacts, read_instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.instances import private_directories
from inx_sidecar.instances.boot_build import BootBuilder
from inx_sidecar.instances.boot_status import BootStatus
from inx_sidecar.instances.cluster_watch import ClusterWatch
from inx_sidecar.instances.conflicts import check_uuid, other_with_uuid
from inx_sidecar.instances.daemon_starts import DaemonStarts
from inx_sidecar.instances.deployment import deploy
from inx_sidecar.instances.instance_state import InstanceState, static_addresses
from inx_sidecar.instances.rollout import Turn
from inx_sidecar.instances.sealing import note_renewed
from inx_sidecar.instances.starting import Starter
from inx_sidecar.instances.stopped_status import configuration_of, is_failed, next_text
from inx_sidecar.instances.system_look import Look, look_at_system
from inx_sidecar.instances.system_watch import SystemWatch
from inx_sidecar.instances.takeover import TakeOvers
from inx_sidecar.instances.updates import Updater
from inx_sidecar.nix.daemon import NixDaemon
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots.reconciler import RootReconciler
from inx_sidecar.roots.system_roots import add_roots_of_stopped

# The subjects of notes in the status.
_STORAGE: Final = "storage"
_TAKEOVER: Final = "takeover"

log = logging.getLogger(__name__)


class Lifecycle:
    """All instances that the sidecar knows, by uuid."""

    def __init__(self) -> None:
        self._states: dict[str, InstanceState] = {}
        self._statuses = StatusWriter()
        self._gc = GcClient()
        slots = BuildSlots()
        self._systems = SystemWatch(self._look_at_system)
        self._boots = BootStatus(self._statuses, self._systems)
        self.reconciler = RootReconciler(
            self._gc, self._statuses, self._forget, lambda uuid: self._state_of(uuid).daemon,
            self._systems.settle,
        )  # fmt: skip
        compare_soon = self.reconciler.compare_soon
        self.cluster = ClusterWatch(self._statuses, lambda: static_addresses(self._states))
        self._starter = Starter(
            self._gc, self._statuses, compare_soon, self._boots_now, self.cluster
        )
        self._boot_builder = BootBuilder(self._gc, self._statuses, slots, self._starter)
        self._updater = Updater(self._gc, self._statuses, slots, compare_soon)
        self.daemons = DaemonStarts()
        self._take_overs = TakeOvers(self._take_over, self._show_takeover)
        # The instances that run and whose backup.yaml could not be used, by uuid.
        self._without_backup: set[str] = set()

    async def pre_start(self, facts: LxcFacts) -> None:
        """Hook pre-start: decide what this start does, or refuse it; begin a build if needed."""
        instance = read_instance(facts)
        state = self._state_of(instance.uuid)
        self._statuses.set_known_status(instance)
        self._statuses.pause_writes(instance)
        async with state.lock:
            state.configured = configuration_of(instance)
            try:
                check_uuid(instance)
                await state.cancel_build()
                state.container_ended()
                await self._starter.prepare(state, instance, self._states)
            except InxError as error:
                self._statuses.publish_refusal(instance, error)
                raise
            self._boot_builder.begin_if_needed(state)

    @names_full_storage
    async def mount(self, facts: LxcFacts, pid: int) -> None:
        """Hook mount: attach what the container needs, whose init is `pid` and has not begun."""
        known = last_known.find(facts)
        if not known.complete:
            raise InstanceError(known.problem)
        instance = known.instance
        state = self._state_of(instance.uuid)
        async with state.lock:
            check_uuid(instance)
            if state.mounted.is_set() and state.pid == pid:
                return  # LXC runs the hook again: the former sidecar ended before it answered
            state.container_ended()
            if state.deployment is None:  # this sidecar came up after the hook pre-start
                await self._starter.make_ready(state, await deploy(self._gc, instance))
                self._boot_builder.begin_if_needed(state)
            running = await self._starter.mount(state, instance, pid, self._states)
            self.reconciler.instance_started(running.as_started(instance), running)

    @names_full_storage
    async def stop(self, facts: LxcFacts, target: str) -> None:
        """Hook stop: the container ends; with `target` "reboot" it starts again at once."""
        instance = last_known.find(facts).instance
        state = self._state_of(instance.uuid)
        async with state.lock:
            if other_with_uuid(instance) is not None:
                return  # pre-start has refused this one; the other one goes on
            self._statuses.pause_writes(instance)
            self._boots.stopped(instance)
            await state.cancel_build()
            running = Running.read(instance.uuid)
            self._statuses.publish_interruption(instance, running.status_text if running else "")
            if state.claims:
                self.cluster.addresses_free(instance)
            state.container_ended()
            state.deployment = None
            self._without_backup.discard(instance.uuid)
            await add_roots_of_stopped(self._gc, instance)
            await self.reconciler.instance_stopped(instance)
            if target == "reboot":  # the container gets another network namespace
                state.daemon.begin_end()
            else:
                await private_directories.remove_run_directory(instance.uuid)
                state.daemon.begin_stop()
        instance_log(instance.lxc_name).info("stopped")

    @names_full_storage
    async def update(self, instance: Instance, turn: Turn | None = None) -> None:
        """Give `instance`, if it runs, the system that its configuration asks for now.

        An activation that runs is awaited first. If `turn` is not taken afterwards, there was
        nothing to update. InxError if the configuration is not possible.
        """
        await self.daemons.configuration_changed(instance)
        self._updater.confirmations.configuration_changed(instance)
        state = self._states.get(instance.uuid)
        while state is not None:
            async with state.lock:
                if not state.mounted.is_set() or other_with_uuid(instance) is not None:
                    return  # its next start reads the configuration
                if not state.activating and await self._update_now(state, instance, turn):
                    return
                task = state.build
            if task is not None:
                await asyncio.wait([task])

    async def _update_now(
        self, state: InstanceState, instance: Instance, turn: Turn | None
    ) -> bool:
        """False if an activation has to be awaited first."""
        self._statuses.set_known_status(instance)
        state.configured = configuration_of(instance)
        if instance.uuid in self._without_backup:
            problem = last_known.problem_of(instance.facts)
            self._statuses.set_note(instance, _STORAGE, problem)
            if not problem:
                self._without_backup.discard(instance.uuid)
        if bootstrap.is_waiting(instance.uuid):
            await self._boot_builder.reconsider(state, instance)
            return True
        return await self._updater.update(state, instance, turn)

    def _boots_now(self, instance: Instance, *, ran: bool = False) -> None:
        self._boots.begin(instance, ran=ran)
        self._updater.confirmations.begin(self._state_of(instance.uuid), instance)

    async def _look_at_system(self, instance: Instance, inotify: INotify | None) -> Look:
        """Called when the links inside may have changed. The status that an activation by inx gives
        comes at its end; nothing waits for that here, least of all a collection."""
        state = self._state_of(instance.uuid)
        tell = not state.activating
        if not tell and state.build is not None:
            state.build.add_done_callback(lambda _: self._systems.ask(instance.uuid))
        look = await look_at_system(self._gc, self._statuses, instance, inotify, tell=tell)
        if look.booted and tell:
            self._boots.is_up(instance)
        return look

    def tell_stopped(
        self, instance: Instance, problem: str, *, has_hooks: bool, by_itself: bool
    ) -> None:
        """Let the status of `instance`, which does not run, say so; see `stopped_text`."""
        self._statuses.set_known_status(instance)
        present = self._statuses.text_of(instance)
        known = is_failed(present) or instance.uuid in self._states
        state = self._state_of(instance.uuid) if known else InstanceState(NixDaemon(instance.uuid))
        text = next_text(
            state, instance, present, problem, has_hooks=has_hooks, by_itself=by_itself
        )
        if text != present and self._statuses.amend_text(instance, text) and text:
            instance_log(instance.lxc_name).warning("%s", text)

    async def resume(self) -> None:
        """Take over the instances that run; builds begin again for each init that waits."""
        try:
            await private_directories.make_all_private()
        except OSError as error:
            # Instances run on, and the next start of the sidecar does it.
            if (known := storage_error(error)) is None:
                raise
            log.error("%s", known)
        self._systems.open()
        await self._take_overs.begin()

    async def _take_over(self, uuid: str, running: Running) -> None:
        state, facts = self._state_of(uuid), running.facts
        async with state.lock:
            state.pid, state.mapped = running.pid, running.mapped
            state.claims = dict.fromkeys(running.claims, facts.lxc_name)
            state.mounted.set()
            known = last_known.find(facts)
            instance = running.as_started(known.instance)
            if running.sealed:
                note_renewed(instance)
            self._statuses.set_known_status(instance)
            if not os.path.exists(paths.daemon_etc_dir(uuid)):
                # An inx that was installed before started this daemon, in the network of the host.
                state.daemon.begin_end()
            elif state.daemon.is_running:
                self.daemons.follow(uuid, running)
            state.daemon.prepare()
            self.reconciler.instance_started(instance, running)
            if known.problem:
                instance_log(facts.lxc_name).warning("%s", known.problem)
                self._without_backup.add(uuid)
                self._statuses.set_note(instance, _STORAGE, known.problem)
            else:
                last_known.save(known.instance)
            if bootstrap.is_waiting(uuid):
                state.container = Container(running.pid, facts.lxc_name)
                if Running.load(uuid) is None:
                    state.container_ended()  # meanwhile; its PID may belong to another process
                    return
                if known.complete:  # else Incus says what to build (`update`)
                    await self._boot_builder.proceed(state, await deploy(self._gc, instance))
            else:
                self._boots_now(instance, ran=True)
                self._statuses.publish_saved(instance)
                bootstrap.remove_stale_console(uuid)
        instance_log(facts.lxc_name).info("taken over")

    def _show_takeover(self, uuid: str, running: Running, problem: str) -> None:
        text = f"not taken over: {problem}" if problem else ""
        self._statuses.set_note(last_known.from_record(uuid, running), _TAKEOVER, text)

    async def close(self) -> None:
        """Stop the builds; leave everything else as it is for the next sidecar."""
        await self._take_overs.close()
        await self._updater.confirmations.close()
        await self.reconciler.close()
        await self._boots.close()
        await self.daemons.close()
        for state in list(self._states.values()):
            await state.cancel_build()
            state.container_ended()
            await state.await_daemon_units()

    async def _forget(self, uuid: str) -> None:
        """The instance was deleted: remove all that the sidecar has of it, except its build log,
        which says why an ephemeral instance, deleted as its build failed, did not start."""
        state = self._state_of(uuid)
        async with state.lock:
            deployment = state.deployment
            rootfs = deployment.instance.rootfs if deployment else ""
            if Running.load(uuid) or (rootfs and os.path.exists(rootfs)):
                return  # an instance has this uuid again, as after an import
            self._boots.end(uuid)
            await state.cancel_build()
            state.container_ended()
            await private_directories.remove_directories(uuid)
            await build.remove_build_directory(uuid)
            build_counts.forget(uuid)
            state.daemon.begin_stop()
            await state.await_daemon_units()
            state.daemon.remove_traces()
            self._statuses.forget(uuid)
            self._boot_builder.forget(uuid)
        del self._states[uuid]

    def _state_of(self, uuid: str) -> InstanceState:
        return self._states.setdefault(uuid, InstanceState(NixDaemon(uuid)))
