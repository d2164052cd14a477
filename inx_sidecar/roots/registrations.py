"""What an instance has registered: what is new, and what is refused."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import quoted
from inx_sidecar.links import indirect_roots
from inx_sidecar.links.indirect_roots import Mark
from inx_sidecar.links.registration_changes import Changes, find_changes
from inx_sidecar.nix.daemon import NixDaemon
from inx_sidecar.roots.link_log import LinkLog
from inx_sidecar.roots.link_roots import batches
from inx_sidecar.roots.registration_limit import RegistrationLimit, overfull_at

_STORE: Final = f"{paths.STORE}/"


class Registrations:
    """`most` of them are kept; `daemon` is the Nix daemon that makes them, if it runs."""

    def __init__(
        self, lxc_name: str, uuid: str, most: int, log: LinkLog, daemon: NixDaemon | None
    ) -> None:
        self.most = most
        # The registrations that were looked at.
        self.known: dict[str, Mark] = {}
        # How many registrations were refused, as there were too many, since there was room last.
        self.refused = 0
        self.limit = RegistrationLimit(lxc_name, uuid, most, daemon)
        self._lxc_name = lxc_name
        self._uuid = uuid
        self._log = log

    @property
    def near_limit(self) -> bool:
        """More than three quarters of the allowed registrations exist: a comparison may find some
        that can be dropped."""
        return len(self.known) > self.most * 3 // 4

    @property
    def problem(self) -> str:
        """One sentence if registrations are refused; else empty."""
        if self.limit.problem:
            return self.limit.problem
        return self._too_many if self.refused else ""

    @property
    def _too_many(self) -> str:
        return (
            f"{self.most} GC roots are registered inside and newer ones are not kept: remove "
            f"links, or raise max_roots_per_instance in {paths.CONFIG}"
        )

    async def find_changes(self) -> Changes:
        """The changes since the last look. Far too many registrations are removed first."""
        most = overfull_at(self.most)
        changes = await find_changes(self._uuid, self._lxc_name, self.known, most)
        if changes.overfull:
            await self.limit.trim(self.known)
            changes = await find_changes(self._uuid, self._lxc_name, self.known, most)
        return changes

    async def admit(self, marks: Mapping[str, Mark]) -> list[str]:
        """The registrations among `marks` without the newest beyond the limit, which are refused:
        they are removed."""
        oldest_first = sorted(marks, key=lambda name: (name not in self.known, marks[name]))
        room = max(0, self.most - len(self.known.keys() - marks.keys()))
        beyond = oldest_first[room:]
        await self.remove(beyond)
        if beyond and not self.refused:
            self._log.journal.warning("root refused: %s", self._too_many)
        self.refused = self.refused + len(beyond) if beyond or self.near_limit else 0
        if self.refused > overfull_at(self.most) - self.most:
            await self.limit.trim(self.known)
            self.refused = 1
        return oldest_first[:room]

    def read(self, names: Iterable[str]) -> dict[str, str]:
        """The paths of the registrations `names`. Those that lie in the store are refused: they are
        removed."""
        texts = indirect_roots.read(self._uuid, names)
        stored = [name for name, text in texts.items() if f"{text}/".startswith(_STORE)]
        self._log.refused([f"{quoted(texts.pop(name))} is in the store" for name in stored])
        indirect_roots.forget(self._uuid, stored)
        return texts

    async def remove(self, names: Iterable[str]) -> None:
        for batch in batches(names):
            indirect_roots.forget(self._uuid, batch)
            await asyncio.sleep(0)
