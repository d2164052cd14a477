"""What the sidecar holds in memory for one instance; a new sidecar reads it from the disk."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from inx_sidecar.base.errors import InxError
from inx_sidecar.container.namespaces import Container
from inx_sidecar.instances.deployment import Deployment
from inx_sidecar.nix.daemon import NixDaemon

log = logging.getLogger(__name__)


@dataclass
class InstanceState:
    """`lock` is held while one of the other fields is changed."""

    daemon: NixDaemon
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    deployment: Deployment | None = None
    # Set while the mounts of a container with this PID are attached.
    mounted: asyncio.Event = field(default_factory=asyncio.Event)
    pid: int = 0
    # Whether the store shows owners as the container numbers them.
    mapped: bool = True
    # Open only while an init waits for its build: open namespaces keep file systems busy.
    container: Container | None = None
    # Static addresses with their networks, and the name of the instance that has them: no other
    # instance may claim one.
    claims: dict[str, str] = field(default_factory=dict)
    # What the operator had configured when the last start or update was tried; None if no sidecar
    # that still runs has seen it.
    configured: object = None
    # The task that builds, and activates too if the instance runs its system.
    build: asyncio.Task[None] | None = None
    # True while that task activates: then it is not cancelled for a newer spec.
    activating: bool = False

    def close_container(self) -> None:
        if self.container is not None:
            self.container.close()
            self.container = None

    def container_ended(self) -> None:
        self.close_container()
        self.pid = 0
        self.claims = {}
        self.mounted.clear()

    async def await_daemon_units(self, seconds: float | None = None) -> None:
        """Wait until the units of the daemon are changed, but at most `seconds`; a failure is only
        logged."""
        try:
            await self.daemon.wait_until_done(seconds)
        except InxError as error:
            log.error("%s", error)

    async def cancel_build(self) -> None:
        if self.build is not None:
            self.build.cancel()
            await asyncio.gather(self.build, return_exceptions=True)
            self.build = None


def static_addresses(states: Mapping[str, InstanceState]) -> dict[str, tuple[str, ...]]:
    """Those of the instances that run, by uuid, each with its network."""
    return {
        uuid: tuple(state.claims)
        for uuid, state in states.items()
        if state.claims and state.mounted.is_set()
    }
