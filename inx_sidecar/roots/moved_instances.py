"""Instances that were moved from here to another member of the cluster.

This store may be the only one that has what such an instance names, and members fetch from each
other. So its roots stay here until that member has dealt with it, as a key of the instance says
(`incus/arrival`), or until it is deleted.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Final

from inx_sidecar.base.journal import instance_log
from inx_sidecar.incus import api as incus
from inx_sidecar.incus import arrival, members
from inx_sidecar.incus.instance import project_and_name
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.inventory import Owner

_AT_ONCE: Final = 8
_NOT_FOUND: Final = 404
# Incus waits longer for a member that is away.
_ANSWER_SECONDS: Final = 4.0
# A list of all instances is work for all members. After one that took a time T, the next one comes
# no sooner than _REST * T later, or _LONGEST_REST_SECONDS later if that is less.
_REST: Final = 100
_LONGEST_REST_SECONDS: Final = 60.0
# The file in the directory of the roots that names the member. Nix ignores it.
_MARK: Final = "moved-to"

# Project and name of an instance in Incus.
_Place = tuple[str, str]

_NOWHERE: Final[_Place] = ("", "")


@dataclass(frozen=True)
class Fate:
    """Whether the roots of an instance that is not here `stay`.

    `member` has the instance, as `place`; "" if no other member has it, or that is not known.
    """

    stay: bool
    member: str = ""
    place: _Place = _NOWHERE


UNKNOWN: Final = Fate(stay=True)
DELETED: Final = Fate(stay=False)


class MovedInstances:
    """`compare_soon` is called when Incus can be asked again for what was not known."""

    def __init__(self, compare_soon: Callable[[], None]) -> None:
        self._compare_soon = compare_soon
        # The instances whose roots stayed when Incus was asked last.
        self._awaited: frozenset[_Place] = frozenset()
        self._rests_until = 0.0

    def awaits(self, project: str, name: str) -> bool:
        """Whether roots stay here that a change of this instance of another member may let go."""
        return (project, name) in self._awaited

    async def fates(self, owners: Set[Owner]) -> Mapping[Owner, Fate]:
        """What is to be done with the roots of `owners`, whose instances are not here.

        This takes seconds if a member is away, and up to a minute if all of them are asked.
        """
        fates = await self._ask(owners) if owners else {}
        self._awaited = frozenset(fate.place for fate in fates.values() if fate.stay) - {_NOWHERE}
        return fates

    async def _ask(self, owners: Set[Owner]) -> dict[Owner, Fate]:
        try:
            member = await members.this_member()
        except incus.IncusError:
            return dict.fromkeys(owners, UNKNOWN)
        if not member:
            return dict.fromkeys(owners, DELETED)
        turns = asyncio.Semaphore(_AT_ONCE)
        # First those that may be deleted: many others may wait for a member that is away.
        in_order = sorted(owners, key=lambda owner: bool(member_of(owner)))
        tasks = {
            owner: asyncio.create_task(self._ask_for(owner, member, turns)) for owner in in_order
        }
        try:
            done, _ = await asyncio.wait(tasks.values(), timeout=_ANSWER_SECONDS)
        finally:
            for task in tasks.values():
                task.cancel()
        answers = {
            owner: task.result() if task in done else _as_before(owner)
            for owner, task in tasks.items()
        }
        nameless = [owner for owner, fate in answers.items() if fate is None]
        listed = await self._list_all() if nameless else None
        for owner in nameless:
            answers[owner] = fate_in_list(owner[1], listed, member, member_of(owner))
        return {owner: fate for owner, fate in answers.items() if fate is not None}

    async def _ask_for(self, owner: Owner, member: str, turns: asyncio.Semaphore) -> Fate | None:
        """None if no instance has that name and uuid."""
        async with turns:
            try:
                api = await incus.get_instance(*project_and_name(owner[0]))
            except incus.IncusError as error:
                return None if error.code == _NOT_FOUND else _as_before(owner)
        return fate_of(owner[1], api, member)

    async def _list_all(self) -> list[Mapping[str, Any]] | None:
        """The instances of all members; None if Incus does not tell, or is not asked now."""
        begin = time.monotonic()
        rest = self._rests_until - begin
        listed = None
        if rest <= 0:
            try:
                listed = await incus.list_instances()
            except incus.IncusError:
                pass
            rest = min(_REST * (time.monotonic() - begin), _LONGEST_REST_SECONDS)
            self._rests_until = time.monotonic() + rest
        if listed is None:
            asyncio.get_running_loop().call_later(rest, self._compare_soon)
        return listed


def fate_of(uuid: str, api: Mapping[str, Any], member: str) -> Fate | None:
    """What is to be done here, on `member`, with the roots of the instance `uuid`.

    `api` is what Incus says of the instance that has its name. None if that is another one.
    """
    found = uuid_of(api)
    if found != uuid:
        return None if found else UNKNOWN
    if members.is_here(api, member):
        return UNKNOWN  # it has just come back
    place = str(api["project"]), str(api["name"])
    return Fate(not arrival.is_dealt_with(api), str(api["location"]), place)


def fate_in_list(
    uuid: str, listed: Iterable[Mapping[str, Any]] | None, member: str, seen: str
) -> Fate:
    """The same for an instance whose name no instance has any more: it may have got another one.

    `listed` are the instances of all members, None if they are not known. `seen` is the member that
    had it last, "" if none was seen: Incus does not tell the uuids of a member that is away.
    """
    if listed is None:
        return Fate(stay=True, member=seen)
    away = set()
    for api in listed:
        if uuid_of(api) == uuid:
            return fate_of(uuid, api, member) or UNKNOWN
        if not uuid_of(api):
            away.add(api.get("location"))
    return Fate(stay=True, member=seen) if seen in away else DELETED


def _as_before(owner: Owner) -> Fate:
    """Incus cannot tell now what it told last."""
    return Fate(True, member_of(owner), project_and_name(owner[0]))


def uuid_of(api: Mapping[str, Any]) -> str:
    """ "" if Incus does not tell it, as for a member that is away."""
    return str((api.get("config") or {}).get("volatile.uuid", ""))


def mark(owner: Owner, member: str) -> None:
    """Note for readers of the roots that `member` has the instance now."""
    if not member or member_of(owner) == member:
        return
    path, log = _mark_of(owner), instance_log(owner[0])
    try:
        with open(f"{path}.new", "w") as file:
            file.write(member)
        os.rename(f"{path}.new", path)
    except OSError as error:
        log.debug("%s", error)
    else:
        log.info("its roots stay until it has been started on the member %r", member)


def unmark(owner: Owner) -> None:
    """The instance is here. A note that cannot be removed, as on a file system that is read-only,
    keeps nothing."""
    with contextlib.suppress(OSError):
        os.unlink(_mark_of(owner))


def member_of(owner: Owner) -> str:
    """The member that has the instance whose roots stay here; "" if it is here, or unknown."""
    try:
        with open(_mark_of(owner)) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _mark_of(owner: Owner) -> str:
    return f"{direct_roots.directory(*owner)}/{_MARK}"
