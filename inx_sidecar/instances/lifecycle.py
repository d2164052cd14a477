"""What happens to an instance: prepare a start, attach to it, build for it, let go of it.

Every step begins by looking at what is there, so that it can be repeated: LXC calls again after a
sidecar died, and a new sidecar takes over instances that wait.
"""

import asyncio
import contextlib
import os
import shutil

from inx_sidecar.base import lxc_log, paths
from inx_sidecar.base.errors import InstanceError, InxError, NetworkError, SystemMissingError
from inx_sidecar.base.journal import about
from inx_sidecar.builds import build
from inx_sidecar.config.addresses import claims, uses
from inx_sidecar.container import bootstrap, mounts, network
from inx_sidecar.container.mounts import Container, HostDirectory
from inx_sidecar.incus.instance import Facts, Instance, read_instance
from inx_sidecar.incus.running import Running
from inx_sidecar.incus.status import Status, StatusWriter
from inx_sidecar.instances.deployment import BUG, UNMAPPED, Start, decide_start, ready, wires_of
from inx_sidecar.instances.plan import Boot, Build
from inx_sidecar.instances.state import InstanceState
from inx_sidecar.instances.updates import Updater, number_of
from inx_sidecar.nix import generations
from inx_sidecar.nix.daemon import NixDaemon
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generations import Append, Generations, Select
from inx_sidecar.nix.seals import with_seal
from inx_sidecar.nix.store import redact_store_paths
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.reconciler import RootReconciler
from inx_sidecar.roots.system_roots import ACTIVE, NEXT, add_roots_of_stopped, add_system_roots


