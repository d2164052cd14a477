"""`user.inx.status*` of instances, kept true through the API: the latest spec wins.

Written only when it differs from what Incus has, and never by a hook: an instance that starts is
busy, so a refused write is tried again, ever more slowly, until it succeeds or nobody is there.
"""

import asyncio
import json
import os
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InxError, one_line
from inx_sidecar.base.journal import about
from inx_sidecar.incus import api as incus
from inx_sidecar.incus.instance import Instance
from inx_sidecar.nix.store import redact_store_paths

_KEYS: Final = ("user.inx.status", "user.inx.status.system", "user.inx.status.generation")
_FIRST_DELAY: Final = 0.1
_LAST_DELAY: Final = 5.0
_GIVE_UP_SECONDS: Final = 900.0
_AFTER_REFUSAL: Final = 1.0
_PATIENCE: Final = 2.0
_HOLD: Final = 2.0
# Incus refuses other requests for an instance while one is written.
_CALM: Final = 1.0

_Key = tuple[str, str]


@dataclass(frozen=True)
class Status:
    """One line on the state, and the system and generation that it is about."""

    text: str
    system: str = ""
    generation: int | None = None

    def config(self) -> dict[str, str]:
        number = "" if self.generation is None else str(self.generation)
        return dict(zip(_KEYS, (one_line(self.text, 400), self.system, number), strict=True))


class StatusWriter:
    """Writes one status per instance at a time, in the background.

    By name and uuid: an import may have the uuid of another instance, a new one the name of one
    that was deleted.
    """

    def __init__(self) -> None:
        self._wanted: dict[_Key, tuple[Instance, dict[str, str]]] = {}
        self._tasks: dict[_Key, asyncio.Task[None]] = {}
        self._last: dict[_Key, dict[str, str]] = {}
        self._notes: dict[_Key, str] = {}
        self._held: dict[_Key, asyncio.Event] = {}

    def hold(self, instance: Instance) -> None:
        """It stops, perhaps to start again: a write between these two makes a restart fail (Incus
        then takes it for running). Ends by itself, or with `release`."""
        self._held.setdefault(_key(instance), asyncio.Event())
        asyncio.get_running_loop().call_later(_HOLD, self.release, instance)

    def release(self, instance: Instance) -> None:
        held = self._held.pop(_key(instance), None)
        if held is not None:
            held.set()

    def learn(self, instance: Instance) -> None:
        """`instance` has just been read: Incus holds what its configuration says."""
        if _key(instance) not in self._tasks:
            self._last[_key(instance)] = {key: instance.config.get(key, "") for key in _KEYS}

    def forget(self, uuid: str) -> None:
        """The instance was deleted."""
        for known in self._last, self._notes:
            for key in [key for key in known if key[1] == uuid]:
                del known[key]

    def publish(self, instance: Instance, status: Status, *, calmly: bool = False) -> None:
        """Write `status` as soon as Incus lets us; `calmly`, a moment later: whoever changed the
        configuration of an instance may want something else of it right then."""
        self.save_for_successor(instance, status)
        self._enqueue(instance, status.config(), _CALM if calmly else 0.0)

    def set_note(self, instance: Instance, text: str) -> None:
        """Add `text` to the status of an instance that runs, until it is empty again."""
        if self._notes.get(_key(instance), "") != text:
            self._notes[_key(instance)] = text
            self.publish_saved(instance)

    def save_for_successor(self, instance: Instance, status: Status) -> None:
        """Should this sidecar die before it reports `status`, the next one will."""
        _save(instance.uuid, status.config())

    def publish_refusal(self, instance: Instance, error: InxError) -> None:
        """A hook refuses the start: Incus, and perhaps its user, first have something to undo."""
        self._enqueue(instance, Status(f"failed: {error}").config(), _AFTER_REFUSAL)

    def publish_saved(self, instance: Instance) -> None:
        """Write what the sidecar before this one wanted to."""
        config = _saved(instance.uuid)
        if config is not None:
            self._enqueue(instance, config)

    async def publish_and_wait(self, instance: Instance, status: Status) -> None:
        """Report, and wait a little until it is written."""
        self.publish(instance, status)
        task = self._tasks.get(_key(instance))
        if task is not None:
            await asyncio.wait([task], timeout=_PATIENCE)

    def _enqueue(self, instance: Instance, config: dict[str, str], delay: float = 0.0) -> None:
        key = _key(instance)
        note = self._notes.get(key)
        if note:
            config = config | {_KEYS[0]: f"{config[_KEYS[0]]} ({one_line(note, 400)})"}
        if instance.isolated:
            # The container may read it, by Incus' guest API.
            config = config | {_KEYS[0]: redact_store_paths(config[_KEYS[0]])}
        if self._last.get(key) == config:
            return
        self._last[key] = config
        self._wanted[key] = (instance, config)
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._send(key, delay))

    async def _send(self, key: _Key, before: float) -> None:
        delay, waited = _FIRST_DELAY, 0.0
        try:
            await asyncio.sleep(before)
            while key in self._wanted:
                if key in self._held:
                    await self._held[key].wait()
                instance, config = self._wanted.pop(key)
                try:
                    where = instance.project, instance.name, instance.uuid
                    await incus.set_config(*where, config)
                    delay = _FIRST_DELAY
                except incus.IncusError as error:
                    if error.code == 404 or waited > _GIVE_UP_SECONDS:
                        about(instance.lxc_name).debug("no status: %s", error)
                        continue
                    self._wanted.setdefault(key, (instance, config))
                    await asyncio.sleep(delay)
                    waited += delay
                    delay = min(delay * 2, _LAST_DELAY)
        finally:
            del self._tasks[key]


def _key(instance: Instance) -> _Key:
    return instance.lxc_name, instance.uuid


def _save(uuid: str, config: dict[str, str]) -> None:
    """For a sidecar that comes after this one, should this one not live to write it."""
    path = f"{paths.run_dir(uuid)}/status.json"
    try:
        with open(f"{path}.new", "w") as file:
            json.dump(config, file)
        os.rename(f"{path}.new", path)
    except FileNotFoundError:
        pass  # refused before anything was made for it


def _saved(uuid: str) -> dict[str, str] | None:
    try:
        with open(f"{paths.run_dir(uuid)}/status.json") as file:
            return dict(json.load(file))
    except (OSError, ValueError):
        return None
