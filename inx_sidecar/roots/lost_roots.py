"""Tell of roots whose store paths were collected nevertheless, once each."""

import asyncio
import logging
from collections.abc import Mapping

from inx_sidecar.links import indirect_roots
from inx_sidecar.nix.store_paths import database_version, valid_paths
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.link_log import LinkLog, describe_root
from inx_sidecar.roots.link_roots import LINKS, batches, parse_root_name


class LostRoots:
    def __init__(self, uuid: str, log: LinkLog) -> None:
        self._uuid = uuid
        self._log = log
        self._lost: set[str] = set()
        self._database: tuple[int, ...] = ()

    async def find_all(self, root_directory: str) -> None:
        """As `find`, for all roots of links in the directory, if Nix's database has changed since
        the last call."""
        database = database_version()
        if database != self._database:
            await self.find(await direct_roots.read_in_turns(root_directory, LINKS))
            self._database = database

    async def find(self, held: Mapping[str, str]) -> None:
        """Log which of the roots `held` (name to store path) are lost, and were not before."""
        lost: set[str] = set()
        for batch in batches(set(held.values())):
            lost |= set(batch) - valid_paths(batch)
            await asyncio.sleep(0)
        roots = [root for root, path in held.items() if path in lost and path not in self._lost]
        texts = indirect_roots.read(self._uuid, {parse_root_name(root)[0] for root in roots})
        self._log.lines(
            (
                f"root lost: {describe_root(root, texts)} -> {held[root]} is no more in the store; "
                "build it again"
                for root in roots
            ),
            logging.ERROR,
        )
        self._lost = (self._lost - set(held.values())) | lost
