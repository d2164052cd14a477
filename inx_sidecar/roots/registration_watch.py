"""Watch by inotify what the instances that run register: one directory for each instance.

An event only says where to look. What no event tells is found by listing the names: the queue of
events overflowed, the host's limit of watches is reached, or an instance floods its directory.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from inotify_simple import INotify, flags

from inx_sidecar.base import paths
from inx_sidecar.kernel.user_counts import counted_apart
from inx_sidecar.links import indirect_roots
from inx_sidecar.roots.mirror import Mirror

# Nix renames a complete link into place.
_REGISTERED: Final = flags.MOVED_TO | flags.ONLYDIR
_ENTRIES: Final = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.ONLYDIR
_POLL_SECONDS: Final = 2.0
# How often `drain` looks whether it still has to wait for an instance.
_PATIENCE_SECONDS: Final = 0.5
# An instance that registers more than this while earlier ones are added is listed instead.
_MAX_WAITING: Final = 4000

log = logging.getLogger(__name__)


class RegistrationWatch:
    """Calls `add(mirror, names, list)` for what is registered; for one mirror, one call at a time.

    With `list`, all that has changed has to be added, and not only `names`.
    """

    def __init__(self, add: Callable[[Mirror, set[str], bool], Awaitable[None]]) -> None:
        self._add = add
        self._mirrors: dict[str, Mirror] = {}
        # Watch descriptors: of the directories of instances, by uuid, and of other directories.
        self._wds: dict[int, str] = {}
        self._directories: dict[int, Callable[[], None]] = {}
        # By uuid: names that were registered, instances to list, the task that adds the names, and
        # calls of `drain`.
        self._registered: dict[str, set[str]] = {}
        self._to_list: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._polling: asyncio.Task[None] | None = None
        self._limit_logged = False
        self._inotify: INotify | None = None

    def open(self) -> None:
        """Before any other call. Without inotify, names are listed every two seconds."""
        try:
            with counted_apart():
                self._inotify = INotify(nonblocking=True)
        except OSError as error:
            _log_limit(error)
        else:
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._read_events)

    @property
    def mirrors(self) -> list[Mirror]:
        return list(self._mirrors.values())

    def get(self, uuid: str) -> Mirror | None:
        return self._mirrors.get(uuid)

    def watch_directory(self, path: str, changed: Callable[[], None]) -> None:
        """Call `changed` whenever an entry of the directory comes or goes, if inotify allows it."""
        try:
            if self._inotify is not None:
                self._directories[self._inotify.add_watch(path, _ENTRIES)] = changed
        except OSError as error:
            log.warning("cannot watch %s: %s", path, error.strerror)

    def begin(self, mirror: Mirror) -> None:
        """Watch from now on; add what is registered already, as well."""
        self.end(mirror.uuid)
        self._mirrors[mirror.uuid] = mirror
        mirror.registrations.limit.begin()
        if not self._watch(mirror):
            self._poll()
        self._list_names(mirror)

    def end(self, uuid: str) -> None:
        mirror = self._mirrors.pop(uuid, None)
        if mirror is not None:
            self._unwatch(mirror)
            mirror.registrations.limit.end()
            self._registered.pop(uuid, None)
            self._to_list.discard(uuid)

    async def drain(self) -> None:
        """Return when each registration that exists now was added, or could not be.

        Instances that are unresponsive, or become so, are not waited for.
        """
        self._read_events()
        for mirror in self.mirrors:
            if mirror.uuid not in self._wds.values():
                self._list_names(mirror)
        ends: dict[asyncio.Future[None], str] = {}
        for uuid in self._tasks:
            end = asyncio.get_running_loop().create_future()
            ends[end] = uuid
            self._waiters.setdefault(uuid, []).append(end)
        await self.wait_for(ends.items())

    async def wait_for(self, ends: Iterable[tuple[asyncio.Future[None], str]]) -> None:
        """Wait for each end, which belongs to the instance with this uuid; not for those of
        instances that are unresponsive, or become so."""
        left = dict(ends)
        while awaited := [end for end, uuid in left.items() if self._is_awaited(end, uuid)]:
            await asyncio.wait(awaited, timeout=_PATIENCE_SECONDS)

    def _is_awaited(self, end: asyncio.Future[None], uuid: str) -> bool:
        mirror = self._mirrors.get(uuid)
        return not end.done() and not (mirror is not None and mirror.unresponsive)

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for mirror in self.mirrors:
            mirror.registrations.limit.end()
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()

    def _read_events(self) -> None:
        if self._inotify is None:
            return
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                for mirror in self.mirrors:
                    self._list_names(mirror)
                for changed in self._directories.values():
                    changed()
            elif event.wd in self._directories:
                self._directories[event.wd]()
            elif event.mask & flags.IGNORED:
                self._wds.pop(event.wd, None)
                self._poll()
            elif indirect_roots.NAME.fullmatch(event.name) and event.wd in self._wds:
                self._add_soon(self._wds[event.wd], event.name)

    def _watch(self, mirror: Mirror) -> bool:
        """False if this directory cannot be watched now."""
        if self._inotify is None:
            return False
        try:
            wd = self._inotify.add_watch(paths.auto_dir(mirror.uuid), _REGISTERED)
        except OSError as error:
            if not self._limit_logged:
                self._limit_logged = True
                _log_limit(error)
            return False
        self._wds[wd] = mirror.uuid
        return True

    def _unwatch(self, mirror: Mirror) -> None:
        for wd, uuid in list(self._wds.items()):
            if uuid == mirror.uuid and self._inotify is not None:
                del self._wds[wd]
                try:
                    self._inotify.rm_watch(wd)
                except OSError:
                    pass  # the directory is gone, and the watch with it

    def _list_names(self, mirror: Mirror) -> None:
        """Add what is registered, whether an event told it or not."""
        self._to_list.add(mirror.uuid)
        self._begin_task(mirror.uuid)

    def _add_soon(self, uuid: str, name: str) -> None:
        waiting = self._registered.setdefault(uuid, set())
        waiting.add(name)
        if len(waiting) > _MAX_WAITING:
            mirror = self._mirrors[uuid]
            self._unwatch(mirror)
            self._poll()
            del self._registered[uuid]
            self._to_list.add(uuid)
        self._begin_task(uuid)

    def _begin_task(self, uuid: str) -> None:
        if uuid not in self._tasks:
            self._tasks[uuid] = asyncio.create_task(self._add_registered(uuid))

    async def _add_registered(self, uuid: str) -> None:
        waiters: list[asyncio.Future[None]] = []
        try:
            while mirror := self._mirrors.get(uuid):
                names = self._registered.pop(uuid, set())
                to_list = uuid in self._to_list
                self._to_list.discard(uuid)
                if not names and not to_list:
                    break
                waiters = self._waiters.pop(uuid, [])
                await self._add(mirror, names, to_list)
                _release(waiters)
                if mirror.registrations.refused and uuid in self._wds.values():
                    # Events would only tell of registrations that are refused.
                    self._unwatch(mirror)
                    self._poll()
        finally:
            del self._tasks[uuid]
            _release([*waiters, *self._waiters.pop(uuid, [])])

    def _poll(self) -> None:
        if self._polling is None:
            self._polling = asyncio.create_task(self._keep_polling())

    async def _keep_polling(self) -> None:
        """List the names of the instances that are not watched, until all are."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            unwatched = [m for m in self.mirrors if m.uuid not in self._wds.values()]
            for mirror in unwatched:
                if not mirror.registrations.refused and os.path.isdir(paths.auto_dir(mirror.uuid)):
                    self._watch(mirror)
                self._list_names(mirror)
            if not unwatched:
                self._limit_logged = False
                self._polling = None
                return


def _release(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _log_limit(error: OSError) -> None:
    log.warning(
        "registrations are looked for every %.0f s, since the host's limit of inotify is reached "
        "(%s): raise fs.inotify.max_user_watches or max_user_instances",
        _POLL_SECONDS, error.strerror,
    )  # fmt: skip
