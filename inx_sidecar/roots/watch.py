"""Hear of registrations: inotify on the directory of each running instance.

An event only says where to look. What no event tells (the queue ran over, the host's limit of
watches is reached, or an instance floods its directory) is found by looking at the names.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Final

from inotify_simple import INotify, flags

from inx_sidecar.base import paths
from inx_sidecar.links import indirect_roots
from inx_sidecar.roots.mirror import Mirror

_MASK: Final = flags.MOVED_TO | flags.ONLYDIR
_DIRECTORY: Final = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.ONLYDIR
_POLL_SECONDS: Final = 2.0

log = logging.getLogger(__name__)


class Watch:
    """Calls `take(mirror, names)` for what is registered, for one mirror at a time never twice."""

    def __init__(self, take: Callable[[Mirror, set[str]], Awaitable[None]]) -> None:
        self._take = take
        self._mirrors: dict[str, Mirror] = {}
        self._wds: dict[int, str] = {}
        self._fresh: dict[str, set[str]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._complained = False
        self._others: dict[int, Callable[[], None]] = {}
        self._polling: asyncio.Task[None] | None = None
        self._inotify: INotify | None = None

    def open(self) -> None:
        """Before anything is watched."""
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            _complain(error)
        else:
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._hear)

    @property
    def mirrors(self) -> list[Mirror]:
        return list(self._mirrors.values())

    def get(self, uuid: str) -> Mirror | None:
        return self._mirrors.get(uuid)

    def directory(self, path: str, changed: Callable[[], None]) -> None:
        """Call `changed` whenever an entry of the directory comes or goes, if that can be had."""
        try:
            if self._inotify is not None:
                self._others[self._inotify.add_watch(path, _DIRECTORY)] = changed
        except OSError as error:
            log.warning("cannot watch %s: %s", path, error.strerror)

    def begin(self, mirror: Mirror) -> None:
        """From now on; what is there already is taken as well."""
        self.end(mirror.uuid)
        self._mirrors[mirror.uuid] = mirror
        if not self._listen(mirror):
            self._poll()
        self._look(mirror)

    def end(self, uuid: str) -> None:
        mirror = self._mirrors.pop(uuid, None)
        if mirror is not None:
            self._ignore(mirror)
            self._fresh.pop(uuid, None)

    async def drain(self) -> None:
        """Until all that was registered when this was called is taken, or failed to be.

        Instances with a file system that does not answer are not waited for.
        """
        self._hear()
        for mirror in self.mirrors:
            if mirror.uuid not in self._wds.values():
                self._look(mirror)
        ends = []
        for uuid in self._tasks:
            if uuid not in self._mirrors or not self._mirrors[uuid].slow:
                ends.append(asyncio.get_running_loop().create_future())
                self._waiters.setdefault(uuid, []).append(ends[-1])
        if ends:
            await asyncio.wait(ends)

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()

    def _hear(self) -> None:
        if self._inotify is None:
            return
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                for mirror in self.mirrors:
                    self._look(mirror)
                for changed in self._others.values():
                    changed()
            elif event.wd in self._others:
                self._others[event.wd]()
            elif event.mask & flags.IGNORED:
                self._wds.pop(event.wd, None)
                self._poll()
            elif indirect_roots.NAME.fullmatch(event.name) and event.wd in self._wds:
                self._work(self._wds[event.wd], {event.name})

    def _listen(self, mirror: Mirror) -> bool:
        if self._inotify is None:
            return False
        try:
            self._wds[self._inotify.add_watch(paths.auto_dir(mirror.uuid), _MASK)] = mirror.uuid
        except OSError as error:
            if not self._complained:
                self._complained = True
                _complain(error)
            return False
        return True

    def _ignore(self, mirror: Mirror) -> None:
        for wd, uuid in list(self._wds.items()):
            if uuid == mirror.uuid and self._inotify is not None:
                del self._wds[wd]
                try:
                    self._inotify.rm_watch(wd)
                except OSError:
                    pass  # the directory is gone

    def _look(self, mirror: Mirror) -> None:
        self._work(mirror.uuid, mirror.changed())

    def _work(self, uuid: str, names: set[str]) -> None:
        if names:
            self._fresh.setdefault(uuid, set()).update(names)
            if uuid not in self._tasks:
                self._tasks[uuid] = asyncio.create_task(self._taking(uuid))

    async def _taking(self, uuid: str) -> None:
        waiters: list[asyncio.Future[None]] = []
        try:
            while uuid in self._mirrors and (names := self._fresh.pop(uuid, None)):
                mirror = self._mirrors[uuid]
                waiters = self._waiters.pop(uuid, [])
                await self._take(mirror, names)
                _release(waiters)
                if mirror.over and uuid in self._wds.values():
                    # It would only keep us busy with what is refused.
                    self._ignore(mirror)
                    self._poll()
        finally:
            del self._tasks[uuid]
            _release([*waiters, *self._waiters.pop(uuid, [])])

    def _poll(self) -> None:
        if self._polling is None:
            self._polling = asyncio.create_task(self._keep_polling())

    async def _keep_polling(self) -> None:
        """Look at the instances that are not watched, until all are."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            unwatched = [m for m in self.mirrors if m.uuid not in self._wds.values()]
            for mirror in unwatched:
                if not mirror.over and os.path.isdir(paths.auto_dir(mirror.uuid)):
                    self._listen(mirror)
                self._look(mirror)
            if not unwatched:
                self._complained = False
                self._polling = None
                return


def _release(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _complain(error: OSError) -> None:
    log.warning(
        "registrations are looked for every %.0f s, since the host's limit of inotify is reached "
        "(%s): raise fs.inotify.max_user_watches or max_user_instances",
        _POLL_SECONDS, error.strerror,
    )  # fmt: skip
