"""`user.inx.status*` keys of instances, kept up to date through Incus' API; the newest status wins.

A status is written only if Incus has another one. No hook waits for the write: Incus refuses writes
to an instance that starts. A refused write is repeated with exponential backoff, until it succeeds
or the instance is gone. On a full storage pool, Incus takes the status, but cannot write
backup.yaml; then the repeated write brings that file back.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final

from inx_sidecar.base.errors import InxError, one_line
from inx_sidecar.base.journal import instance_log
from inx_sidecar.incus import api as incus
from inx_sidecar.incus import arrival, saved_status
from inx_sidecar.incus.instance import SEALED, Instance
from inx_sidecar.incus.status_keys import (
    CHANGES_KEY,
    INTERRUPTED,
    KEPT,
    KEYS,
    STARTING,
    TEXT_KEY,
    TEXT_MAX,
    Status,
    visible_config,
)
from inx_sidecar.incus.update_key import DEALT_WITH, PENDING, asked_now

_FIRST_RETRY_SECONDS: Final = 0.1
# A start or another request of a user takes no longer than a minute; a longer refusal has a cause
# that may last.
_BUSY_RETRY_SECONDS: Final = 5.0
_BUSY_SECONDS: Final = 60.0
_LAST_RETRY_SECONDS: Final = 300.0
# After a refused start, Incus undoes the start, and a user may react: a write would disturb both.
_AFTER_REFUSAL_SECONDS: Final = 1.0
_WAIT_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 2.0
# Incus refuses other requests for an instance while it handles a write. A look at the instance has
# waited before (BURST_SECONDS in instances/retries): the status says within a second of a change
# that it is dealt with.
_DELAY_SECONDS: Final = 0.3
# A system that is up soon gets one status.
_STARTING_SECONDS: Final = 0.7
_NOT_FOUND: Final = 404

_Key = tuple[str, str]


def next_retry(retry: float, waited: float) -> float:
    """The seconds until the next attempt, after an attempt that came `retry` seconds after the one
    before it; all attempts for this status took `waited` seconds so far."""
    most = _BUSY_RETRY_SECONDS if waited < _BUSY_SECONDS else _LAST_RETRY_SECONDS
    return min(retry * 2, most)


class StatusWriter:
    """Writes statuses in the background, one at a time for each instance.

    An instance is identified by its name and its uuid: an import may have the uuid of another
    instance, and a new instance the name of a deleted one.
    """

    def __init__(self) -> None:
        self._wanted: dict[_Key, tuple[Instance, dict[str, str]]] = {}
        self._tasks: dict[_Key, asyncio.Task[None]] = {}
        self._last: dict[_Key, dict[str, str]] = {}
        self._notes: dict[_Key, dict[str, str]] = {}
        self._paused: dict[_Key, asyncio.Event] = {}
        self._resuming: dict[_Key, asyncio.TimerHandle] = {}
        # Set when there is a newer status than the one that Incus refused.
        self._news: dict[_Key, asyncio.Event] = {}

    def pause_writes(self, instance: Instance) -> None:
        """The instance stops or starts: write nothing until `resume_writes`, for at most two
        seconds.

        A stop may be part of a restart. If Incus handled a write between its stop and its start, it
        would take the instance for running and fail the restart. If a write meets a start that is
        refused, Incus needs ten seconds to undo the start.
        """
        key = _key(instance)
        self._paused.setdefault(key, asyncio.Event())
        if key in self._resuming:
            self._resuming[key].cancel()
        loop = asyncio.get_running_loop()
        self._resuming[key] = loop.call_later(_PAUSE_SECONDS, self.resume_writes, instance)

    def resume_writes(self, instance: Instance) -> None:
        key = _key(instance)
        if key in self._resuming:
            self._resuming.pop(key).cancel()
        paused = self._paused.pop(key, None)
        if paused is not None:
            paused.set()

    def set_known_status(self, instance: Instance) -> None:
        """`instance` has just been read: the status in its configuration is what Incus has."""
        if _key(instance) not in self._tasks:
            keys = *KEYS, DEALT_WITH, CHANGES_KEY, SEALED, *KEPT, arrival.KEY
            self._last[_key(instance)] = {key: instance.config.get(key, "") for key in keys}

    def text_of(self, instance: Instance) -> str:
        """The status that Incus has, or soon will have."""
        return self._last.get(_key(instance), {}).get(TEXT_KEY, "")

    def amend_text(self, instance: Instance, text: str) -> bool:
        """Write `text` a moment later, and leave the system and the generation as they are; False
        if Incus has the text."""
        return self._enqueue(instance, {TEXT_KEY: one_line(text, TEXT_MAX)}, _DELAY_SECONDS)

    def forget(self, uuid: str) -> None:
        """Drop what is known of a deleted instance."""
        for known in self._last, self._notes:
            for key in [key for key in known if key[1] == uuid]:
                del known[key]

    def publish(self, instance: Instance, status: Status, *, delayed: bool = False) -> None:
        """Write `status` as soon as Incus accepts it.

        With `delayed`, a moment later: a user who has just changed the instance's configuration may
        send Incus another request for it.
        """
        self.save_for_successor(instance, status)
        config = _config(instance, status)
        soon = _STARTING_SECONDS if status.text == STARTING else 0.0
        self._enqueue(instance, config, _DELAY_SECONDS if delayed else soon)

    def set_note(self, instance: Instance, subject: str, text: str) -> None:
        """Add `text` to every status of `instance`, in place of what was noted on `subject` before;
        "" removes it."""
        notes = self._notes.setdefault(_key(instance), {})
        if notes.get(subject, "") != text:
            notes[subject] = text
            self.publish_saved(instance)

    def set_system(self, instance: Instance, status: Status) -> bool:
        """Replace system and generation of the status that was saved last by those of `status`;
        False if they are the same, or none was saved."""
        saved = saved_status.load(instance.uuid)
        if saved is None:
            return False
        config = saved | {key: status.config()[key] for key in KEYS if key != TEXT_KEY}
        if config == saved:
            return False
        saved_status.save(instance.uuid, config)
        self._enqueue(instance, config)
        return True

    def replace_text(self, instance: Instance, before: str, text: str, update: str | None) -> None:
        """Let the status that was saved last say `text`, and which `update` was dealt with, if its
        text is `before`."""
        saved = saved_status.load(instance.uuid)
        if saved is not None and saved[TEXT_KEY] == one_line(before, TEXT_MAX):
            config = saved | {TEXT_KEY: one_line(text, TEXT_MAX)}
            config |= {} if update is None else {DEALT_WITH: update}
            saved_status.save(instance.uuid, config)
            self._enqueue(instance, config)

    def save_for_successor(self, instance: Instance, status: Status) -> None:
        """Save `status`; the next sidecar publishes it if this one ends before it does."""
        saved = saved_status.load(instance.uuid) or {}
        kept = {key: saved[key] for key in (CHANGES_KEY, *KEPT) if key in saved}
        saved_status.save(instance.uuid, kept | _config(instance, status))

    def publish_refusal(self, instance: Instance, error: InxError) -> None:
        """Write that a hook refused the start of `instance`, after Incus has undone the start."""
        status = Status(f"failed: {error}", update=asked_now(instance.config))
        self.save_for_successor(instance, status)
        self._enqueue(instance, status.config(), _AFTER_REFUSAL_SECONDS)

    def publish_interruption(self, instance: Instance, left: str) -> None:
        """The instance stops: its status does not go on to say that it builds or boots. `left` is
        the text of an instance that has booted."""
        config = saved_status.load(instance.uuid)
        if config is not None and config[TEXT_KEY].startswith(PENDING):
            starts = config[TEXT_KEY] == STARTING and left
            self._enqueue(instance, config | {TEXT_KEY: left if starts else INTERRUPTED})

    def publish_saved(self, instance: Instance) -> None:
        """Write the status that was saved last, perhaps by the previous sidecar."""
        config = saved_status.load(instance.uuid)
        if config is not None and not self._enqueue(instance, config):
            if _key(instance) not in self._tasks:
                _drop_kept(instance, config)

    async def publish_and_wait(self, instance: Instance, status: Status) -> None:
        """Write `status`, and wait up to two seconds until it is written."""
        self.publish(instance, status)
        task = self._tasks.get(_key(instance))
        if task is not None:
            await asyncio.wait([task], timeout=_WAIT_SECONDS)

    def keep(self, instance: Instance, keys: Mapping[str, str]) -> None:
        """Write what the instance keeps of a build, with the next status, or alone."""
        saved = saved_status.load(instance.uuid)
        if keys and saved is not None:
            saved_status.save(instance.uuid, saved | dict(keys))
        self._enqueue(instance, dict(keys), _DELAY_SECONDS)

    def tell_arrival(self, instance: Instance, member: str) -> None:
        """Write that `member` has what `instance` names, with the next status, or alone."""
        self._enqueue(instance, arrival.keys_for(member, instance.config), _DELAY_SECONDS)

    def _enqueue(self, instance: Instance, config: dict[str, str], delay: float = 0.0) -> bool:
        key = _key(instance)
        note = "; ".join(filter(None, self._notes.get(key, {}).values()))
        if TEXT_KEY in config:
            hides, name = instance.isolated, instance.lxc_name
            config = visible_config(config, note, isolated=hides, name=name)
        last = self._last.get(key, {})
        if last | config == last:
            return False
        self._last[key] = last | config
        self._wanted[key] = (instance, self._unwritten(key) | config)
        if key in self._news and TEXT_KEY in config:
            self._news[key].set()
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._write_wanted(key, delay))
        return True

    async def _write_wanted(self, key: _Key, delay: float) -> None:
        retry, waited = _FIRST_RETRY_SECONDS, 0.0
        try:
            if self._wanted[key][1].get(TEXT_KEY, "").startswith(STARTING):
                await self._wait_for_news(key, delay)
            else:
                await asyncio.sleep(delay)
            while key in self._wanted:
                if key in self._paused:
                    await self._paused[key].wait()
                instance, config = self._wanted.pop(key)
                try:
                    await incus.set_config(instance.project, instance.name, instance.uuid, config)
                    _drop_kept(instance, config)
                    retry = _FIRST_RETRY_SECONDS
                except incus.IncusError as error:
                    if error.code == _NOT_FOUND:
                        instance_log(instance.lxc_name).debug("no status: %s", error)
                        self._last.pop(key, None)  # Incus does not have it
                        continue
                    newer = self._wanted.get(key, (instance, config))[0]
                    self._wanted[key] = (newer, config | self._unwritten(key))
                    await self._wait_for_news(key, retry)
                    waited += retry
                    retry = next_retry(retry, waited)
        finally:
            del self._tasks[key]
            self._news.pop(key, None)

    def _unwritten(self, key: _Key) -> dict[str, str]:
        """The keys that wait to be written: a newer status need not have all of them."""
        return self._wanted[key][1] if key in self._wanted else {}

    async def _wait_for_news(self, key: _Key, seconds: float) -> None:
        """Wait `seconds` before the next attempt; a newer status is tried at once."""
        news = self._news.setdefault(key, asyncio.Event())
        news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await news.wait()


def _key(instance: Instance) -> _Key:
    return instance.lxc_name, instance.uuid


def _config(instance: Instance, status: Status) -> dict[str, str]:
    return status.config() | ({SEALED: instance.uuid} if status.sealed else {})


def _drop_kept(instance: Instance, written: Mapping[str, str]) -> None:
    """Incus has `written`. What a build keeps is not written again: an operator may correct it."""
    saved_status.drop(instance.uuid, {key: written[key] for key in KEPT if key in written})
