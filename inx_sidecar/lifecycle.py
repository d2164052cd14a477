"""What happens to an instance: prepare a start, attach to it, build for it, let go of it.

Every step begins by looking at what is there, so that it can be repeated: LXC calls again after a
sidecar died, and a new sidecar takes over instances that wait.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
from dataclasses import dataclass, field

from inx_sidecar import bootstrap, builds, generations, lxclog, mounts, paths, roots
from inx_sidecar.config import Wish, parse
from inx_sidecar.errors import InxError, SystemMissingError, UnsupportedError
from inx_sidecar.generations import Append, Generations
from inx_sidecar.instance import Facts, Instance, read_instance
from inx_sidecar.mounts import Container, HostDirectory
from inx_sidecar.plan import Boot, Build, Plan, decide
from inx_sidecar.process import run
from inx_sidecar.running import Running
from inx_sidecar.settings import Settings, load
from inx_sidecar.status import Reporter, Status
from inx_sidecar.storepath import check_toplevel, resolve, valid_paths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """One start of an instance: what it is, what is asked for and what will be done."""

    instance: Instance
    wish: Wish
    present: Generations
    plan: Plan
    settings: Settings

    @property
    def daemon(self) -> bool:
        """A privileged container's root is the host's root: it gets no daemon unless asked for."""
        return not self.instance.privileged if self.wish.daemon is None else self.wish.daemon


@dataclass
class _Life:
    """What the sidecar holds for one instance; all of it can be had again from the disk."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    start: Start | None = None
    attached: asyncio.Event = field(default_factory=asyncio.Event)
    mapped: bool = True
    container: Container | None = None
    build: asyncio.Task[None] | None = None
    # systemctl at work on the instance's nix-daemon; LXC has other things to do meanwhile.
    units: asyncio.Task[InxError | None] | None = None