class Lifecycle:
    """All instances that the sidecar knows of."""

    def __init__(self) -> None:
        self._states: dict[str, InstanceState] = {}
        self._statuses = StatusWriter()
        self._turns = build.Turns()
        self._wiring = asyncio.Lock()
        self._gc = GcClient()
        self.reconciler = RootReconciler(self._gc, self._statuses, self._forget)
        self._updater = Updater(self._gc, self._statuses, self._turns, self.reconciler.soon)

    async def pre_start(self, facts: Facts) -> None:
        """Decide what this start does, or refuse it; begin a build if one is needed."""
        instance = read_instance(facts)
        state = self._state_of(instance.uuid)
        self._statuses.learn(instance)
        async with state.lock:
            try:
                _check_sole(instance)
                await state.end_build()
                state.release()
                start = await decide_start(self._gc, instance)
                wires = wires_of(instance, start.spec)
                self._refuse_claimed(state, instance, uses(wires))
                await network.look(instance.lxc_name, wires)
                state.start = await self._prepare(state, start)
            except InxError as error:
                self._statuses.publish_refusal(instance, error)
                raise
            if isinstance(state.start.plan, Build):
                self._begin_build(state, state.start, state.start.plan)

    async def mount(self, facts: Facts, pid: int) -> None:
        """Attach what the container needs; its init has not begun yet."""
        instance = read_instance(facts)
        state = self._state_of(instance.uuid)
        async with state.lock:
            _check_sole(instance)
            if state.attached.is_set() and state.pid == pid:
                return  # asked again: the answer was lost with the sidecar before this one
            state.release()
            # A sidecar that came up after pre-start knows nothing of it: decide anew.
            if state.start is None:
                start = await decide_start(self._gc, instance)
                state.start = await self._prepare(state, start)
                if isinstance(state.start.plan, Build):
                    self._begin_build(state, state.start, state.start.plan)
            start = state.start
            state.container = Container(pid, instance.lxc_name)
            try:
                wires = wires_of(instance, start.spec)
                self._refuse_claimed(state, instance, uses(wires))
                state.claims = dict.fromkeys(claims(wires), instance.lxc_name)
                await network.set_up(state.container, wires, self._wiring)
                await state.daemon.settle()
                state.mapped = await self._attach(state.container, start)
                running = Running.of(start.instance, pid, state.mapped, state.claims)
                running.save(instance.uuid)
                if isinstance(start.plan, Boot):
                    state.close()
                    self._statuses.publish(instance, await self._settled(state, start, start.plan))
            except InxError as error:
                state.claims = {}
                self._statuses.publish_refusal(instance, error)
                raise
            state.pid = pid
            state.attached.set()
            self._statuses.release(instance)
            self.reconciler.attach(running.as_started(instance), running)

    async def update(self, instance: Instance) -> None:
        """Whatever may have changed, `instance` gets the system that it asks for while it runs."""
        state = self._states.get(instance.uuid)
        while state is not None:
            async with state.lock:
                if not state.attached.is_set() or _twin(instance) is not None:
                    return  # its next start looks
                if not state.activating and await self._look_at(state, instance):
                    return
                task = state.build
            if task is not None:
                await asyncio.wait([task])

    async def _look_at(self, state: InstanceState, instance: Instance) -> bool:
        """False if it cannot be done yet."""
        self._statuses.learn(instance)
        if bootstrap.is_waiting(instance.uuid):
            await self._reconsider(state, instance)
            return True
        return await self._updater.update(state, instance)

    async def _reconsider(self, state: InstanceState, instance: Instance) -> None:
        """Its init waits for a build; the spec may be another by now."""
        try:
            start = await decide_start(self._gc, instance)
        except InxError as error:
            await state.end_build()
            _tell(instance.facts, error)
            await self._statuses.publish_and_wait(instance, Status(f"failed: {error}"))
            _console(instance).failed(str(error))
            return
        if state.start is not None and state.start.mark == start.mark:
            return
        await state.end_build()
        await self._proceed(state, start)

    async def _proceed(self, state: InstanceState, start: Start) -> None:
        """Give an init that waits its system, or build that."""
        state.start = start
        if isinstance(start.plan, Boot):
            await self._go(state, start, start.plan, _console(start.instance))
        else:
            self._begin_build(state, start, start.plan)

    async def stop(self, facts: Facts, target: str) -> None:
        """The container ends; with `target` "reboot" it comes back at once."""
        instance = read_instance(facts)
        state = self._state_of(instance.uuid)
        async with state.lock:
            if _twin(instance) is not None:
                return  # refused by pre-start; what bears its uuid goes on
            self._statuses.hold(instance)
            await state.end_build()
            state.release()
            state.start = None
            await add_roots_of_stopped(self._gc, instance)
            await self.reconciler.detach(instance)
            if target != "reboot":
                shutil.rmtree(paths.run_dir(instance.uuid), ignore_errors=True)
                state.daemon.begin_stop()
        about(instance.lxc_name).info("stopped")

    async def resume(self) -> None:
        """Take over the instances that run: builds begin again for those that wait for one."""
        await build.stop_all()
        for uuid in sorted(os.listdir(paths.RUN)):
            running = Running.load(uuid)
            if running is not None:
                try:
                    await self._resume(uuid, running)
                except Exception as error:
                    _give_up(uuid, running.facts, error)

    async def _resume(self, uuid: str, running: Running) -> None:
        state, facts = self._state_of(uuid), running.facts
        async with state.lock:
            state.pid, state.mapped = running.pid, running.mapped
            state.claims = dict.fromkeys(running.claims, facts.lxc_name)
            state.attached.set()
            instance = running.as_started(read_instance(facts))
            self._statuses.learn(instance)
            state.daemon.prepare()
            self.reconciler.attach(instance, running)
            if bootstrap.is_waiting(uuid):
                state.container = Container(running.pid, facts.lxc_name)
                if Running.load(uuid) is None:
                    state.release()  # it ended meanwhile, and the number is another's
                    return
                await self._proceed(state, await decide_start(self._gc, instance))
            else:
                self._statuses.publish_saved(instance)
                bootstrap.finish(uuid)
        about(facts.lxc_name).info("taken over")

    async def close(self) -> None:
        """Leave everything as it is for the next sidecar, but end the build."""
        await self.reconciler.close()
        for state in list(self._states.values()):
            await state.end_build()
            state.release()
            await state.quieten()

    async def _forget(self, uuid: str) -> None:
        """The instance was deleted."""
        state = self._state_of(uuid)
        async with state.lock:
            start = state.start
            if Running.load(uuid) or (start and os.path.exists(start.instance.rootfs)):
                return  # it came back, as by an import
            await state.end_build()
            state.release()
            shutil.rmtree(paths.run_dir(uuid), ignore_errors=True)
            shutil.rmtree(f"{paths.STATE}/{uuid}", ignore_errors=True)
            state.daemon.begin_stop()
            await state.quieten()
            # Its build log stays: one that is ephemeral is deleted because its build failed.
            self._statuses.forget(uuid)
        del self._states[uuid]

    def _state_of(self, uuid: str) -> InstanceState:
        return self._states.setdefault(uuid, InstanceState(NixDaemon(uuid)))

    async def _prepare(self, state: InstanceState, start: Start) -> Start:
        instance, uuid = start.instance, start.instance.uuid
        await state.quieten()
        state.daemon.prepare()
        plan = start.plan
        notice = _fell_back(plan, start.present) if isinstance(plan, Boot) else ""
        notice = redact_store_paths(notice) if instance.isolated else notice
        if isinstance(plan, Boot) and plan.trouble:
            _tell(instance.facts, SystemMissingError(plan.trouble))
        bootstrap.prepare(uuid, ready=isinstance(plan, Boot), notice=notice)
        if start.daemon:
            state.daemon.begin_start()
        else:
            await state.daemon.refuse_clients()
        about(instance.lxc_name).info("%s", start.plan.describe())
        return start

    def _refuse_claimed(
        self, state: InstanceState, instance: Instance, wanted: frozenset[str]
    ) -> None:
        """NetworkError if another instance that runs, or is being attached, has an address."""
        for uuid, other in self._states.items():
            taken = sorted(wanted & other.claims.keys()) if other is not state else None
            if taken and (Running.load(uuid) is not None or not other.attached.is_set()):
                raise NetworkError(
                    f"{taken[0].split()[0]} of {instance.lxc_name!r} is a static address of "
                    f"{other.claims[taken[0]]!r}, which runs; change one of the two"
                )

    async def _attach(self, container: Container, start: Start) -> bool:
        """Attach what this start needs; whether the store's owners are mapped."""
        uuid, plan = start.instance.uuid, start.plan
        directories = [
            HostDirectory(paths.boot_dir(uuid), paths.BOOT_INSIDE),
            HostDirectory(paths.daemon_socket_dir(uuid), "nix/var/nix/daemon-socket"),
        ]
        # An isolated container has no store before it is known what it may see of it.
        system = [plan.system] if isinstance(plan, Boot) else []
        shown = system or not start.spec.isolated
        if shown:
            directories.insert(0, await start.store(*system))
        change = with_seal(plan.change) if isinstance(plan, Boot) else None
        mapped = await mounts.attach(container, directories, change) or not shown
        if not mapped:
            about(container.name).warning("%s", UNMAPPED)
        return mapped

    async def _settled(self, state: InstanceState, start: Start, boot: Boot) -> Status:
        """The container has its system: root what it has now, and remember and tell what it is."""
        instance = start.instance
        after = generations.read(instance.rootfs, instance.name)
        await add_system_roots(self._gc, instance, after, boot.system)
        for former in (ACTIVE, NEXT):
            direct_roots.drop_if_there(instance.lxc_name, instance.uuid, former)
        self.reconciler.soon()
        trouble = _fell_back(boot, start.present)
        text = trouble or ready(mapped=state.mapped)
        Running.amend(
            instance.uuid, mapped=state.mapped, booted=boot.system, profile=after.system or "",
            shown=(boot.system,), mark=start.mark, text=text,
        )  # fmt: skip
        return Status(text, boot.system, number_of(boot.system, after))

    def _begin_build(self, state: InstanceState, start: Start, plan: Build) -> None:
        self._statuses.publish(start.instance, Status("building"))
        state.build = asyncio.create_task(self._build(state, start, plan))

    async def _build(self, state: InstanceState, start: Start, plan: Build) -> None:
        """Build, then let the waiting init go on; runs beside the start and after it."""
        instance, source = start.instance, start.spec.source
        console = _console(instance)
        try:
            try:
                system = await build.in_turn(
                    self._turns, instance.uuid, instance.name, source, plan.missing,
                    start.settings, console.print,
                )  # fmt: skip
                console.print(f"inx: starting {system}")
                boot = Boot(system, Append(system, plan.fingerprint, start.spec.keep))
            except InxError as error:
                if plan.fallback is None:
                    raise
                _tell(instance.facts, error)
                boot = Boot(start.present.links[plan.fallback.number], plan.fallback, str(error))
            await state.attached.wait()
            async with state.lock:
                await self._go(state, start, boot, console)
            about(instance.lxc_name).info("runs %s from %s", boot.system, source)
        except InxError as error:
            _tell(instance.facts, error)
            # Before the instance ends: Incus takes its time to stop one that is being written to.
            await self._statuses.publish_and_wait(instance, Status(f"failed: {error}"))
            console.failed(str(error))
        except Exception:
            about(instance.lxc_name).exception("the build ended in a bug")
            await self._statuses.publish_and_wait(instance, Status(f"failed: {BUG}"))
            console.failed(BUG)
        finally:
            console.close()

    async def _go(
        self, state: InstanceState, start: Start, boot: Boot, console: bootstrap.Console
    ) -> None:
        """Write the generation into the container that waits and let its init go on."""
        assert state.container is not None
        instance = start.instance
        # The build's link roots the system until the instance's own root stands.
        await add_system_roots(self._gc, instance, start.present, boot.system)
        await build.forget(instance.uuid)
        change = with_seal(boot.change)
        if start.spec.isolated:
            store = await start.store(boot.system)
            state.mapped = await mounts.show(state.container, store, change)
            if not state.mapped:
                about(instance.lxc_name).warning("%s", UNMAPPED)
        elif change is not None:
            await mounts.write_generation(state.container, change)
        state.close()
        status = await self._settled(state, start, boot)
        self._statuses.save_for_successor(instance, status)
        console.ready(_fell_back(boot, start.present))
        self._statuses.publish(instance, status)


