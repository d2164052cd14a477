"""Add and read the direct roots of an instance."""

import asyncio
from collections.abc import Mapping
from contextlib import closing

from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots

UUID = "11111111-2222-3333-4444-555555555555"


def store(name: str) -> str:
    return f"/nix/store/{'0' * 32}-{name}"


ONE, TWO = store("one"), store("two")


def present(name: str = "web") -> dict[str, str]:
    return direct_roots.read(direct_roots.directory(name, UUID))


async def added(wanted: Mapping[str, str], name: str = "web", uuid: str = UUID) -> dict[str, str]:
    """Add roots with a GcClient of its own. Return the new roots."""
    with closing(GcClient()) as client:
        return await direct_roots.add(client, name, uuid, wanted)


def add(wanted: Mapping[str, str], name: str = "web") -> dict[str, str]:
    return asyncio.run(added(wanted, name))