class Lifecycle:
    """All instances that the sidecar knows of."""

    def __init__(self) -> None:
        self._lives: dict[str, _Life] = {}
        self._reporter = Reporter()
        self._turns = builds.Turns()

    async def pre_start(self, facts: Facts) -> None:
        """Decide what this start does, or refuse it; begin a build if one is needed."""
        instance = read_instance(facts)
        life = self._life(instance.uuid)
        self._reporter.learn(instance)
        async with life.lock:
            try:
                await _end_build(life)
                _release(life)
                life.start = await self._prepare(life, instance)
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
            if life.container is not None and life.container.pid == pid:
                return  # asked again: the answer was lost with the sidecar before this one
            _release(life)
            # A sidecar that came up after pre-start knows nothing of it: decide anew.
            if life.start is None:
                life.start = await self._prepare(life, instance)
                if isinstance(life.start.plan, Build):
                    self._begin_build(life, life.start, life.start.plan)
            start = life.start
            life.container = Container(pid, instance.lxc_name)
            try:
                await _settle_units(life)
                life.mapped = await self._attach(life.container, start)
            except InxError as error:
                self._reporter.report_refusal(instance, error)
                raise
            Running.of(facts, pid, life.mapped).remember(instance.uuid)
            life.attached.set()

    async def stop(self, facts: Facts, target: str) -> None:
        """The container ends; with `target` "reboot" it comes back at once."""
        instance = read_instance(facts)
        life = self._life(instance.uuid)
        async with life.lock:
            await _end_build(life)
            _release(life)
            life.start = None
            if target != "reboot":
                shutil.rmtree(paths.run_dir(instance.uuid), ignore_errors=True)
                _begin_units(life, "stop", _daemon_units(instance.uuid))
        log.info("%s: stopped", instance.lxc_name)

    async def resume(self) -> None:
        """Take over the instances that run: builds go on for those that wait for one."""
        for uuid in sorted(os.listdir(paths.RUN)):
            running = Running.recall(uuid)
            if running is not None:
                try:
                    await self._resume(uuid, running)
                except InxError as error:
                    log.error("%s: %s", running.facts.lxc_name, error)

    async def _resume(self, uuid: str, running: Running) -> None:
        life, facts = self._life(uuid), running.facts
        async with life.lock:
            container = Container(running.pid, facts.lxc_name)
            if Running.recall(uuid) is None:
                container.close()  # it ended meanwhile, and the number is another's
                return
            life.container, life.mapped = container, running.mapped
            life.attached.set()
            instance = read_instance(facts)
            self._reporter.learn(instance)
            if bootstrap.is_waiting(uuid):
                life.start = start = await self._decide(instance)
                plan = start.plan
                if isinstance(plan, Boot):
                    await self._go(life, start, plan, bootstrap.Console(uuid))
                else:
                    self._begin_build(life, start, plan)
            else:
                self._reporter.resume(instance)
                bootstrap.finish(uuid)
        log.info("%s: taken over", facts.lxc_name)

    async def close(self) -> None:
        """Leave everything as it is for the next sidecar, but end the builds."""
        for life in self._lives.values():
            await _end_build(life)
            _release(life)
            if life.units is not None:
                await life.units

    def _life(self, uuid: str) -> _Life:
        return self._lives.setdefault(uuid, _Life())

    async def _prepare(self, life: _Life, instance: Instance) -> Start:
        start = await self._decide(instance)
        uuid = instance.uuid
        await _settle_units(life)
        # Not for the host's users: anyone may speak to the socket below.
        os.makedirs(paths.run_dir(uuid), mode=0o700, exist_ok=True)
        for directory in (paths.auto_dir(uuid), paths.daemon_socket_dir(uuid)):
            os.makedirs(directory, mode=0o755, exist_ok=True)
        ready = isinstance(start.plan, Boot)
        bootstrap.prepare(uuid, ready=ready)
        if start.daemon:
            _begin_units(life, "start", [paths.daemon_socket_unit(uuid)])
        else:
            _refuse_clients(paths.daemon_socket_dir(uuid))
        log.info("%s: %s", instance.lxc_name, start.plan.describe())
        return start

    async def _decide(self, instance: Instance) -> Start:
        settings = load()
        wish = parse(instance.config, instance.name, settings.default_flake)
        settings.check_allowed(wish.source)
        present = generations.read(instance.rootfs, instance.name)
        plan = decide(wish, present, instance.name, valid_paths, resolve)
        start = Start(instance, wish, present, plan, settings)
        await _keep_roots(start)
        if isinstance(plan, Boot):
            check_toplevel(plan.system, f"the system of {instance.name!r}")
            if not valid_paths({plan.system}):
                raise SystemMissingError(
                    f"{plan.system} of {instance.name!r} was collected while it started; try again"
                )
        return start

    async def _attach(self, container: Container, start: Start) -> bool:
        """Attach what this start needs; whether the store's owners are mapped."""
        uuid = start.instance.uuid
        directories = [
            HostDirectory(paths.STORE, "nix/store"),
            HostDirectory(paths.boot_dir(uuid), paths.BOOT_INSIDE),
            HostDirectory(paths.daemon_socket_dir(uuid), "nix/var/nix/daemon-socket"),
        ]
        plan = start.plan
        change = plan.change if isinstance(plan, Boot) else None
        mapped = await mounts.attach(container, directories, change)
        if not mapped:
            log.warning("%s: %s", container.name, _UNMAPPED)
        if isinstance(plan, Boot):
            self._reporter.report(start.instance, await self._settled(start, mapped))
        return mapped

    async def _settled(self, start: Start, mapped: bool, trouble: str = "") -> Status:
        """The container has its system: root what it has now, and tell what that is."""
        after = generations.read(start.instance.rootfs, start.instance.name)
        await _keep_roots(start, after)
        text = trouble or ("ready" if mapped else f"ready ({_UNMAPPED})")
        return Status(text, after.system or "", after.current)

    def _begin_build(self, life: _Life, start: Start, plan: Build) -> None:
        self._reporter.report(start.instance, Status("building"))
        life.build = asyncio.create_task(self._build(life, start, plan))

    async def _build(self, life: _Life, start: Start, plan: Build) -> None:
        """Build, then let the waiting init go on; runs beside the start and after it."""
        instance, source = start.instance, start.wish.source
        console = bootstrap.Console(instance.uuid)
        try:
            try:
                system = await self._built(start, plan, console)
                boot = Boot(system, Append(system, plan.fingerprint, start.wish.keep))
                trouble = ""
            except InxError as error:
                if plan.fallback is None:
                    raise
                _tell(instance, error)
                system = start.present.links[plan.fallback.number]
                trouble = f"failed: {error}; started generation {plan.fallback.number}"
                boot = Boot(system, plan.fallback)
            await life.attached.wait()
            async with life.lock:
                await self._go(life, start, boot, console, trouble)
            log.info("%s: runs %s from %s", instance.lxc_name, boot.system, source)
        except InxError as error:
            _tell(instance, error)
            # Before the instance ends: Incus takes its time to stop one that is being written to.
            await self._reporter.write(instance, Status(f"failed: {error}"))
            console.failed(str(error))
        except Exception:
            log.exception("%s: the build ended in a bug", instance.lxc_name)
            console.failed("inx failed; see 'journalctl -u inx-sidecar' on the host")
        finally:
            console.close()

    async def _built(self, start: Start, plan: Build, console: bootstrap.Console) -> str:
        instance, wish = start.instance, start.wish
        limit = start.settings.max_builds
        if self._turns.taken >= limit:
            console.print(f"inx: waiting for other builds ({limit} at a time)")
        async with self._turns.one_of(limit):
            console.print(f"inx: building the system of {instance.name!r} from {wish.source}")
            try:
                system = await builds.build(
                    instance.uuid, instance.name, wish.source, plan.missing, start.settings,
                    console.print,
                )  # fmt: skip
            except asyncio.CancelledError:
                await builds.stop(instance.uuid)
                raise
        console.print(f"inx: starting {system}")
        return system

    async def _go(
        self,
        life: _Life,
        start: Start,
        boot: Boot,
        console: bootstrap.Console,
        trouble: str = "",
    ) -> None:
        """Write the generation into the container that waits and let its init go on."""
        assert life.container is not None
        instance = start.instance
        # The build's link roots the system until the instance's own root stands.
        await _keep_roots(start, extra=boot.system)
        builds.forget(instance.uuid)
        if boot.change is not None:
            await mounts.write_generation(life.container, boot.change)
        status = await self._settled(start, life.mapped, trouble)
        self._reporter.promise(instance, status)
        console.ready(trouble)
        self._reporter.report(instance, status)


