"""Incus' REST API on its unix socket: the few requests that the sidecar makes.

Never called while a hook waits: Incus may be waiting for that hook.
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
# internal/server/db/operationtype: one that hangs, as a stop may, must not hold everything up.
_MAKE_NOTHING: Final = (
    "Starting ",
    "Stopping ",
    "Restarting ",
    "Freezing ",
    "Unfreezing ",
    "Deleting ",
    "Executing ",
)


class IncusError(InxError):
    """Incus refused a request; `code` is its HTTP status, 0 if it cannot be reached."""

    status = 28

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


def is_true(text: str) -> bool:
    """As Incus takes the value of a key (shared/util, IsTrue)."""
    return text.lower() in ("true", "1", "yes", "on")


async def server_version() -> str:
    answer = await _request("GET", "/1.0")
    return str(answer["metadata"]["environment"]["server_version"])


async def profiles() -> list[Mapping[str, Any]]:
    """Every profile of every project."""
    answer = await _request("GET", "/1.0/profiles?recursion=1&all-projects=true")
    return list(answer["metadata"])


async def instances() -> list[Mapping[str, Any]]:
    """Every instance of every project, with its expanded configuration, without its state."""
    answer = await _request("GET", "/1.0/instances?recursion=1&all-projects=true")
    return list(answer["metadata"])


async def instance(project: str, name: str) -> Mapping[str, Any]:
    """One instance, with its expanded configuration."""
    return (await instance_now(project, name))[0]


async def instance_now(project: str, name: str) -> tuple[Mapping[str, Any], str]:
    """The same, and the ETag by which a change of it is noticed."""
    answer = await _request("GET", _instance(project, name))
    return dict(answer["metadata"]), str(answer[_ETAG])


async def execute(project: str, name: str, argv: Sequence[str], seconds: float) -> int:
    """Run `argv` inside an instance, as its root, to its end, without output; its exit status.

    IncusError if Incus cannot, TimeoutError after `seconds`: then the program goes on, as it does
    when the sidecar ends.
    """
    asked = {"command": list(argv), "wait-for-websocket": False, "record-output": False}
    operation = (await _request("POST", _instance(project, name, "/exec"), asked))["operation"]
    return int((await _outcome(operation, seconds))["metadata"]["return"])


async def at_work() -> bool:
    """Whether it creates, copies, moves or snapshots something just now."""
    answer = await _request("GET", "/1.0/operations?recursion=1&all-projects=true")
    kinds = answer["metadata"] or {}
    return any(
        operation["class"] == "task" and not operation["description"].startswith(_MAKE_NOTHING)
        for kind in ("pending", "running", "cancelling")
        for operation in kinds.get(kind, [])
    )


async def set_config(project: str, name: str, uuid: str, config: Mapping[str, str]) -> None:
    """Change keys of an instance's configuration and leave the others alone.

    IncusError with code 404 if another instance has its name by now, and 412 if it was changed
    meanwhile.
    """
    found, etag = await instance_now(project, name)
    if found["config"].get("volatile.uuid") != uuid:
        raise IncusError(f"{name!r} is another instance by now", 404)
    # Incus 6.0 takes a description that is not sent for an empty one.
    body = {"config": dict(config), "description": found["description"]}
    await _done(await _request("PATCH", _instance(project, name), body, etag=etag))


async def replace(project: str, name: str, instance: Mapping[str, Any], etag: str) -> None:
    """Make an instance's own configuration and devices what `instance` says (InstancePut).

    IncusError with code 412 if it was changed since it had `etag`.
    """
    await _done(await _request("PUT", _instance(project, name), dict(instance), etag=etag))


async def create(project: str, instance: Mapping[str, Any]) -> None:
    url = f"/1.0/instances?project={quote(project, safe='')}"
    await _done(await _request("POST", url, dict(instance)))


async def delete(project: str, name: str) -> None:
    await _done(await _request("DELETE", _instance(project, name)))


async def start(project: str, name: str) -> None:
    state = {"action": "start", "timeout": -1}
    await _done(await _request("PUT", _instance(project, name, "/state"), state))


async def stop(project: str, name: str, seconds: int, *, force: bool = False) -> None:
    """IncusError if it has not stopped after `seconds`."""
    state = {"action": "stop", "timeout": seconds, "force": force}
    await _done(
        await _request("PUT", _instance(project, name, "/state"), state), seconds + _SECONDS
    )


async def _done(answer: Mapping[str, Any], seconds: float = _SECONDS) -> None:
    """Wait until what Incus has begun is done; IncusError if it failed, or has not ended."""
    if answer.get("type") != "async":
        return
    try:
        await _outcome(answer["operation"], seconds)
    except TimeoutError:
        raise IncusError(f"it took over {int(seconds)} s") from None


async def _outcome(operation: str, seconds: float) -> Mapping[str, Any]:
    """How an operation ended; IncusError if it failed, TimeoutError if it did not in `seconds`."""
    url = f"{operation}/wait?timeout={int(seconds)}"
    ended = (await _request("GET", url, seconds=seconds + _SECONDS))["metadata"]
    if ended["status"] in ("Pending", "Running"):
        raise TimeoutError
    if ended.get("err"):
        raise IncusError(str(ended["err"]), 400)
    return dict(ended)


def _instance(project: str, name: str, what: str = "") -> str:
    return f"/1.0/instances/{quote(name, safe='')}{what}?project={quote(project, safe='')}"


async def _request(
    method: str, url: str, body: object = None, *, seconds: float = _SECONDS, etag: str = ""
) -> dict[str, Any]:
    """What is answered, with its own ETag; it is refused if `etag` is given and another by now."""
    sent = b"" if body is None else json.dumps(body).encode()
    headers = [("Host", "incus"), ("Connection", "close"), ("Content-Length", str(len(sent)))]
    if etag:
        headers.append(("If-Match", etag))
    try:
        async with asyncio.timeout(seconds):
            request = h11.Request(method=method, target=url, headers=headers)
            raw, its = await _exchange(request, sent)
    except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
        why = str(error) or f"not within {seconds:.0f} s"
        raise IncusError(f"Incus does not answer on {paths.INCUS_SOCKET}: {why}") from None
    answer = json.loads(raw)
    if answer.get("type") == "error":
        raise IncusError(str(answer.get("error")), int(answer.get("error_code", 0)))
    return {**answer, _ETAG: its}


async def _exchange(request: h11.Request, body: bytes) -> tuple[bytes, str]:
    """The body of the answer, and its ETag."""
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
