"""Requests to Incus' REST API, on its unix socket.

A hook must not wait for one of them: Incus answers some only when the hook has ended.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import h11

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InxError

_SECONDS: Final = 60.0
_ETAG: Final = "etag"
# Members of a cluster ask each other as this client: the answer is about the asked member alone
# (internal/server/cluster/request/clienttype.go). A filter or a target of a list does not do that:
# Incus asks all members first, or ignores it.
_AS_MEMBER: Final = "incus-cluster-notifier"
# Fields of a member that a request may set (shared/api, ClusterMemberPut).
_MEMBER_SETTABLE: Final = ("config", "description", "failure_domain", "groups", "roles")


class IncusError(InxError):
    """Incus refused a request; `code` is the HTTP status, or 0 if Incus cannot be reached."""

    status = 28

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


def is_true(text: str) -> bool:
    """Whether Incus takes `text`, the value of a key, for true (shared/util, IsTrue)."""
    return text.lower() in ("true", "1", "yes", "on")


async def get_server() -> Mapping[str, Any]:
    """What Incus says of itself, with its `environment`."""
    return dict((await _request("GET", "/1.0"))["metadata"])


async def list_members() -> list[Mapping[str, Any]]:
    """The members of the cluster, with their configuration. IncusError if there is no cluster."""
    answer = await _request("GET", "/1.0/cluster/members?recursion=1")
    return list(answer["metadata"])


async def get_member(member: str) -> Mapping[str, Any]:
    """A member of the cluster, with its configuration."""
    return dict((await _request("GET", _member(member)))["metadata"])


async def set_member_config(member: str, config: Mapping[str, str]) -> None:
    """Set the keys of `config` in the configuration of a member of the cluster, and unset those
    whose value is ""; the rest stays as it is.

    IncusError with code 412 if the member was changed meanwhile.
    """
    answer = await _request("GET", _member(member))
    found, etag = answer["metadata"], str(answer[_ETAG])
    body = {field: found[field] for field in _MEMBER_SETTABLE if field in found}
    wanted = {**(found.get("config") or {}), **config}
    body["config"] = {key: value for key, value in wanted.items() if value}
    await _wait_answer(await _request("PUT", _member(member), body, etag=etag))


async def get_network(project: str, name: str, member: str) -> Mapping[str, Any]:
    """A network as it is on the member, also one of the host that Incus does not manage."""
    url = f"/1.0/networks/{quote(name, safe='')}?project={quote(project, safe='')}"
    answer = await _request("GET", f"{url}&target={quote(member, safe='')}")
    return dict(answer["metadata"])


async def list_profiles() -> list[Mapping[str, Any]]:
    """All profiles of all projects."""
    answer = await _request("GET", "/1.0/profiles?recursion=1&all-projects=true")
    return list(answer["metadata"])


async def list_storage_pools() -> list[Mapping[str, Any]]:
    """All storage pools, with their configuration."""
    answer = await _request("GET", "/1.0/storage-pools?recursion=1")
    return list(answer["metadata"])


async def list_instances(*, own: bool = False) -> list[Mapping[str, Any]]:
    """All instances of all projects and members, without their state.

    Those of members that answer have their expanded configuration. With `own`, those of this member
    alone. Incus answers that also while it starts, and then may leave out instances.
    """
    answer = await _request("GET", "/1.0/instances?recursion=1&all-projects=true", own=own)
    return list(answer["metadata"])


async def get_instance(project: str, name: str) -> Mapping[str, Any]:
    """An instance, with its expanded configuration."""
    return (await get_instance_with_etag(project, name))[0]


async def get_instance_with_etag(project: str, name: str) -> tuple[Mapping[str, Any], str]:
    """An instance and its ETag, by which Incus notices that it was changed meanwhile."""
    answer = await _request("GET", _instance(project, name))
    return dict(answer["metadata"]), str(answer[_ETAG])


async def execute(project: str, name: str, argv: Sequence[str], seconds: float) -> int:
    """Run `argv` inside an instance as root, to its end; returns the exit status.

    The output is dropped. IncusError if Incus cannot run it. TimeoutError after `seconds`: the
    program runs on then, as it does when the sidecar ends.
    """
    request = {"command": list(argv), "wait-for-websocket": False, "record-output": False}
    operation = (await _request("POST", _instance(project, name, "/exec"), request))["operation"]
    return int((await _wait_operation(operation, seconds))["metadata"]["return"])


async def get_image(project: str, fingerprint: str) -> Mapping[str, Any]:
    """An image that instances of `project` can be made from."""
    where = f"{quote(fingerprint, safe='')}?project={quote(project, safe='')}"
    return dict((await _request("GET", f"/1.0/images/{where}"))["metadata"])


async def list_operations(*, own: bool = False) -> list[Mapping[str, Any]]:
    """The operations of all projects and members that have not ended; with `own`, those of this
    member alone."""
    answer = await _request("GET", "/1.0/operations?recursion=1&all-projects=true", own=own)
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
    await _wait_answer(await _request("PATCH", _instance(project, name), body, etag=etag))


async def replace(project: str, name: str, instance: Mapping[str, Any], etag: str) -> None:
    """Replace an instance's own configuration and devices by those of `instance` (InstancePut).

    IncusError with code 412 if the instance was changed since it had `etag`.
    """
    await _wait_answer(await _request("PUT", _instance(project, name), dict(instance), etag=etag))


async def create(project: str, instance: Mapping[str, Any], target: str = "") -> None:
    """Create the instance that `instance` describes (InstancesPost).

    `target` is a member of the cluster, or "@" and a group of members; without it, Incus chooses.
    """
    url = f"/1.0/instances?project={quote(project, safe='')}"
    url += f"&target={quote(target, safe='')}" if target else ""
    await _wait_answer(await _request("POST", url, dict(instance)))


async def delete(project: str, name: str) -> None:
    await _wait_answer(await _request("DELETE", _instance(project, name)))


async def start(project: str, name: str) -> None:
    state = {"action": "start", "timeout": -1}
    await _wait_answer(await _request("PUT", _instance(project, name, "/state"), state))


async def stop(project: str, name: str, seconds: int, *, force: bool = False) -> None:
    """Shut an instance down, or kill it with `force`; IncusError if it runs after `seconds`."""
    state = {"action": "stop", "timeout": seconds, "force": force}
    await _wait_answer(
        await _request("PUT", _instance(project, name, "/state"), state), seconds + _SECONDS
    )


async def _wait_answer(answer: Mapping[str, Any], seconds: float = _SECONDS) -> None:
    """Wait for the operation that `answer` names, if any.

    IncusError if the operation fails, or does not end within `seconds`.
    """
    if answer.get("type") != "async":
        return
    try:
        await _wait_operation(answer["operation"], seconds)
    except TimeoutError:
        raise IncusError(f"it took over {int(seconds)} s") from None


async def _wait_operation(operation: str, seconds: float) -> Mapping[str, Any]:
    """How the operation ended.

    IncusError if it failed, TimeoutError if it did not end within `seconds`.
    """
    # In a cluster, the URL of an operation on another member has a query of its own.
    path, _, query = operation.partition("?")
    url = f"{path}/wait?timeout={int(seconds)}" + (f"&{query}" if query else "")
    ended = (await _request("GET", url, seconds=seconds + _SECONDS))["metadata"]
    if ended["status"] in ("Pending", "Running"):
        raise TimeoutError
    if ended.get("err"):
        raise IncusError(str(ended["err"]), 400)
    return dict(ended)


def _member(name: str) -> str:
    return f"/1.0/cluster/members/{quote(name, safe='')}"


def _instance(project: str, name: str, part: str = "") -> str:
    """The URL of an instance, or of a `part` of it, as "/state"."""
    return f"/1.0/instances/{quote(name, safe='')}{part}?project={quote(project, safe='')}"


async def _request(
    method: str,
    url: str,
    body: object = None,
    *,
    seconds: float = _SECONDS,
    etag: str = "",
    own: bool = False,
) -> dict[str, Any]:
    """The answer, with the ETag of what it describes.

    With `etag`, Incus refuses the request (412) if the object has another ETag by now. With `own`,
    the answer is about this member of the cluster alone. IncusError if Incus refuses the request,
    or does not answer within `seconds`.
    """
    content = b"" if body is None else json.dumps(body).encode()
    headers = [("Host", "incus"), ("Connection", "close"), ("Content-Length", str(len(content)))]
    if etag:
        headers.append(("If-Match", etag))
    if own:
        headers.append(("User-Agent", _AS_MEMBER))
    try:
        async with asyncio.timeout(seconds):
            request = h11.Request(method=method, target=url, headers=headers)
            raw, answer_etag = await _exchange(request, content)
    except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
        reason = str(error) or f"not within {seconds:.0f} s"
        raise IncusError(f"Incus does not answer on {paths.INCUS_SOCKET}: {reason}") from None
    answer = json.loads(raw)
    if answer.get("type") == "error":
        raise IncusError(str(answer.get("error")), int(answer.get("error_code", 0)))
    return {**answer, _ETAG: answer_etag}


async def _exchange(request: h11.Request, body: bytes) -> tuple[bytes, str]:
    """The body of the response, and its ETag."""
    reader, writer = await asyncio.open_unix_connection(paths.INCUS_SOCKET)
    connection = h11.Connection(h11.CLIENT)
    etag = ""
    try:
        for part in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(connection.send(part) or b"")
        await writer.drain()
        answer = bytearray()
        while True:
            match connection.next_event():
                case h11.NEED_DATA:
                    connection.receive_data(await reader.read(65536))
                case h11.Response(headers=headers):
                    etag = dict(headers).get(b"etag", b"").decode()
                case h11.Data(data=data):
                    answer += data
                case h11.EndOfMessage() | h11.ConnectionClosed():
                    return bytes(answer), etag
    finally:
        writer.close()
