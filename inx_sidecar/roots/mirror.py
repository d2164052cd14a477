"""Keep the roots of one instance equal to the links that its Nix clients registered.

Roots are added at once. Roots are dropped only by a comparison, while the container runs. A
container may register and link as much as it may: all work is done in batches, between which other
tasks get turns.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice
from typing import Final

from inx_sidecar.base.errors import quoted
from inx_sidecar.links import indirect_roots, resolver
from inx_sidecar.links.backoff_resolver import BackoffResolver
from inx_sidecar.links.cached_link import find_cached
from inx_sidecar.links.link_places import LinkPlaces
from inx_sidecar.links.resolver import InitProcess, ResolvedLink
from inx_sidecar.nix.daemon import NixDaemon
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.last_comparison import LastComparison
from inx_sidecar.roots.link_log import LinkLog, describe_root
from inx_sidecar.roots.link_roots import (
    LINKS,
    batches,
    parse_root_name,
    paths_by_name,
    paths_to_hold,
    root_names,
    roots_at_home,
)
from inx_sidecar.roots.look_times import LookTimes
from inx_sidecar.roots.lost_roots import LostRoots
from inx_sidecar.roots.missing_record import MISSING_MAX
from inx_sidecar.roots.registrations import Registrations

_NOWHERE: Final[frozenset[str]] = frozenset()


class Mirror:
    """The links of one instance, of which `most` are kept; `process` is None if it does not run,
    `daemon` is its Nix daemon if it runs."""

    def __init__(
        self, lxc_name: str, uuid: str, rootfs: str, process: InitProcess | None, most: int,
        gc: GcClient, daemon: NixDaemon | None = None,
    ) -> None:  # fmt: skip
        self.lxc_name = lxc_name
        self.uuid = uuid
        self.rootfs = rootfs
        self.process = process
        self.most = most
        self.resolver = BackoffResolver(lxc_name, rootfs, process)
        self.times = LookTimes()
        # What the root file system brought along is registered, and has its roots.
        self.imported = False
        # The last error of a comparison, in one sentence; empty when a comparison succeeds.
        self.problem = ""
        self._gc = gc
        self._log = LinkLog(lxc_name)
        self.registrations = Registrations(lxc_name, uuid, most, self._log, daemon)
        # Held for one batch, and for one comparison.
        self._lock = asyncio.Lock()
        self._comparing = asyncio.Lock()
        self._away = LinkPlaces(uuid)
        self._lost = LostRoots(uuid, self._log)
        self._last = LastComparison(lxc_name, uuid)
        self._compared = False
        # The roots that the last comparison could not make: their store paths are not valid.
        self.absent: Mapping[str, str] = {}
        # What was registered since the last comparison began.
        self._added: set[str] = set()

    async def changed(self) -> set[str]:
        """The names of registrations that were made, or made again, since the last look."""
        async with self._lock:
            return set((await self.registrations.find_changes()).made)

    @property
    def unresponsive(self) -> bool:
        """Nothing waits for this instance: a file system in it does not answer, or its links take
        unusually long to look at, as a container with very many mount namespaces can make it."""
        return self.resolver.unresponsive or self.times.slow

    def may_gain_room(self) -> bool:
        """Whether a comparison now may drop roots of an instance that is near its limit.

        Not soon after the last one: the container decides how long one takes, and how often it
        registers.
        """
        return self.registrations.near_limit and self.times.rested

    def status(self) -> str:
        """One sentence that the operator should know; empty if all is well."""
        if self.registrations.problem:
            return self.registrations.problem
        silent = self.resolver.unanswered
        if silent is not None and not self.problem:
            return f"the file system at {quoted(silent)} does not answer"
        return self.problem

    async def add_registered(self, names: Iterable[str]) -> None:
        """Add the roots of the registrations `names`."""
        async with self._lock:
            self.resolver.begin_turn()
            begin, count = time.monotonic(), 0
            for batch in batches(names):
                marks = indirect_roots.marks(self.uuid, batch)
                texts = self.registrations.read(await self.registrations.admit(marks))
                # Most have their roots before a child has begun to look at all of them.
                added = roots_at_home(find_cached(self.rootfs, texts))
                await self._add(added, texts)
                links = await self.resolver.resolve(texts.values())
                roots: dict[str, str] = {}
                for name, text in texts.items():
                    roots |= root_names(name, links[text].targets)
                await self._add(dict(roots.items() - added.items()), texts)
                for name, text in texts.items():
                    self.registrations.known[name] = marks[name]
                    self._away.remember(name, links[text])
                self._added.update(texts)
                count += len(batch)
                self.times.looked(begin, count)
            self._away.save()

    async def compare(self, may_drop: Callable[[], Awaitable[bool]] | None) -> None:
        """Look at every registered path, if something may have changed since the last time. Drop
        the roots of those that lead nowhere if the container runs and `may_drop`, which is asked
        after the look, allows it.

        What is registered meanwhile is added between two batches.
        """
        async with self._comparing:
            begin = time.monotonic()
            place = direct_roots.directory(self.lxc_name, self.uuid)
            if self.process is not None and self._last.holds(self.process):
                await self._lost.find_all(place)
                self.times.compared(begin, len(self.registrations.known))
                return
            async with self._lock:
                self.resolver.begin_turn()
                self._last.begin()
                self._added.clear()
                marks = await self._list_admitted()
            present = await direct_roots.read_in_turns(place, LINKS)
            wanted, gone = await self._add_wanted(marks, present, begin)
            self._compared = True
            drop = gone or present.keys() - wanted.keys()
            if drop and may_drop is not None and self.process is not None and await may_drop():
                async with self._lock:
                    wanted |= await self._forget(gone, present)
                    wanted |= await self._look_again(present, wanted)
                    await self._drop(present, wanted, gone)
            elif not (drop or self.absent or self._added or self.resolver.incomplete):
                self._last.settle()
            self._away.save()
            self.times.compared(begin, len(marks))
            await self._lost.find({root: path for root, path in present.items() if root in wanted})

    async def _list_admitted(self) -> dict[str, indirect_roots.Mark]:
        """The registrations that exist, without those that are refused."""
        registrations = self.registrations
        changes = await registrations.find_changes()
        for name in changes.gone:
            registrations.known.pop(name, None)
        marks = registrations.known | changes.made
        return {name: marks[name] for name in await registrations.admit(marks)}

    async def _add_wanted(
        self, marks: Mapping[str, indirect_roots.Mark], present: Mapping[str, str], begin: float
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Add the roots of the registrations `marks`, which have the roots `present`. Returns the
        roots that are wanted, and the registered paths that lead nowhere. `begin` is when this
        comparison began."""
        held = paths_by_name(present)
        half_full = len(marks) * 2 > self.most
        wanted: dict[str, str] = {}
        gone: dict[str, str] = {}
        absent: dict[str, str] = {}
        looked = 0
        for batch in batches(marks):
            async with self._lock:
                texts = self.registrations.read(batch)
                places = {text: self._away.last_found(name) for name, text in texts.items()}
                links = await self.resolver.resolve(texts.values(), places)
                sure = all(link.sure for link in links.values())
                self._last.looked(self.resolver.state if sure else None)
                roots: dict[str, str] = {}
                for name, text in texts.items():
                    link, before = links[text], held.get(name, {})
                    holds = paths_to_hold(link, before, places[text], half_full=half_full)
                    if self.process is None:
                        holds = {**before, **holds}
                    roots |= root_names(name, holds)
                    if not holds and link.sure:
                        gone[name] = text
                    self._away.remember(name, link)
                absent |= await self._add(roots, texts, room=2 * self.most - len(wanted))
                if not self._compared:
                    # A sidecar before this one may have died after it made a root, and before it
                    # told a collection of it.
                    await self._gc.add_temp_roots(roots.values())
                self.registrations.known |= {name: marks[name] for name in texts}
            looked += len(batch)
            self.times.looked(begin, looked)
            # More than can be kept are not remembered, so that no number of them fills the memory.
            wanted |= {
                root: path
                for root, path in roots.items()
                if root in present or len(wanted) < 2 * self.most
            }
        self.absent = absent
        return wanted, gone

    async def _add(
        self, wanted: Mapping[str, str], texts: Mapping[str, str], room: int | None = None
    ) -> dict[str, str]:
        """Add the roots `wanted`, at most `room` of them. Returns some of those that are not in
        the store."""
        valid = valid_paths(wanted.values())
        # A path may lead elsewhere in each mount namespace, and a container can make any number.
        limit = 2 * self.most if room is None else max(0, room)
        roots = dict(islice((item for item in wanted.items() if item[1] in valid), limit))
        new = await direct_roots.add(self._gc, self.lxc_name, self.uuid, roots)
        self._log.lines(
            f"root added: {describe_root(root, texts)} -> {path}" for root, path in new.items()
        )
        self._log.refused(
            f"{describe_root(root, texts)} -> {path} is not in the store"
            for root, path in wanted.items()
            if path not in valid and direct_roots.path_of(self.lxc_name, self.uuid, root) is None
        )
        await self._lost.find(new)
        absent = (item for item in wanted.items() if item[1] not in valid)
        return dict(islice(absent, MISSING_MAX))

    async def _forget(self, gone: Mapping[str, str], present: Mapping[str, str]) -> dict[str, str]:
        """Remove the registrations of the paths in `gone`. Then look a second time, and restore the
        registrations of paths that have a link now; returns the roots of these.

        A client makes a link before it registers the link. So no registration is lost: the second
        look finds a link that was registered again before the removal here, and a link that is
        registered after the removal has a registration again.
        """
        if not gone:
            return {}
        back: dict[str, str] = {}
        surely_gone: dict[str, str] = {}
        await self.registrations.remove(gone)
        try:
            for batch in batches(gone):
                links = await self.resolver.resolve([gone[name] for name in batch])
                for name in batch:
                    link = links[gone[name]]
                    back |= root_names(name, link.targets)
                    if link.sure and not link.targets:
                        surely_gone[name] = gone[name]
        finally:
            # Also those that were not looked at, if an error ended the second look.
            again = {name: text for name, text in gone.items() if name not in surely_gone}
            for text in again.values():
                indirect_roots.put(self.uuid, text)
        await self._add(back, again)
        back |= {root: path for root, path in present.items() if parse_root_name(root)[0] in again}
        for name in surely_gone:
            self.registrations.known.pop(name, None)
            self._away.forget(name)
        if surely_gone and self.process is not None:
            await resolver.remove_registrations_inside(
                self.lxc_name, self.process, list(surely_gone.values())
            )
        return back

    async def _look_again(
        self, present: Mapping[str, str], wanted: Mapping[str, str]
    ) -> dict[str, str]:
        """The roots of registrations that were made again since this comparison looked at them. A
        path that leads nowhere now keeps what it holds until the next comparison."""
        unwanted = {root: path for root, path in present.items() if root not in wanted}
        held = paths_by_name(unwanted)
        again: dict[str, str] = {}
        for batch in batches(held.keys() & self._added):
            texts = self.registrations.read(batch)
            links = await self.resolver.resolve(texts.values())
            for name in batch:
                link = links[texts[name]] if name in texts else ResolvedLink(sure=False)
                again |= root_names(name, paths_to_hold(link, held[name], _NOWHERE) or held[name])
        return again

    async def _drop(
        self, present: Mapping[str, str], wanted: Mapping[str, str], texts: Mapping[str, str]
    ) -> None:
        unwanted = [root for root in present if root not in wanted]
        await direct_roots.drop_in_turns(self.lxc_name, self.uuid, unwanted)
        self._log.lines(
            f"root dropped: {describe_root(root, texts)} -> {present[root]}" for root in unwanted
        )
