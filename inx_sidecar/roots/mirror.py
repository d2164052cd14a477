"""Keep the roots of one instance equal to the links that its Nix clients registered.

Roots are added at once. Roots are dropped only by a comparison, while the container runs.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice

from inx_sidecar.base import paths
from inx_sidecar.base.errors import quoted
from inx_sidecar.links import indirect_roots, resolver
from inx_sidecar.links.backoff_resolver import BackoffResolver
from inx_sidecar.links.link_places import LinkPlaces
from inx_sidecar.links.resolver import InitProcess
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.link_log import LinkLog
from inx_sidecar.roots.link_roots import (
    LINKS,
    batches,
    parse_root_name,
    paths_to_hold,
    root_names,
)


class Mirror:
    """The links of one instance, of which `most` are kept; `process` is None if it does not run."""

    def __init__(
        self, lxc_name: str, uuid: str, rootfs: str, process: InitProcess | None, most: int,
        gc: GcClient,
    ) -> None:  # fmt: skip
        self.lxc_name = lxc_name
        self.uuid = uuid
        self.rootfs = rootfs
        self.process = process
        self.most = most
        self.resolver = BackoffResolver(lxc_name, rootfs, process)
        # The last error of a comparison, in one sentence; empty when a comparison succeeds.
        self.problem = ""
        # The number of registrations that were refused, as there were too many.
        self.refused = 0
        self._gc = gc
        self._log = LinkLog(lxc_name)
        self._lock = asyncio.Lock()
        self._known: dict[str, indirect_roots.Mark] = {}
        self._away = LinkPlaces(uuid)
        self._lost: set[str] = set()
        self._held: set[str] = set()
        self._compared = False

    @property
    def near_limit(self) -> bool:
        """More than three quarters of the allowed registrations exist: a comparison may find some
        that can be dropped."""
        return len(self._known) > self.most * 3 // 4

    def changed(self) -> set[str]:
        """The names of registrations that were made, or made again, since the last look."""
        now = indirect_roots.names(self.uuid)
        return {name for name, mark in now.items() if self._known.get(name) != mark}

    def status(self) -> str:
        """One sentence that the operator should know; empty if all is well."""
        if self.refused:
            return (
                f"{self.most} GC roots are registered inside and newer ones are not kept: remove "
                f"links, or raise max_roots_per_instance in {paths.CONFIG}"
            )
        silent = self.resolver.unanswered
        if silent is not None and not self.problem:
            return f"the file system at {quoted(silent)} does not answer"
        return self.problem

    async def add_registered(self, names: Iterable[str]) -> None:
        """Add the roots of the registrations `names`."""
        async with self._lock:
            self.resolver.begin_turn()
            for batch in batches(names):
                marks = indirect_roots.marks(self.uuid, batch)
                texts = await self._admit(marks)
                links = await self.resolver.resolve(texts.values())
                roots: dict[str, str] = {}
                for name, text in texts.items():
                    roots |= root_names(name, links[text].targets)
                await self._add(roots, texts)
                for name, text in texts.items():
                    self._known[name] = marks[name]
                    self._away.remember(name, links[text])
            self._save_away()

    async def compare(self, may_drop: Callable[[], Awaitable[bool]] | None) -> None:
        """Look at every registered path. Drop the roots of those that lead nowhere if the container
        runs and `may_drop`, which is asked after the look, allows it."""
        async with self._lock:
            self.resolver.begin_turn()
            marks = indirect_roots.names(self.uuid)
            self._known = {name: self._known[name] for name in self._known if name in marks}
            texts = await self._admit(marks)
            present = direct_roots.read(direct_roots.directory(self.lxc_name, self.uuid), LINKS)
            self._held = set(present)
            held: dict[str, dict[str, bool]] = {}
            for root, path in present.items():
                name, home = parse_root_name(root)
                held.setdefault(name, {})[path] = home
            wanted, gone = await self._wanted_and_gone(texts, held)
            await self._add(wanted, texts)
            if not self._compared:
                # A sidecar before this one may have died after it made a root, and before it told
                # a collection of it.
                await self._gc.add_temp_roots(wanted.values())
                self._compared = True
            self._known = {name: marks[name] for name in texts}
            drop = gone or present.keys() - wanted.keys()
            if drop and may_drop is not None and self.process is not None and await may_drop():
                wanted |= await self._forget(gone, present)
                self._drop(present, wanted, texts)
            self._save_away()
        self._find_lost({root: path for root, path in present.items() if root in wanted}, texts)

    async def _wanted_and_gone(
        self, texts: Mapping[str, str], held: Mapping[str, Mapping[str, bool]]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The roots that are wanted, and the registered paths that lead nowhere."""
        half_full = len(texts) * 2 > self.most
        wanted: dict[str, str] = {}
        gone: dict[str, str] = {}
        for batch in batches(texts):
            links = await self.resolver.resolve(texts[name] for name in batch)
            for name in batch:
                link = links[texts[name]]
                before = held.get(name, {})
                last_found = self._away.last_found(name)
                holds = paths_to_hold(link, before, last_found, half_full=half_full)
                if self.process is None:
                    holds = {**before, **holds}
                wanted |= root_names(name, holds)
                if not holds and link.sure:
                    gone[name] = texts[name]
                self._away.remember(name, link)
        return wanted, gone

    async def _admit(self, marks: Mapping[str, indirect_roots.Mark]) -> dict[str, str]:
        """The paths of the registrations `marks`, without those that are refused: the newest beyond
        the limit, and paths in the store. Refused registrations are removed."""
        oldest_first = sorted(marks, key=lambda name: (name not in self._known, marks[name][1]))
        room = max(0, self.most - len(self._known.keys() - set(oldest_first)))
        beyond = oldest_first[room:]
        texts = indirect_roots.read(self.uuid, oldest_first[:room])
        stored = [name for name, text in texts.items() if f"{text}/".startswith(f"{paths.STORE}/")]
        self._log.refused([f"{quoted(texts.pop(name))} is in the store" for name in stored])
        for batch in batches([*beyond, *stored]):
            indirect_roots.forget(self.uuid, batch)
            await asyncio.sleep(0)
        if beyond and not self.refused:
            self.refused = len(beyond)
            self._log.journal.warning("root refused: %s", self.status())
        elif not self.near_limit:
            self.refused = 0
        return texts

    async def _add(self, wanted: Mapping[str, str], texts: Mapping[str, str]) -> None:
        valid = valid_paths(wanted.values())
        # A path may lead elsewhere in each mount namespace, and a container can make any number.
        limited = islice((item for item in wanted.items() if item[1] in valid), 2 * self.most)
        roots = dict(limited)
        new = await direct_roots.add(self._gc, self.lxc_name, self.uuid, roots)
        self._log.lines(
            f"root added: {_text_of(root, texts)} -> {path}" for root, path in new.items()
        )
        self._log.refused(
            f"{_text_of(root, texts)} -> {path} is not in the store"
            for root, path in wanted.items()
            if path not in valid and root not in self._held
        )
        self._held |= roots.keys()
        self._find_lost(new, texts)

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
        indirect_roots.forget(self.uuid, gone)
        try:
            for batch in batches(gone):
                links = await self.resolver.resolve(gone[name] for name in batch)
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
            self._known.pop(name, None)
            self._away.forget(name)
        if surely_gone and self.process is not None:
            await resolver.remove_registrations_inside(
                self.lxc_name, self.process, list(surely_gone.values())
            )
        return back

    def _drop(
        self, present: Mapping[str, str], wanted: Mapping[str, str], texts: Mapping[str, str]
    ) -> None:
        unwanted = [root for root in present if root not in wanted]
        direct_roots.drop(self.lxc_name, self.uuid, unwanted)
        self._log.lines(
            f"root dropped: {_text_of(root, texts)} -> {present[root]}" for root in unwanted
        )

    def _find_lost(self, held: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Log the roots whose store paths were collected nevertheless, once each."""
        lost = set(held.values()) - valid_paths(held.values())
        self._log.lines(
            (
                f"root lost: {_text_of(root, texts)} -> {path} is no more in the store; build it "
                "again"
                for root, path in held.items()
                if path in lost and path not in self._lost
            ),
            logging.ERROR,
        )
        self._lost = (self._lost - set(held.values())) | lost

    def _save_away(self) -> None:
        try:
            self._away.save()
        except OSError as error:
            self._log.journal.debug("%s", error)


def _text_of(root: str, texts: Mapping[str, str]) -> str:
    """The registered path that a root is for, fit for a log; "'?'" if it is not known any more."""
    return quoted(texts.get(parse_root_name(root)[0], "?"))
