"""What the Nix daemon of an instance gets when its first client starts it, and while it runs.

The daemon is started by systemd and enters the network of the container (nix_daemon.py). Nothing
here is on the way of a start of the instance.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, InxError, UnsupportedError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.process import run
from inx_sidecar.config.daemon_limits import daemon_limits
from inx_sidecar.config.settings import load_settings
from inx_sidecar.container import files
from inx_sidecar.container.namespaces import Container
from inx_sidecar.incus import last_known
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.nix import build_ids, daemon_etc, host_settings
from inx_sidecar.nix.daemon import is_running

_RESOLV_CONF_MAX: Final = 1 << 14
_LOOK_SECONDS: Final = 3.0
# Name servers change most in the seconds after a boot.
_FIRST_DELAY: Final = 1.0
_LAST_DELAY: Final = 60.0
_LONGEST_DELAY: Final = 600.0

log = logging.getLogger(__name__)


class DaemonStarts:
    def __init__(self) -> None:
        self._followers: dict[str, asyncio.Task[None]] = {}
        # The limits that were set last, by uuid.
        self._limits: dict[str, list[str]] = {}

    async def start(self, uuid: str) -> str:
        """The daemon of instance `uuid` is about to start: write its files in /etc, set its limits.

        Returns the PID and the start time of the container's init. InxError if no daemon may start.
        """
        running = Running.load(uuid)
        if running is None:
            raise InstanceError(f"the instance {uuid} does not run: its Nix daemon does not start")
        await self._write_etc(uuid, running)
        self._limits.pop(uuid, None)
        await self._set_limits(uuid, _config(running))
        self.follow(uuid, running)
        return f"{running.pid} {running.started}"

    def follow(self, uuid: str, running: Running) -> None:
        """Follow the name servers of the container as long as its daemon runs."""
        former = self._followers.pop(uuid, None)
        if former is not None:
            former.cancel()
        self._followers[uuid] = task = asyncio.create_task(self._follow(uuid, running))
        task.add_done_callback(lambda _: self._forget(uuid, task))

    async def configuration_changed(self, instance: Instance) -> None:
        """Give a daemon that runs the limits that `instance` has now."""
        if is_running(instance.uuid):
            try:
                await self._set_limits(instance.uuid, instance.config)
            except InxError as error:
                instance_log(instance.lxc_name).error("%s", error)

    async def close(self) -> None:
        tasks = list(self._followers.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, uuid: str, task: asyncio.Task[None]) -> None:
        if self._followers.get(uuid) is task:
            del self._followers[uuid]
            self._limits.pop(uuid, None)

    async def _write_etc(self, uuid: str, running: Running) -> None:
        settings = load_settings()
        ids = await asyncio.to_thread(build_ids.take, uuid, settings.first_build_id, _is_deleted)
        users = ids[: settings.builds_per_instance]
        gid = os.stat(paths.STORE).st_gid
        if gid == 0:
            raise UnsupportedError(
                f"{paths.STORE} has no group of build users: set 'build-users-group' in nix.conf, "
                "and restart nix-daemon.service"
            )
        host = await host_settings.read()
        texts = {
            "passwd": daemon_etc.passwd(users, gid),
            "group": daemon_etc.group(users, gid),
            "hosts": daemon_etc.HOSTS,
            "nsswitch.conf": daemon_etc.NSSWITCH,
            "nix/nix.conf": daemon_etc.nix_conf(host),
        }
        for name, text in texts.items():
            _write(uuid, name, text.encode())
        for name, source in (
            ("services", "/etc/services"),
            ("protocols", "/etc/protocols"),
            ("ssl/certs/ca-certificates.crt", host_settings.certificates(host)),
        ):
            with contextlib.suppress(OSError), open(source, "rb") as file:
                _write(uuid, name, file.read())
        with contextlib.suppress(InxError):
            await self._copy_name_servers(uuid, running)
        if not os.path.exists(f"{paths.daemon_etc_dir(uuid)}/resolv.conf"):
            _write(uuid, "resolv.conf", b"")

    async def _copy_name_servers(self, uuid: str, running: Running) -> None:
        """InxError if the container or its file system does not answer."""
        with Container(running.pid, running.facts.lxc_name) as container:
            if Running.load(uuid) is None:
                return  # the container ended; its PID may belong to another process
            found = await files.read_head(
                container, "etc/resolv.conf", _RESOLV_CONF_MAX, _LOOK_SECONDS
            )
        if found is not None:
            _write(uuid, "resolv.conf", daemon_etc.resolv_conf(found).encode())

    async def _follow(self, uuid: str, running: Running) -> None:
        delay = _FIRST_DELAY
        while True:
            await asyncio.sleep(delay)
            now = Running.load(uuid)
            if now is None or now.pid != running.pid or not is_running(uuid):
                return
            try:
                await self._copy_name_servers(uuid, now)
                delay = min(delay * 2, _LAST_DELAY)
            except InxError as error:
                instance_log(now.facts.lxc_name).debug("%s", error)
                delay = min(delay * 4, _LONGEST_DELAY)
            except OSError as error:
                log.error("cannot write the name servers of %s: %s", uuid, error)
                return

    async def _set_limits(self, uuid: str, config: Mapping[str, str]) -> None:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        limits = daemon_limits(
            config, load_settings(), pages * size, os.cpu_count() or 1
        ).assignments()
        if self._limits.get(uuid) == limits:
            return
        unit = paths.daemon_service_unit(uuid)
        done = await run(["systemctl", "set-property", "--runtime", unit, *limits])
        if done.status:
            raise UnsupportedError(f"'{done.command}' failed: {done.output}")
        self._limits[uuid] = limits


def _config(running: Running) -> Mapping[str, str]:
    """The configuration; if nothing is known of it, an empty one, and so the limits of the
    settings."""
    try:
        return last_known.find(running.facts).instance.config
    except InstanceError as error:
        instance_log(running.facts.lxc_name).error("%s", error)
        return {}


def _is_deleted(uuid: str) -> bool:
    return not os.path.exists(f"{paths.STATE}/{uuid}") and not is_running(uuid)


def _write(uuid: str, name: str, content: bytes) -> None:
    """Replace a file in /etc of the daemon in one step, unless it has this content."""
    path = f"{paths.daemon_etc_dir(uuid)}/{name}"
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read() == content:
            return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.new", "wb") as file:
        file.write(content)
    os.rename(f"{path}.new", path)
