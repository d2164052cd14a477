"""A RegistrationWatch, and the registrations that it adds to its mirrors."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.links import indirect_roots
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots.mirror import Mirror
from inx_sidecar.roots.registration_watch import RegistrationWatch

WEB: Final = "11111111-2222-3333-4444-555555555555"
SHOP: Final = "21111111-2222-3333-4444-555555555555"
NEVER: Final = 3600.0


def mirror(uuid: str = WEB, most: int = 100_000) -> Mirror:
    """The mirror of an instance that does not run. Its root file system is empty."""
    rootfs = str(Path(paths.STATE).parent / "rootfs")
    return Mirror("web", uuid, rootfs, None, most, GcClient())


def names(*texts: str) -> set[str]:
    return {indirect_roots.name_of(text) for text in texts}


class Added:
    """The registrations that were added. While `go` is not set, an addition waits."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}
        self.turns: list[str] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, mirror: Mirror, some: set[str], list_all: bool) -> None:
        await self.go.wait()
        some = some | await mirror.changed() if list_all else some
        await mirror.add_registered(some)
        self.names.setdefault(mirror.uuid, set()).update(some)
        self.turns.append(mirror.uuid)

    def of(self, uuid: str = WEB) -> set[str]:
        return self.names.get(uuid, set())

    def has(self, text: str, uuid: str = WEB) -> Callable[[], bool]:
        return lambda: names(text) <= self.of(uuid)


@asynccontextmanager
async def watching(*mirrors: Mirror) -> AsyncIterator[tuple[RegistrationWatch, Added]]:
    added = Added()
    watched = RegistrationWatch(added)
    watched.open()
    try:
        for one in mirrors:
            watched.begin(one)
        yield watched, added
    finally:
        added.go.set()
        await watched.close()
