"""What the sidecar holds for one instance; all of it can be had again from the disk."""

import asyncio
import logging
from dataclasses import dataclass, field

from inx_sidecar.base.errors import InxError
from inx_sidecar.container.mounts import Container
from inx_sidecar.instances.deployment import Start
from inx_sidecar.nix.daemon import NixDaemon

log = logging.getLogger(__name__)


@dataclass
class InstanceState:
    """`lock` is held by whoever changes one of the others."""

    daemon: NixDaemon
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    start: Start | None = None
    # Set while a container with this PID is attached; its namespaces are held only for a build.
    attached: asyncio.Event = field(default_factory=asyncio.Event)
    pid: int = 0
    mapped: bool = True
    container: Container | None = None
    # Addresses that nobody else may have meanwhile, each with its network; and its name.
    claims: dict[str, str] = field(default_factory=dict)
    # Builds, and activates if the system of the instance runs.
    build: asyncio.Task[None] | None = None
    # From then on the task is not ended for a newer spec.
    activating: bool = False

    def close(self) -> None:
        """Let go of the container's namespaces: held, they would keep its file systems busy."""
        if self.container is not None:
            self.container.close()
            self.container = None

    def release(self) -> None:
        """The container has ended."""
        self.close()
        self.pid = 0
        self.claims = {}
        self.attached.clear()

    async def quieten(self) -> None:
        """Wait for what systemctl still does; how it ends matters to nobody any more."""
        try:
            await self.daemon.settle()
        except InxError as error:
            log.error("%s", error)

    async def end_build(self) -> None:
        if self.build is not None:
            self.build.cancel()
            await asyncio.gather(self.build, return_exceptions=True)
            self.build = None