_UNMAPPED = "store owned by nobody: its file system cannot map owners"
# A container may write as many links as it likes; this many of them are rooted.
_MAX_GENERATIONS = 1000


async def _keep_roots(
    start: Start, after: Generations | None = None, extra: str | None = None
) -> None:
    """Root every generation, and what is about to become one or already runs."""
    present = after or start.present
    newest = sorted(present.links, reverse=True)[:_MAX_GENERATIONS]
    wanted = {f"system-{number}": present.links[number] for number in newest}
    if isinstance(start.plan, Boot):
        wanted["booted-system"] = start.plan.system
    if extra is not None:
        wanted["booted-system"] = extra
    elif after is not None and after.system is not None:
        wanted["booted-system"] = after.system
    real = valid_paths(wanted.values())
    wanted = {name: path for name, path in wanted.items() if path in real}
    await roots.keep(start.instance.lxc_name, start.instance.uuid, wanted)


def _tell(instance: Instance, error: InxError) -> None:
    """Where the operator looks: the journal and `incus info --show-log`."""
    log.error("%s: %s", instance.lxc_name, error)
    lxclog.append(instance.facts.lxc_config, instance.lxc_name, str(error))


def _release(life: _Life) -> None:
    if life.container is not None:
        life.container.close()
        life.container = None
    life.attached.clear()


async def _end_build(life: _Life) -> None:
    if life.build is not None:
        life.build.cancel()
        await asyncio.gather(life.build, return_exceptions=True)
        life.build = None


def _refuse_clients(directory: str) -> None:
    """A socket that nobody listens on: without any, Nix inside would try a store of its own."""
    path = f"{directory}/socket"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(path)
    os.chmod(path, 0o666)


def _daemon_units(uuid: str) -> list[str]:
    return [paths.daemon_socket_unit(uuid), paths.daemon_service_unit(uuid)]


def _begin_units(life: _Life, verb: str, units: list[str]) -> None:
    async def systemctl() -> InxError | None:
        done = await run(["systemctl", verb, "--quiet", *units])
        if done.status:
            return UnsupportedError(f"'{done.command}' failed: {done.output}")
        return None

    life.units = asyncio.create_task(systemctl())


async def _settle_units(life: _Life) -> None:
    if life.units is not None:
        error = await life.units
        life.units = None
        if error is not None:
            raise error