def _console(instance: Instance) -> bootstrap.Console:
    return bootstrap.Console(instance.uuid, redacted=instance.isolated)


def _twin(instance: Instance) -> str | None:
    """The name of another instance that runs with the same uuid, as an import may."""
    running = Running.load(instance.uuid)
    if running is None or running.facts.rootfs == instance.rootfs:
        return None
    return running.facts.lxc_name


def _check_sole(instance: Instance) -> None:
    twin = _twin(instance)
    if twin is not None:
        raise InstanceError(
            f"{instance.lxc_name!r} has the volatile.uuid of {twin!r}, which runs: set it to a new "
            f"one, as by 'incus config set {instance.name} volatile.uuid=$(uuidgen)'"
        )


def _fell_back(boot: Boot, present: Generations) -> str:
    """The status of a start that boots another system than was wished for."""
    if not boot.trouble:
        return ""
    number = boot.change.number if isinstance(boot.change, Select) else present.current
    return f"failed: {boot.trouble}; started generation {number}"


def _give_up(uuid: str, facts: Facts, error: Exception) -> None:
    """Whatever keeps the sidecar from taking an instance over must not leave its init waiting."""
    text = str(error) if isinstance(error, InxError) else BUG
    about(facts.lxc_name).error("%s", text, exc_info=not isinstance(error, InxError))
    lxc_log.append(facts.lxc_config, facts.lxc_name, text)
    with contextlib.suppress(OSError):
        if bootstrap.is_waiting(uuid):
            bootstrap.Console(uuid, redacted=True).failed(text)


def _tell(facts: Facts, error: InxError) -> None:
    """Where the operator looks: the journal and `incus info --show-log`."""
    about(facts.lxc_name).error("%s", error)
    lxc_log.append(facts.lxc_config, facts.lxc_name, str(error))
