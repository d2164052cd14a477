"""Keep the roots of one instance equal to the links that its Nix clients registered.

Each registered path that leads to a store path has a root `links/NAME.HASH` on the host, NAME
telling the path and HASH the store path; `.away` is added if it was not found on the container's
root file system, whose absence tells nothing. Roots are added at once, and dropped only by a
comparison, while the container runs.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.journal import about
from inx_sidecar.kernel.forked import TookTooLongError
from inx_sidecar.links import indirect_roots, resolver
from inx_sidecar.links.resolver import Looked, Process, Sight
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.store import valid_paths
from inx_sidecar.roots import direct_roots

LINKS: Final = "links/"
_AWAY: Final = ".away"
_BATCH: Final = 500
_LINES: Final = 20
_SHOWN: Final = 200
_PATIENCE_SECONDS: Final = (15.0, 600.0)
_REFUSED_SECONDS: Final = 10.0
# More paths that do not answer than this, and the rest waits for its next turn.
_MAX_HUNG: Final = 2
_UNSURE: Final = Sight(sure=False)


def root_name(name: str, path: str, home: bool) -> str:
    return f"{LINKS}{name}.{path[11:43]}" + ("" if home else _AWAY)


def parse_root_name(root: str) -> tuple[str, bool]:
    """The name of the registered path, and whether it was found at home."""
    return root.removeprefix(LINKS).partition(".")[0], not root.endswith(_AWAY)


def judge(
    sight: Sight, held: Mapping[str, bool], last_found: frozenset[str], *, tight: bool = False
) -> dict[str, bool]:
    """Which store paths, and whether at home, a registered path holds; `held` is what it held.

    A link that is missing on a file system that may only not be mounted, or in a mount namespace
    that is no more, still holds; but not in an instance that is `tight`, near its limit. It is gone
    if the very place that had it last is there without it.
    """
    if not sight.sure:
        return {**held, **sight.targets}
    if sight.targets or tight or sight.missing & last_found:
        return dict(sight.targets)
    return {path: home for path, home in held.items() if not home}


@dataclass(frozen=True)
class _Pause:
    """How long nobody is sent to what did not answer: ever longer, and not before the one who was
    sent last has ended."""

    seconds: float = 0.0
    until: float = 0.0
    ended: asyncio.Future[None] | None = None

    def lasts(self) -> bool:
        waiting = self.ended is not None and not self.ended.done()
        return waiting or time.monotonic() < self.until

    def again(self, ended: asyncio.Future[None]) -> "_Pause":
        first, most = _PATIENCE_SECONDS
        seconds = min(max(first, self.seconds * 2), most)
        return _Pause(seconds, time.monotonic() + seconds, ended)


class Mirror:
    """The links of one instance; without a `process` it does not run."""

    def __init__(
        self, lxc_name: str, uuid: str, rootfs: str, process: Process | None, most: int,
        gc: GcClient,
    ) -> None:  # fmt: skip
        self.lxc_name = lxc_name
        self._journal = about(lxc_name)
        self.uuid = uuid
        self.rootfs = rootfs
        self.process = process
        self.most = most
        self._slow = _Pause()
        # What does not work, in one sentence: tried again and again.
        self.trouble = ""
        self.over = 0
        self._gc = gc
        self._lock = asyncio.Lock()
        self._known: dict[str, indirect_roots.Mark] = {}
        self._away = _recall_away(uuid)
        self._saved_away = dict(self._away)
        self._lost: set[str] = set()
        self._held: set[str] = set()
        self._look_trouble = ""
        self._hung: dict[str, _Pause] = {}
        self._budget = _MAX_HUNG
        self._compared = False
        self._refused_at = -_REFUSED_SECONDS

    @property
    def slow(self) -> bool:
        """A file system in it did not answer of late: nobody waits for this instance."""
        return self._slow.lasts()

    @property
    def hanging(self) -> bool:
        """Something in it did not answer when it was last looked at."""
        return self.slow or bool(self._hung)

    @property
    def crowded(self) -> bool:
        """Time to look which links are gone."""
        return len(self._known) > self.most * 3 // 4

    def changed(self) -> set[str]:
        """Names that were registered since they were last looked at."""
        now = indirect_roots.names(self.uuid)
        return {name for name, mark in now.items() if self._known.get(name) != mark}

    async def take(self, names: Iterable[str]) -> None:
        """Make what was registered under `names` roots."""
        async with self._lock:
            self._budget = _MAX_HUNG
            for batch in batches(names):
                marks = indirect_roots.marks(self.uuid, batch)
                texts = await self._admit(marks)
                sights = await self._look(texts.values())
                found = {
                    root_name(name, path, home): path
                    for name, text in texts.items()
                    for path, home in sights[text].targets.items()
                }
                await self._add(found, texts)
                for name, text in texts.items():
                    self._known[name] = marks[name]
                    self._remember(name, sights[text])
            self._save_away()

    async def compare(self, may_drop: Callable[[], Awaitable[bool]] | None) -> None:
        """Look at every registered path; drop what leads nowhere if it runs and `may_drop`, asked
        after the look, allows."""
        async with self._lock:
            self._budget = _MAX_HUNG
            marks = indirect_roots.names(self.uuid)
            self._known = {name: self._known[name] for name in self._known if name in marks}
            texts = await self._admit(marks)
            present = direct_roots.read(direct_roots.directory(self.lxc_name, self.uuid), LINKS)
            self._held = set(present)
            held: dict[str, dict[str, bool]] = {}
            for root, path in present.items():
                name, home = parse_root_name(root)
                held.setdefault(name, {})[path] = home
            wanted, gone = await self._wanted(texts, held)
            await self._add(wanted, texts)
            if not self._compared:
                # The sidecar before this one may have died between a root and telling of it.
                await self._gc.add_temp_roots(wanted.values())
                self._compared = True
            self._known = {name: marks[name] for name in texts}
            drop = gone or present.keys() - wanted.keys()
            if drop and may_drop is not None and self.process is not None and await may_drop():
                wanted |= await self._release(gone, present)
                self._drop(present, wanted, texts)
            self._save_away()
        self._find_lost({root: path for root, path in present.items() if root in wanted}, texts)

    def status(self) -> str:
        """What the operator should know; empty if all is well."""
        if self.over:
            return (
                f"{self.most} GC roots are registered inside and newer ones are not kept: remove "
                f"links, or raise max_roots_per_instance in {paths.CONFIG}"
            )
        hung = [text for text, pause in self._hung.items() if pause.lasts()]
        if hung and not self.trouble:
            return f"the file system at {_shown(hung[0])} does not answer"
        return self.trouble

    async def _wanted(
        self, texts: Mapping[str, str], held: Mapping[str, Mapping[str, bool]]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The roots that are wanted, and the registered paths that lead nowhere."""
        tight = len(texts) * 2 > self.most
        wanted: dict[str, str] = {}
        gone: dict[str, str] = {}
        for batch in batches(texts):
            some = {name: texts[name] for name in batch}
            sights = await self._look(some.values())
            for name, text in some.items():
                sight = sights[text]
                before = held.get(name, {})
                last = self._away.get(name, frozenset())
                holds = judge(sight, before, last, tight=tight)
                if self.process is None:
                    holds = {**before, **holds}
                wanted |= {root_name(name, path, home): path for path, home in holds.items()}
                if not holds and sight.sure:
                    gone[name] = text
                self._remember(name, sight)
        return wanted, gone

    async def _look(self, texts: Iterable[str]) -> dict[str, Sight]:
        """What is at each path; nothing is sure of one whose file system did not answer of late."""
        sights = dict.fromkeys(texts, _UNSURE)
        left = [text for text in sights if text not in self._hung or not self._hung[text].lasts()]
        while left and self._budget:
            looked = await self._look_at(left)
            sights |= looked.sights
            if looked.late is not None:
                self._slow = self._slow.again(looked.late)
            if looked.hung is None:
                self._hung = {text: pause for text, pause in self._hung.items() if pause.lasts()}
                break
            self._hung[looked.hung] = self._slow
            self._budget -= 1
            self._journal.warning(
                "the file system at %s does not answer; what is linked there is kept as it is",
                _shown(looked.hung),
            )
            left = left[left.index(looked.hung) + 1 :]
        return sights

    async def _look_at(self, texts: list[str]) -> Looked:
        try:
            if self.process is None:
                return await resolver.look_below(self.lxc_name, self.rootfs, texts)
            looked = await resolver.look(self.lxc_name, self.process, texts)
        except TookTooLongError as error:
            self._slow = self._slow.again(error.ended)
            raise
        if looked.trouble and looked.trouble != self._look_trouble:
            self._journal.warning("%s", looked.trouble)
        self._look_trouble = looked.trouble
        return looked

    async def _admit(self, names: Mapping[str, indirect_roots.Mark]) -> dict[str, str]:
        """The paths of `names` without those that are refused, which are forgotten."""
        # The ones that were there first stay.
        order = sorted(names, key=lambda name: (name not in self._known, names[name][1]))
        room = max(0, self.most - len(self._known.keys() - set(order)))
        over = order[room:]
        texts = indirect_roots.read(self.uuid, order[:room])
        stored = [name for name, text in texts.items() if f"{text}/".startswith(f"{paths.STORE}/")]
        self._refuse([f"{_shown(texts.pop(name))} is in the store" for name in stored])
        for batch in batches([*over, *stored]):
            indirect_roots.forget(self.uuid, batch)
            await asyncio.sleep(0)
        if over and not self.over:
            self.over = len(over)
            self._journal.warning("root refused: %s", self.status())
        elif not self.crowded:
            self.over = 0
        return texts

    async def _add(self, wanted: Mapping[str, str], texts: Mapping[str, str]) -> None:
        valid = valid_paths(wanted.values())
        # A path may lead elsewhere in each mount namespace: their number is the container's choice.
        some = islice(
            ((root, path) for root, path in wanted.items() if path in valid), 2 * self.most
        )
        real = dict(some)
        new = await direct_roots.add(self._gc, self.lxc_name, self.uuid, real)
        self._log(
            f"root added: {_shown(texts[parse_root_name(root)[0]])} -> {path}"
            for root, path in new.items()
        )
        self._refuse(
            f"{_shown(texts[parse_root_name(root)[0]])} -> {path} is not in the store"
            for root, path in wanted.items()
            if path not in valid and root not in self._held
        )
        self._held |= real.keys()
        self._find_lost(new, texts)

    async def _release(self, gone: Mapping[str, str], present: Mapping[str, str]) -> dict[str, str]:
        """Forget registered paths that lead nowhere; the roots of those that do so after all.

        A link is there before Nix registers it, so one that was registered again before it was
        forgotten here is seen by this second look, and one after that is registered again.
        """
        if not gone:
            return {}
        back: dict[str, str] = {}
        left: dict[str, str] = {}
        indirect_roots.forget(self.uuid, gone)
        try:
            for batch in batches(gone):
                sights = await self._look(gone[name] for name in batch)
                for name in batch:
                    sight = sights[gone[name]]
                    back |= {root_name(name, p, home): p for p, home in sight.targets.items()}
                    if sight.sure and not sight.targets:
                        left[name] = gone[name]
        finally:
            # Also what nobody has looked at, should something have kept us from it.
            again = {name: text for name, text in gone.items() if name not in left}
            for text in again.values():
                indirect_roots.put(self.uuid, text)
        await self._add(back, again)
        back |= {root: path for root, path in present.items() if parse_root_name(root)[0] in again}
        for name in left:
            self._known.pop(name, None)
            self._away.pop(name, None)
        if left and self.process is not None:
            await resolver.forget_inside(self.lxc_name, self.process, list(left.values()))
        return back

    def _drop(
        self, present: Mapping[str, str], wanted: Mapping[str, str], texts: Mapping[str, str]
    ) -> None:
        unwanted = [root for root in present if root not in wanted]
        direct_roots.drop(self.lxc_name, self.uuid, unwanted)
        self._log(
            f"root dropped: {_shown(texts.get(parse_root_name(root)[0], '?'))} -> {present[root]}"
            for root in unwanted
        )

    def _find_lost(self, held: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Roots that stand and hold nothing: their store paths were collected all the same."""
        lost = set(held.values()) - valid_paths(held.values())
        self._log(
            (
                f"root lost: {_shown(texts.get(parse_root_name(root)[0], '?'))} -> {path} is no "
                "more in the store; build it again"
                for root, path in held.items()
                if path in lost and path not in self._lost
            ),
            logging.ERROR,
        )
        self._lost = (self._lost - set(held.values())) | lost

    def _remember(self, name: str, sight: Sight) -> None:
        """At which places a path was last found, if not at home."""
        if any(sight.targets.values()):
            self._away.pop(name, None)
        elif sight.targets:
            self._away[name] = sight.found

    def _save_away(self) -> None:
        """For a sidecar that comes after this one."""
        if self._away != self._saved_away:
            self._saved_away = dict(self._away)
            saved = {name: sorted(views) for name, views in self._away.items()}
            try:
                path = _away_file(self.uuid)
                with open(f"{path}.new", "w") as file:
                    json.dump(saved, file)
                os.rename(f"{path}.new", path)
            except OSError as error:
                self._journal.debug("%s", error)  # then only this sidecar knows

    def _refuse(self, lines: Iterable[str]) -> None:
        """Now and then: a container may have as many refused as it likes."""
        refused = [f"root refused: {line}" for line in lines]
        if refused and time.monotonic() - self._refused_at > _REFUSED_SECONDS:
            self._refused_at = time.monotonic()
            self._log(refused, logging.WARNING)

    def _log(self, lines: Iterable[str], level: int = logging.INFO) -> None:
        for count, line in enumerate(lines):
            if count == _LINES:
                self._journal.log(level, "and more; see 'inx-sidecar roots'")
                return
            self._journal.log(level, "%s", line)


def batches(names: Iterable[str]) -> Iterator[list[str]]:
    everything = list(names)
    for start in range(0, len(everything), _BATCH):
        yield everything[start : start + _BATCH]


def _shown(text: str) -> str:
    """A path that a container chose, fit for a line of a log."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _away_file(uuid: str) -> str:
    return f"{paths.STATE}/{uuid}/away.json"


def _recall_away(uuid: str) -> dict[str, frozenset[str]]:
    try:
        with open(_away_file(uuid)) as file:
            return {name: frozenset(views) for name, views in json.load(file).items()}
    except (OSError, ValueError):
        return {}
