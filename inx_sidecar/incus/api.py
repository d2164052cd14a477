"""What inx asks of Incus, by its REST API.

A hook must not wait for one of them: Incus answers some only when the hook has ended.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from inx_sidecar.incus.request import ETAG, SECONDS, request, wait_answer, wait_operation
from inx_sidecar.incus.request import IncusError as IncusError

# Fields of a member that a request may set (shared/api, ClusterMemberPut).
_MEMBER_SETTABLE: Final = ("config", "description", "failure_domain", "groups", "roles")


def is_true(text: str) -> bool:
    """Whether Incus takes `text`, the value of a key, for true (shared/util, IsTrue)."""
    return text.lower() in ("true", "1", "yes", "on")


async def get_server() -> Mapping[str, Any]:
    """What Incus says of itself, with its `environment`."""
    return dict((await request("GET", "/1.0"))["metadata"])


async def list_members() -> list[Mapping[str, Any]]:
    """The members of the cluster, with their configuration. IncusError if there is no cluster."""
    answer = await request("GET", "/1.0/cluster/members?recursion=1")
    return list(answer["metadata"])


async def get_member(member: str) -> Mapping[str, Any]:
    """A member of the cluster, with its configuration."""
    return dict((await request("GET", _member(member)))["metadata"])


async def set_member_config(member: str, config: Mapping[str, str]) -> None:
    """Set the keys of `config` in the configuration of a member of the cluster, and unset those
    whose value is ""; the rest stays as it is.

    IncusError with code 412 if the member was changed meanwhile.
    """
    answer = await request("GET", _member(member))
    found, etag = answer["metadata"], str(answer[ETAG])
    body = {field: found[field] for field in _MEMBER_SETTABLE if field in found}
    wanted = {**(found.get("config") or {}), **config}
    body["config"] = {key: value for key, value in wanted.items() if value}
    await wait_answer(await request("PUT", _member(member), body, etag=etag))


async def get_network(project: str, name: str, member: str) -> Mapping[str, Any]:
    """A network as it is on the member, also one of the host that Incus does not manage."""
    url = f"/1.0/networks/{quote(name, safe='')}?project={quote(project, safe='')}"
    answer = await request("GET", f"{url}&target={quote(member, safe='')}")
    return dict(answer["metadata"])


async def list_profiles() -> list[Mapping[str, Any]]:
    """All profiles of all projects."""
    answer = await request("GET", "/1.0/profiles?recursion=1&all-projects=true")
    return list(answer["metadata"])


async def list_storage_pools() -> list[Mapping[str, Any]]:
    """All storage pools, with their configuration."""
    answer = await request("GET", "/1.0/storage-pools?recursion=1")
    return list(answer["metadata"])


async def list_instances(*, own: bool = False) -> list[Mapping[str, Any]]:
    """All instances of all projects and members, without their state.

    Those of members that answer have their expanded configuration. With `own`, those of this member
    alone. Incus answers that also while it starts, and then may leave out instances.
    """
    answer = await request("GET", "/1.0/instances?recursion=1&all-projects=true", own=own)
    return list(answer["metadata"])


async def get_instance(project: str, name: str) -> Mapping[str, Any]:
    """An instance, with its expanded configuration."""
    return (await get_instance_with_etag(project, name))[0]


async def get_instance_with_etag(project: str, name: str) -> tuple[Mapping[str, Any], str]:
    """An instance and its ETag, by which Incus notices that it was changed meanwhile."""
    answer = await request("GET", _instance(project, name))
    return dict(answer["metadata"]), str(answer[ETAG])


async def execute(project: str, name: str, argv: Sequence[str], seconds: float) -> int:
    """Run `argv` inside an instance as root, to its end; returns the exit status.

    The output is dropped. IncusError if Incus cannot run it. TimeoutError after `seconds`: the
    program runs on then, as it does when the sidecar ends.
    """
    body = {"command": list(argv), "wait-for-websocket": False, "record-output": False}
    operation = (await request("POST", _instance(project, name, "/exec"), body))["operation"]
    return int((await wait_operation(operation, seconds))["metadata"]["return"])


async def get_image(project: str, fingerprint: str) -> Mapping[str, Any]:
    """An image that instances of `project` can be made from."""
    where = f"{quote(fingerprint, safe='')}?project={quote(project, safe='')}"
    return dict((await request("GET", f"/1.0/images/{where}"))["metadata"])


async def list_operations(*, own: bool = False) -> list[Mapping[str, Any]]:
    """The operations of all projects and members that have not ended; with `own`, those of this
    member alone."""
    answer = await request("GET", "/1.0/operations?recursion=1&all-projects=true", own=own)
    operations = answer["metadata"] or {}
    return [
        operation
        for status in ("pending", "running", "cancelling")
        for operation in operations.get(status, [])
    ]


async def set_config(project: str, name: str, uuid: str, config: Mapping[str, str]) -> None:
    """Set the keys of `config` in an instance's configuration; other keys stay.

    IncusError with code 404 if the name is another instance's by now, and with code 412 if the
    instance was changed meanwhile.
    """
    found, etag = await get_instance_with_etag(project, name)
    if found["config"].get("volatile.uuid") != uuid:
        raise IncusError(f"{name!r} is another instance by now", 404)
    # Incus 6.0 sets the description to "" if the request has none.
    body = {"config": dict(config), "description": found["description"]}
    await wait_answer(await request("PATCH", _instance(project, name), body, etag=etag))


async def replace(project: str, name: str, instance: Mapping[str, Any], etag: str) -> None:
    """Replace an instance's own configuration and devices by those of `instance` (InstancePut).

    IncusError with code 412 if the instance was changed since it had `etag`.
    """
    await wait_answer(await request("PUT", _instance(project, name), dict(instance), etag=etag))


async def create(project: str, instance: Mapping[str, Any], target: str = "") -> None:
    """Create the instance that `instance` describes (InstancesPost).

    `target` is a member of the cluster, or "@" and a group of members; without it, Incus chooses.
    """
    url = f"/1.0/instances?project={quote(project, safe='')}"
    url += f"&target={quote(target, safe='')}" if target else ""
    await wait_answer(await request("POST", url, dict(instance)))


async def delete(project: str, name: str) -> None:
    await wait_answer(await request("DELETE", _instance(project, name)))


async def start(project: str, name: str) -> None:
    state = {"action": "start", "timeout": -1}
    await wait_answer(await request("PUT", _instance(project, name, "/state"), state))


async def stop(project: str, name: str, seconds: int, *, force: bool = False) -> None:
    """Shut an instance down, or kill it with `force`; IncusError if it runs after `seconds`."""
    state = {"action": "stop", "timeout": seconds, "force": force}
    await wait_answer(
        await request("PUT", _instance(project, name, "/state"), state), seconds + SECONDS
    )


def _member(name: str) -> str:
    return f"/1.0/cluster/members/{quote(name, safe='')}"


def _instance(project: str, name: str, part: str = "") -> str:
    """The URL of an instance, or of a `part` of it, as "/state"."""
    return f"/1.0/instances/{quote(name, safe='')}{part}?project={quote(project, safe='')}"
