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
from inx_sidecar.config.addresses import claims, uses
from inx_sidecar.container import bootstrap, mounts, network
from inx_sidecar.container.mounts import Container, HostDirectory
from inx_sidecar.incus.instance import Facts, Instance, read_instance
from inx_sidecar.incus.running import Running
from inx_sidecar.incus.status import Reporter, Status
from inx_sidecar.instances import builds
from inx_sidecar.instances.deployment import BUG, UNMAPPED, Start, decide_start, ready, wires_of
from inx_sidecar.instances.plan import Boot, Build
from inx_sidecar.instances.state import Life
from inx_sidecar.instances.updates import Updater, number_of
from inx_sidecar.nix import generations
from inx_sidecar.nix.daemon import NixDaemon
from inx_sidecar.nix.gc_client import Collector
from inx_sidecar.nix.generations import Append, Generations, Select
from inx_sidecar.nix.seals import sealed
from inx_sidecar.nix.store import veil
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.reconciler import Fleet
from inx_sidecar.roots.system_roots import ACTIVE, NEXT, keep_systems, last_look


class Lifecycle:
    """All instances that the sidecar knows of."""

    def __init__(self) -> None:
        self._lives: dict[str, Life] = {}
        self._reporter = Reporter()
        self._turns = builds.Turns()
        self._wiring = asyncio.Lock()
        self._collector = Collector()
        self.fleet = Fleet(self._collector, self._reporter, self._forget)
        self._updater = Updater(self._collector, self._reporter, self._turns, self.fleet.soon)

    async def pre_start(self, facts: Facts) -> None:
        """Decide what this start does, or refuse it; begin a build if one is needed."""
        instance = read_instance(facts)
        life = self._life(instance.uuid)
        self._reporter.learn(instance)
        async with life.lock:
            try:
                _check_sole(instance)
                await life.end_build()
                life.release()
                start = await decide_start(self._collector, instance)
                wires = wires_of(instance, start.wish)
                self._refuse_claimed(life, instance, uses(wires))
                await network.look(instance.lxc_name, wires)
                life.start = await self._prepare(life, start)
            except InxError as error:
                self._reporter.report_refusal(instance, error)
                raise
            if isinstance(life.start.plan, Build):
                self._begin_build(life, life.start, life.start.plan)

    async def start_host(self, facts: Facts, pid: int) -> None:
        """Attach what the container needs; its init has not begun yet."""
        instance = read_instance(facts)
        life = self._life(instance.uuid)
        async with life.lock:
            _check_sole(instance)
            if life.attached.is_set() and life.pid == pid:
                return  # asked again: the answer was lost with the sidecar before this one
            life.release()
            # A sidecar that came up after pre-start knows nothing of it: decide anew.
            if life.start is None:
                start = await decide_start(self._collector, instance)
                life.start = await self._prepare(life, start)
                if isinstance(life.start.plan, Build):
                    self._begin_build(life, life.start, life.start.plan)
            start = life.start
            life.container = Container(pid, instance.lxc_name)
            try:
                wires = wires_of(instance, start.wish)
                self._refuse_claimed(life, instance, uses(wires))
                life.claims = dict.fromkeys(claims(wires), instance.lxc_name)
                await network.set_up(life.container, wires, self._wiring)
                await life.daemon.settle()
                life.mapped = await self._attach(life.container, start)
                running = Running.of(start.instance, pid, life.mapped, life.claims)
                running.remember(instance.uuid)
                if isinstance(start.plan, Boot):
                    life.close()
                    self._reporter.report(instance, await self._settled(life, start, start.plan))
            except InxError as error:
                life.claims = {}
                self._reporter.report_refusal(instance, error)
                raise
            life.pid = pid
            life.attached.set()
            self._reporter.release(instance)
            self.fleet.attach(running.as_started(instance), running)

    async def update(self, instance: Instance) -> None:
        """Whatever may have changed, `instance` gets the system that it asks for while it runs."""
        life = self._lives.get(instance.uuid)
        while life is not None:
            async with life.lock:
                if not life.attached.is_set() or _twin(instance) is not None:
                    return  # its next start looks
                if not life.activating and await self._look_at(life, instance):
                    return
                task = life.build
            if task is not None:
                await asyncio.wait([task])

    async def _look_at(self, life: Life, instance: Instance) -> bool:
        """False if it cannot be done yet."""
        self._reporter.learn(instance)
        if bootstrap.is_waiting(instance.uuid):
            await self._reconsider(life, instance)
            return True
        return await self._updater.update(life, instance)

    async def _reconsider(self, life: Life, instance: Instance) -> None:
        """Its init waits for a build; the wish may be another by now."""
        try:
            start = await decide_start(self._collector, instance)
        except InxError as error:
            await life.end_build()
            _tell(instance.facts, error)
            await self._reporter.write(instance, Status(f"failed: {error}"))
            _console(instance).failed(str(error))
            return
        if life.start is not None and life.start.mark == start.mark:
            return
        await life.end_build()
        await self._proceed(life, start)

    async def _proceed(self, life: Life, start: Start) -> None:
        """Give an init that waits its system, or build that."""
        life.start = start
        if isinstance(start.plan, Boot):
            await self._go(life, start, start.plan, _console(start.instance))
        else:
            self._begin_build(life, start, start.plan)

    async def stop(self, facts: Facts, target: str) -> None:
        """The container ends; with `target` "reboot" it comes back at once."""
        instance = read_instance(facts)
        life = self._life(instance.uuid)
        async with life.lock:
            if _twin(instance) is not None:
                return  # refused by pre-start; what bears its uuid goes on
            self._reporter.hold(instance)
            await life.end_build()
            life.release()
            life.start = None
            await last_look(self._collector, instance)
            await self.fleet.detach(instance)
            if target != "reboot":
                shutil.rmtree(paths.run_dir(instance.uuid), ignore_errors=True)
                life.daemon.begin_stop()
        about(instance.lxc_name).info("stopped")

    async def resume(self) -> None:
        """Take over the instances that run: builds begin again for those that wait for one."""
        await builds.stop_all()
        for uuid in sorted(os.listdir(paths.RUN)):
            running = Running.recall(uuid)
            if running is not None:
                try:
                    await self._resume(uuid, running)
                except Exception as error:
                    _give_up(uuid, running.facts, error)

    async def _resume(self, uuid: str, running: Running) -> None:
        life, facts = self._life(uuid), running.facts
        async with life.lock:
            life.pid, life.mapped = running.pid, running.mapped
            life.claims = dict.fromkeys(running.claims, facts.lxc_name)
            life.attached.set()
            instance = running.as_started(read_instance(facts))
            self._reporter.learn(instance)
            life.daemon.prepare()
            self.fleet.attach(instance, running)
            if bootstrap.is_waiting(uuid):
                life.container = Container(running.pid, facts.lxc_name)
                if Running.recall(uuid) is None:
                    life.release()  # it ended meanwhile, and the number is another's
                    return
                await self._proceed(life, await decide_start(self._collector, instance))
            else:
                self._reporter.resume(instance)
                bootstrap.finish(uuid)
        about(facts.lxc_name).info("taken over")

    async def close(self) -> None:
        """Leave everything as it is for the next sidecar, but end the builds."""
        await self.fleet.close()
        for life in list(self._lives.values()):
            await life.end_build()
            life.release()
            await life.quieten()

    async def _forget(self, uuid: str) -> None:
        """The instance was deleted."""
        life = self._life(uuid)
        async with life.lock:
            start = life.start
            if Running.recall(uuid) or (start and os.path.exists(start.instance.rootfs)):
                return  # it came back, as by an import
            await life.end_build()
            life.release()
            shutil.rmtree(paths.run_dir(uuid), ignore_errors=True)
            shutil.rmtree(f"{paths.STATE}/{uuid}", ignore_errors=True)
            life.daemon.begin_stop()
            await life.quieten()
            # Its build log stays: one that is ephemeral is deleted because its build failed.
            self._reporter.forget(uuid)
        del self._lives[uuid]

    def _life(self, uuid: str) -> Life:
        return self._lives.setdefault(uuid, Life(NixDaemon(uuid)))

    async def _prepare(self, life: Life, start: Start) -> Start:
        instance, uuid = start.instance, start.instance.uuid
        await life.quieten()
        life.daemon.prepare()
        plan = start.plan
        notice = _fell_back(plan, start.present) if isinstance(plan, Boot) else ""
        notice = veil(notice) if instance.isolated else notice
        if isinstance(plan, Boot) and plan.trouble:
            _tell(instance.facts, SystemMissingError(plan.trouble))
        bootstrap.prepare(uuid, ready=isinstance(plan, Boot), notice=notice)
        if start.daemon:
            life.daemon.begin_start()
        else:
            await life.daemon.refuse_clients()
        about(instance.lxc_name).info("%s", start.plan.describe())
        return start

    def _refuse_claimed(self, life: Life, instance: Instance, wanted: frozenset[str]) -> None:
        """NetworkError if another instance that runs, or is being attached, has an address."""
        for uuid, other in self._lives.items():
            taken = sorted(wanted & other.claims.keys()) if other is not life else None
            if taken and (Running.recall(uuid) is not None or not other.attached.is_set()):
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
        shown = system or not start.wish.isolated
        if shown:
            directories.insert(0, await start.store(*system))
        change = sealed(plan.change) if isinstance(plan, Boot) else None
        mapped = await mounts.attach(container, directories, change) or not shown
        if not mapped:
            about(container.name).warning("%s", UNMAPPED)
        return mapped

    async def _settled(self, life: Life, start: Start, boot: Boot) -> Status:
        """The container has its system: root what it has now, and remember and tell what it is."""
        instance = start.instance
        after = generations.read(instance.rootfs, instance.name)
        await keep_systems(self._collector, instance, after, boot.system)
        for former in (ACTIVE, NEXT):
            direct_roots.drop_if_there(instance.lxc_name, instance.uuid, former)
        self.fleet.soon()
        trouble = _fell_back(boot, start.present)
        text = trouble or ready(mapped=life.mapped)
        Running.amend(
            instance.uuid, mapped=life.mapped, booted=boot.system, profile=after.system or "",
            shown=(boot.system,), mark=start.mark, text=text,
        )  # fmt: skip
        return Status(text, boot.system, number_of(boot.system, after))

    def _begin_build(self, life: Life, start: Start, plan: Build) -> None:
        self._reporter.report(start.instance, Status("building"))
        life.build = asyncio.create_task(self._build(life, start, plan))

    async def _build(self, life: Life, start: Start, plan: Build) -> None:
        """Build, then let the waiting init go on; runs beside the start and after it."""
        instance, source = start.instance, start.wish.source
        console = _console(instance)
        try:
            try:
                system = await builds.in_turn(
                    self._turns, instance.uuid, instance.name, source, plan.missing,
                    start.settings, console.print,
                )  # fmt: skip
                console.print(f"inx: starting {system}")
                boot = Boot(system, Append(system, plan.fingerprint, start.wish.keep))
            except InxError as error:
                if plan.fallback is None:
                    raise
                _tell(instance.facts, error)
                boot = Boot(start.present.links[plan.fallback.number], plan.fallback, str(error))
            await life.attached.wait()
            async with life.lock:
                await self._go(life, start, boot, console)
            about(instance.lxc_name).info("runs %s from %s", boot.system, source)
        except InxError as error:
            _tell(instance.facts, error)
            # Before the instance ends: Incus takes its time to stop one that is being written to.
            await self._reporter.write(instance, Status(f"failed: {error}"))
            console.failed(str(error))
        except Exception:
            about(instance.lxc_name).exception("the build ended in a bug")
            await self._reporter.write(instance, Status(f"failed: {BUG}"))
            console.failed(BUG)
        finally:
            console.close()

    async def _go(self, life: Life, start: Start, boot: Boot, console: bootstrap.Console) -> None:
        """Write the generation into the container that waits and let its init go on."""
        assert life.container is not None
        instance = start.instance
        # The build's link roots the system until the instance's own root stands.
        await keep_systems(self._collector, instance, start.present, boot.system)
        await builds.forget(instance.uuid)
        change = sealed(boot.change)
        if start.wish.isolated:
            store = await start.store(boot.system)
            life.mapped = await mounts.show(life.container, store, change)
            if not life.mapped:
                about(instance.lxc_name).warning("%s", UNMAPPED)
        elif change is not None:
            await mounts.write_generation(life.container, change)
        life.close()
        status = await self._settled(life, start, boot)
        self._reporter.promise(instance, status)
        console.ready(_fell_back(boot, start.present))
        self._reporter.report(instance, status)


def _console(instance: Instance) -> bootstrap.Console:
    return bootstrap.Console(instance.uuid, veiled=instance.isolated)


def _twin(instance: Instance) -> str | None:
    """The name of another instance that runs with the same uuid, as an import may."""
    running = Running.recall(instance.uuid)
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
            bootstrap.Console(uuid, veiled=True).failed(text)


def _tell(facts: Facts, error: InxError) -> None:
    """Where the operator looks: the journal and `incus info --show-log`."""
    about(facts.lxc_name).error("%s", error)
    lxc_log.append(facts.lxc_config, facts.lxc_name, str(error))
