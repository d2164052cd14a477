"""Instances on a member of the cluster without inx: their starts fail, and nobody there says why.

One other member writes their status: the first one by name that has inx and answers. No sidecar
writes it on their own member. Once there is one, or the instance is moved to a member with inx,
that sidecar removes the sentence (`stopped_status`).
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from inx_sidecar.incus import api as incus
from inx_sidecar.incus.members import KEY, is_here
from inx_sidecar.incus.status_keys import ELSEWHERE
from inx_sidecar.instances.missing_hooks import lacks_hooks, may_use_inx, shipped_raw_lxc

_STATUS: Final = "user.inx.status"

log = logging.getLogger(__name__)


class Placement:
    def __init__(self) -> None:
        self._member = ""
        # The members whose instances this one looks after: none, if another one does it.
        self._without: frozenset[str] = frozenset()

    async def look_at_members(
        self, member: str, listed: Iterable[Mapping[str, Any]], *, everything: bool
    ) -> None:
        """`listed` are the members of the cluster, `member` is this one.

        If this one looks after others, and `everything` is looked at or there are more of these
        than before, Incus is asked for the instances of all members.
        """
        before, self._without = self._without, looked_after(member, listed)
        self._member = member
        if self._without if everything else self._without - before:
            for api in await incus.list_instances():
                await self.tell(api)

    @property
    def looks_after_others(self) -> bool:
        return bool(self._without)

    def may_tell(self, location: str) -> bool:
        """Whether an instance at `location` is looked after by this member."""
        return location in self._without

    async def tell(self, api: Mapping[str, Any]) -> None:
        """Write the status of the instance that Incus describes, if this member looks after it."""
        text = text_for(api, self._member) if self.may_tell(api.get("location", "")) else ""
        if text:
            name, uuid = str(api["name"]), str(api["config"].get("volatile.uuid", ""))
            try:
                await incus.set_config(str(api["project"]), name, uuid, {_STATUS: text})
            except incus.IncusError as error:
                log.debug("%s", error)  # it was changed meanwhile, or is busy: an event follows


def looked_after(member: str, listed: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The members without inx that `member` looks after, which answer."""
    answering = {
        str(each["server_name"]): KEY in (each.get("config") or {})
        for each in listed
        if each.get("status") != "Offline"
    }
    first = min((name for name, has_inx in answering.items() if has_inx), default="")
    without = (name for name, has_inx in answering.items() if not has_inx)
    return frozenset(without) if first == member else frozenset()


def text_for(api: Mapping[str, Any], target: str) -> str:
    """The status that the instance, on a member without inx, has to get; "" if it needs none.

    `target` is a member with inx.
    """
    if is_here(api, "") or not api.get("expanded_config") or not may_use_inx(api):
        return ""
    if api["status"] != "Stopped" or lacks_hooks(api, shipped_raw_lxc()):
        return ""
    name, project, where = api["name"], api["project"], api["location"]
    begin = f"{ELSEWHERE}{where!r}"
    if api["config"].get(_STATUS, "").startswith(begin):
        return ""
    option = "" if project == "default" else f" --project {project}"
    return (
        f"{begin}, so it cannot start there; install inx there, or run 'incus move {name} --target "
        f"{target}{option}'"
    )
