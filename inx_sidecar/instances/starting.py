"""Prepare a start, attach the mounts and the network to its container, and record the boot."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, InxError, NetworkError, SystemMissingError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.storage import names_full_storage
from inx_sidecar.config.nic_setup import claims, excluded_claims
from inx_sidecar.container import bootstrap, network
from inx_sidecar.container.locked_mounts import HostDirectory
from inx_sidecar.container.mounts import attach_mounts
from inx_sidecar.container.namespaces import Container
from inx_sidecar.incus import last_known
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.incus.status_keys import STARTING, Status, told_system
from inx_sidecar.incus.update_key import asked_now
from inx_sidecar.instances import own_view
from inx_sidecar.instances import unconfirmed_record as record
from inx_sidecar.instances.cluster_watch import ClusterWatch
from inx_sidecar.instances.conflicts import check_addresses
from inx_sidecar.instances.deployment import Deployment, deploy, static_nic_setups
from inx_sidecar.instances.failure_log import log_failure
from inx_sidecar.instances.instance_state import InstanceState
from inx_sidecar.instances.other_system import refuse_other_system
from inx_sidecar.instances.own_trash import OwnTrash
from inx_sidecar.instances.own_view import Attached
from inx_sidecar.instances.plan import Boot, boot_fallback
from inx_sidecar.instances.private_directories import make_private
from inx_sidecar.instances.sealing import note_renewed, with_all_seals
from inx_sidecar.instances.status_text import (
    UNMAPPED,
    fallback_text,
    generation_of,
    ready_text,
)
from inx_sidecar.nix import generations
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generation_changes import Append
from inx_sidecar.nix.store_paths import redact_store_paths
from inx_sidecar.roots import direct_roots, lineage, tried_system
from inx_sidecar.roots.system_roots import ACTIVE, CURRENT, NEXT, add_system_roots

# A daemon of the former container that does not end delays no start; its socket comes later.
_DAEMON_SECONDS: Final = 3.0


class Starter:
    """`compare_soon` is called when the GC roots have to be compared again, `booted` when an
    instance has its system."""

    def __init__(
        self,
        gc: GcClient,
        statuses: StatusWriter,
        compare_soon: Callable[[], None],
        booted: Callable[[Instance], None],
        cluster: ClusterWatch,
    ) -> None:
        self._gc = gc
        self._statuses = statuses
        self._compare_soon = compare_soon
        self._booted = booted
        self._cluster = cluster
        self._trash = OwnTrash()
        # Held from a check of the host's addresses until they are set: two starts could find the
        # same address free.
        self._network_lock = asyncio.Lock()

    @names_full_storage
    async def prepare(
        self, state: InstanceState, instance: Instance, states: Mapping[str, InstanceState]
    ) -> None:
        """Decide what the start does, refuse it if it is not possible, and make what the container
        needs; `states` are those of all instances. InxError is the reason of a refusal."""
        refuse_other_system(instance)
        deployment = await deploy(self._gc, instance)
        setups = static_nic_setups(instance, deployment.spec)
        check_addresses(instance, excluded_claims(setups), states)
        self._cluster.refuse_taken(instance, claims(setups))
        try:
            await network.refuse_conflicts(instance.lxc_name, setups)
        except NetworkError:
            # Another instance that starts may have claimed the address meanwhile: then say so.
            check_addresses(instance, excluded_claims(setups), states)
            raise
        await self.make_ready(state, deployment)

    @names_full_storage
    async def make_ready(self, state: InstanceState, deployment: Deployment) -> None:
        """Make /dev/.inx and the socket of the Nix daemon, as `deployment` needs them."""
        instance, plan = deployment.instance, deployment.plan
        await state.await_daemon_units(_DAEMON_SECONDS)
        make_private(instance.uuid)
        last_known.save(instance)
        state.daemon.prepare()
        notice = fallback_text(plan, deployment.present) if isinstance(plan, Boot) else ""
        notice = redact_store_paths(notice) if instance.isolated else notice
        if isinstance(plan, Boot) and plan.fallback_reason:
            log_failure(instance.facts, SystemMissingError(plan.fallback_reason))
        bootstrap.prepare(instance.uuid, ready=isinstance(plan, Boot), notice=notice)
        if deployment.has_daemon:
            state.daemon.begin_start()
        else:
            await state.daemon.refuse_clients(_DAEMON_SECONDS)
        # After the hook's answer: the journal would have its turn at the processor first.
        tell = instance_log(instance.lxc_name).info
        asyncio.get_running_loop().call_soon(tell, "%s", plan.describe())
        state.deployment = deployment

    async def mount(
        self,
        state: InstanceState,
        instance: Instance,
        pid: int,
        states: Mapping[str, InstanceState],
    ) -> Running:
        """Give the container, whose init is `pid` and has not begun, its network and its mounts.

        The status of a start that is refused here says why; InxError is the reason.
        """
        deployment = state.deployment
        assert deployment is not None
        state.container = Container(pid, instance.lxc_name)
        try:
            setups = static_nic_setups(instance, deployment.spec)
            check_addresses(instance, excluded_claims(setups), states)
            state.claims = dict.fromkeys(claims(setups), instance.lxc_name)
            await network.set_up(state.container, setups, self._network_lock)
            await state.daemon.wait_until_done(_DAEMON_SECONDS)
            try:
                attached = await self._attach(state.container, deployment)
            except InstanceError as error:
                deployment = state.deployment = with_fallback(deployment, error)
                attached = await self._attach(state.container, deployment)
                log_failure(instance.facts, error)  # said once if that fails, too
            state.mapped = attached.mapped
            running = Running.of(deployment.instance, pid, state.mapped, state.claims)
            running = attached.added_to(running)
            running.save(instance.uuid)
            if isinstance(deployment.plan, Boot):
                state.close_container()
                status = await self.record_boot(state, deployment, deployment.plan)
                self._statuses.publish(instance, status)
        except InxError as error:
            state.claims = {}
            self._statuses.publish_refusal(instance, error)
            raise
        state.pid = pid
        state.mounted.set()
        if state.claims:
            self._cluster.addresses_taken()
        self._statuses.resume_writes(instance)
        return running

    @names_full_storage
    async def record_boot(self, state: InstanceState, deployment: Deployment, boot: Boot) -> Status:
        """The container has its system: root its generations, save what runs, return the status."""
        instance = deployment.instance
        note_renewed(instance)
        if instance.sealed_for != instance.uuid:
            # A copy that is made before Incus has the key names what this one links from now on.
            lineage.add_former_key((instance.lxc_name, instance.uuid), instance.sealed_for)
        after = generations.read(instance.rootfs, instance.name)
        await add_system_roots(self._gc, instance, after, boot.system)
        for former in (ACTIVE, NEXT, CURRENT):
            direct_roots.drop_if_there(instance.lxc_name, instance.uuid, former)
        tried = deployment.tried
        if tried and (isinstance(boot.change, Append) or tried.wish != deployment.spec.wish):
            tried_system.forget(instance.lxc_name, instance.uuid)
        self._compare_soon()
        failed, only_tries = fallback_text(boot, deployment.present), deployment.spec.only_tries
        # While systems are only tried, the look after the start deals with what is asked for.
        update = "" if only_tries else asked_now(instance.config)
        pinned = deployment.spec.generation is not None
        waits = await record.note_boot(self._gc, instance, boot.system, pinned=pinned)
        text = failed or waits or ready_text(mapped=state.mapped)
        Running.amend(
            instance.uuid, mapped=state.mapped, booted=boot.system,
            profile_system=after.system or "", visible_systems=(boot.system,),
            spec_digest="" if only_tries else deployment.digest,
            status_text=text, sealed=True, update=update, boot_text=STARTING,
        )  # fmt: skip
        # After the hook's answer: no start waits until the boot is followed.
        asyncio.get_running_loop().call_soon(self._booted, instance)
        self._trash.empty_soon(instance)
        # What the last update changed is not about another system that was chosen since.
        same = boot.system == told_system(instance)
        as_made = deployment.spec.activate == "boot" and boot.change is None
        changes = None if same or as_made else ""
        number = generation_of(boot.system, after)
        if failed:
            return Status(failed, boot.system, number, True, update, changes)
        return Status(STARTING, boot.system, number, sealed=True, changes=changes)

    @names_full_storage
    async def _attach(self, container: Container, deployment: Deployment) -> Attached:
        """Attach what this start needs."""
        uuid, plan = deployment.instance.uuid, deployment.plan
        own = deployment.spec.own
        directories = [HostDirectory(paths.boot_dir(uuid), paths.BOOT_INSIDE, foreign=True)]
        if not own:
            place = "nix/var/nix/daemon-socket"
            directories.append(HostDirectory(paths.daemon_socket_dir(uuid), place))
        # An isolated container gets no store before its system, and so its closure, is known.
        systems = [plan.system] if isinstance(plan, Boot) else []
        has_store = bool(systems) or not deployment.spec.isolated
        if has_store and not own:
            directories.insert(0, await deployment.store(*systems))
        change = None
        if isinstance(plan, Boot):
            change = with_all_seals(plan.change, deployment.instance, deployment.all_generations)
        if own and isinstance(plan, Boot):
            attached = await own_view.attach(
                container, deployment, plan.system, directories, change
            )
        else:
            mapped = await attach_mounts(
                container, directories, change, protect=not own, await_exit=False
            )
            attached = Attached(mapped or not has_store)
        if not attached.mapped:
            instance_log(container.name).warning("%s", UNMAPPED)
        return attached


def with_fallback(deployment: Deployment, error: InstanceError) -> Deployment:
    """`deployment` with a generation that is there, since `error` kept the new one from being
    written; `error` itself if there is none."""
    plan = deployment.plan
    other = boot_fallback(plan, deployment.present, str(error)) if isinstance(plan, Boot) else None
    if other is None:
        raise error
    return replace(deployment, plan=other)
