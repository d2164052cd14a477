"""Watch by inotify which generation and which system is current in the instances that run.

`nix-env` inside changes links of the profile, `switch-to-configuration` inside changes
/run/current-system. A change only says: look. One event ends a watch, which is added again right
before the next look. So a container that changes its links all the time causes one event for each
look, and the looks have pauses.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from inotify_simple import INotify

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.container.current_system import ENTRIES
from inx_sidecar.incus.instance import Instance
from inx_sidecar.instances.retries import Pace
from inx_sidecar.instances.system_look import Look
from inx_sidecar.kernel.forked import TookTooLongError
from inx_sidecar.kernel.safe_open import open_directory
from inx_sidecar.kernel.syscalls import opened
from inx_sidecar.kernel.user_counts import counted_apart
from inx_sidecar.links.backoff import Backoff

# The longest pause between looks that find nothing, and between looks that find a change: each of
# these is a write to Incus.
_LONGEST_SECONDS: Final = 2.0
_LONGEST_CHANGED_SECONDS: Final = 60.0
# A collection waits so long for a look. The child of a look ends before.
_PATIENCE_SECONDS: Final = 5.0
# No event tells when a system that boots has mounted /run. So it is looked at after these pauses,
# until it is there, and then seldom. The status is `starting` so long.
_BOOT_SECONDS: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_NOT_BOOTED_SECONDS: Final = 64.0

log = logging.getLogger(__name__)


@dataclass
class _Watched:
    """An instance that runs. `changed` asks for a look, `task` looks, `run` is the watch of /run,
    `not_before` is the time of the loop at which the next look may begin, unless `hurry` is set;
    `waiters` wait for a look that begins later. `timers` ask for looks. `problem` is the last error
    that was logged."""

    instance: Instance
    changed: bool = False
    task: asyncio.Task[None] | None = None
    run: int | None = None
    not_before: float = 0.0
    looks: Pace = field(default_factory=lambda: Pace(_LONGEST_SECONDS))
    changes: Pace = field(default_factory=lambda: Pace(_LONGEST_CHANGED_SECONDS))
    backoff: Backoff = field(default_factory=Backoff)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    problem: str = ""


class SystemWatch:
    """Calls `look(instance, inotify)` soon after a change; for one instance, one call at a time."""

    def __init__(self, look: Callable[[Instance, INotify | None], Awaitable[Look]]) -> None:
        self._look = look
        self._watched: dict[str, _Watched] = {}
        # The uuids by watch descriptor: instances may share a directory, as on a disk device.
        self._uuids: dict[int, set[str]] = {}
        # Watches that a look has added, and whose event came before the look told of them.
        self._early: set[int] = set()
        self._looking = 0
        self._inotify: INotify | None = None

    def open(self) -> None:
        """Before any other call. Without inotify, instances are looked at after their start."""
        try:
            with counted_apart():
                self._inotify = INotify(nonblocking=True)
        except OSError as error:
            log.warning("cannot watch which system is current: %s", error.strerror)
        else:
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._read_events)

    def begin(self, instance: Instance, *, ran: bool = False) -> None:
        """`instance` boots a system now; with `ran`, it has done so before this sidecar began."""
        self.end(instance.uuid)
        watched = self._watched[instance.uuid] = _Watched(instance)
        self._watch_profile(watched)
        loop, after = asyncio.get_running_loop(), 0.0
        for pause in _BOOT_SECONDS:
            after += pause
            watched.timers.append(loop.call_later(after, self.ask, instance.uuid))
        if ran:
            self.ask(instance.uuid)

    def end(self, uuid: str) -> None:
        watched = self._watched.pop(uuid, None)
        if watched is None:
            return
        _cancel_timers(watched)
        if watched.task is not None:
            watched.task.cancel()
        for wd in [wd for wd, uuids in self._uuids.items() if uuid in uuids]:
            self._unwatch(wd, uuid)

    async def settle(self) -> None:
        """Return when what has changed by now was looked at, or some seconds have passed.

        Instances with a file system that does not answer are not waited for.
        """
        if self._inotify is not None:
            self._read_events()
        ends = []
        for uuid, watched in self._watched.items():
            # Without a watch of /run, as while it boots, nothing tells of a change.
            is_due = watched.task is not None or watched.run is None
            if is_due and not watched.backoff.lasts():
                self.ask(uuid)
                watched.hurry.set()
                ends.append(asyncio.get_running_loop().create_future())
                watched.waiters.append(ends[-1])
        if ends:
            await asyncio.wait(ends, timeout=_PATIENCE_SECONDS)

    async def close(self) -> None:
        tasks = [watched.task for watched in self._watched.values() if watched.task is not None]
        for uuid in list(self._watched):
            self.end(uuid)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()

    def _read_events(self) -> None:
        assert self._inotify is not None
        for event in self._inotify.read(timeout=0):
            uuids = self._uuids.pop(event.wd, None)
            if uuids is None and self._looking:
                self._early.add(event.wd)
            for uuid in uuids or ():
                self.ask(uuid)

    def ask(self, uuid: str) -> None:
        """Look at the instance soon."""
        watched = self._watched.get(uuid)
        if watched is None:
            return
        watched.changed = True
        if watched.task is None:
            watched.task = asyncio.create_task(self._look_while_changed(watched))

    async def _look_while_changed(self, watched: _Watched) -> None:
        loop = asyncio.get_running_loop()
        try:
            while watched.changed:
                now = loop.time()
                pause = max(watched.looks.next_pause(now), watched.not_before - now)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await watched.hurry.wait()
                watched.hurry.clear()
                watched.changed = False
                waiters, watched.waiters = watched.waiters, []
                self._watch_profile(watched)
                try:
                    if not watched.backoff.lasts():
                        await self._look_once(watched)
                finally:
                    _release(waiters)
        finally:
            watched.task = None
            _release(watched.waiters)

    async def _look_once(self, watched: _Watched) -> None:
        journal, loop = instance_log(watched.instance.lxc_name), asyncio.get_running_loop()
        self._looking += 1
        before, watched.run = watched.run, None
        try:
            look = await self._look(watched.instance, self._inotify)
        except TookTooLongError as error:
            watched.backoff = watched.backoff.longer(error.ended)
            journal.debug("%s", error)
            _cancel_timers(watched)
            again = loop.call_later(watched.backoff.seconds, self.ask, watched.instance.uuid)
            watched.timers.append(again)
        except InstanceError as error:
            journal.debug("%s", error)  # in most cases the container has ended
        except (InxError, OSError) as error:
            if watched.problem != str(error):
                journal.error("%s", error)
            watched.problem = str(error)
        except Exception:
            journal.exception("looking at its system ended in a bug")
        else:
            watched.backoff, watched.problem = Backoff(), ""
            self._note(watched, look, before)
        finally:
            self._looking -= 1
            if not self._looking:
                self._early.clear()

    def _note(self, watched: _Watched, look: Look, before: int | None) -> None:
        """`before` is the watch of /run before this look."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if look.changed:
            watched.not_before = now + watched.changes.next_pause(now)
        uuid = watched.instance.uuid
        if look.booted:
            _cancel_timers(watched)
        elif all(timer.when() <= now for timer in watched.timers):
            _cancel_timers(watched)
            watched.timers.append(loop.call_later(_NOT_BOOTED_SECONDS, self.ask, uuid))
        if before is not None and before != look.watch:
            self._unwatch(before, uuid)  # another file system is mounted at /run
        watched.run = look.watch
        if look.watch in self._early:
            self.ask(uuid)
        elif look.watch is not None:
            self._uuids.setdefault(look.watch, set()).add(uuid)

    def _watch_profile(self, watched: _Watched) -> None:
        """The directory in the root file system, from which generations are read."""
        if self._inotify is None:
            return
        instance = watched.instance
        try:
            rootfs = os.open(instance.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            with opened(rootfs) as root:
                place = open_directory(root, paths.PROFILES_INSIDE, instance.name)
            with opened(place):
                wd = self._inotify.add_watch(f"/proc/self/fd/{place}", ENTRIES)
        except (InxError, OSError) as error:
            instance_log(instance.lxc_name).debug("cannot watch the profile: %s", error)
            return
        self._uuids.setdefault(wd, set()).add(instance.uuid)

    def _unwatch(self, wd: int, uuid: str) -> None:
        uuids = self._uuids.get(wd, set())
        uuids.discard(uuid)
        if not uuids and self._uuids.pop(wd, None) is not None and self._inotify is not None:
            try:
                self._inotify.rm_watch(wd)
            except OSError:
                pass  # the event that ends it was not read yet


def _cancel_timers(watched: _Watched) -> None:
    for timer in watched.timers:
        timer.cancel()
    watched.timers.clear()


def _release(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
