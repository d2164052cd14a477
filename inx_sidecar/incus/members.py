"""Which of what Incus describes is on this host: in a cluster, Incus lists all members.

Incus says "location": the name of a member, or "none" where there is no cluster. Of instances on a
member that does not answer, it leaves out `expanded_config` and `expanded_devices`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from inx_sidecar.incus import api

# Key of the configuration of a member. Its value is the version of inx there.
KEY: Final = "user.inx.version"
_NOWHERE: Final = ("", "none")
# Descriptions of operations that make no files of instances (internal/server/db/operationtype).
# A stop, for one, may hang, and must not delay everything else.
_NOT_CREATING: Final = (
    "Starting ",
    "Stopping ",
    "Restarting ",
    "Freezing ",
    "Unfreezing ",
    "Deleting ",
    "Executing ",
)


async def announce(member: str, more: Mapping[str, str]) -> None:
    """Tell the other members that this one, `member`, has inx, and which version, and the keys of
    `more`, if they do not know it. IncusError also if the member was changed meanwhile."""
    import importlib.metadata  # only here: it stays in memory, and is for clusters alone

    wanted = {KEY: importlib.metadata.version("inx"), **more}
    known = (await api.get_member(member)).get("config") or {}
    if any(known.get(key, "") != value for key, value in wanted.items()):
        await api.set_member_config(member, wanted)


async def members_with_inx() -> dict[str, str]:
    """The members of the cluster that have inx, and its version there."""
    listed = await api.list_members()
    return {
        str(each["server_name"]): str(each["config"][KEY])
        for each in listed
        if KEY in (each.get("config") or {})
    }


@dataclass(frozen=True)
class _Identity:
    """Who answers: the name of this host in its cluster, or "", and the process of Incus."""

    member: str
    pid: int


async def _identity() -> _Identity:
    environment = (await api.get_server())["environment"]
    member = str(environment["server_name"]) if environment.get("server_clustered") else ""
    return _Identity(member, int(environment.get("server_pid", 0)))


async def this_member() -> str:
    """The name of this host in its cluster, or "" if Incus is not clustered."""
    return (await _identity()).member


def is_here(described: Mapping[str, Any], member: str) -> bool:
    """Whether the instance or operation that Incus describes is on this host, named `member`."""
    return described.get("location", "") in (*_NOWHERE, member)


def may_be_here(location: str, member: str) -> bool:
    """Whether what an event tells of `location` may be on this host, named `member` if known."""
    return not member or location in (*_NOWHERE, member)


async def list_own_instances() -> list[Mapping[str, Any]]:
    """The instances on this host, of all projects, with their expanded configuration.

    In a cluster, no other member is asked. IncusError also if Incus was started anew meanwhile: as
    it starts, it may leave out instances. The same if this host has got another name: its instances
    would seem to be elsewhere.
    """
    before = await _identity()
    listed = await api.list_instances(own=bool(before.member))
    elsewhere = any(instance.get("location", "") not in _NOWHERE for instance in listed)
    changed = bool(before.member or elsewhere) and before != await _identity()
    if changed or (elsewhere and not before.member):
        raise api.IncusError(
            "Incus was started anew, or this host has got another name in its cluster; look again"
        )
    return [instance for instance in listed if is_here(instance, before.member)]


async def is_creating() -> bool:
    """Whether Incus runs an operation on this host that may create, copy, move or snapshot an
    instance: each one that is not known to do something else."""
    member = await this_member()
    return any(
        operation["class"] == "task"
        and (not member or is_here(operation, member))
        and not operation["description"].startswith(_NOT_CREATING)
        for operation in await api.list_operations(own=bool(member))
    )
