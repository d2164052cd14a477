"""One request to Incus' REST API, on its unix socket, and the operation that it may begin."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

import h11

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InxError

SECONDS: Final = 60.0
ETAG: Final = "etag"
# Members of a cluster ask each other as this client: the answer is about the asked member alone
# (internal/server/cluster/request/clienttype.go). A filter or a target of a list does not do that:
# Incus asks all members first, or ignores it.
_AS_MEMBER: Final = "incus-cluster-notifier"


class IncusError(InxError):
    """Incus refused a request; `code` is the HTTP status, or 0 if Incus cannot be reached."""

    status = 28

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


async def request(
    method: str,
    url: str,
    body: object = None,
    *,
    seconds: float = SECONDS,
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
            message = h11.Request(method=method, target=url, headers=headers)
            raw, answer_etag = await _exchange(message, content)
    except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
        reason = str(error) or f"not within {seconds:.0f} s"
        raise IncusError(f"Incus does not answer on {paths.INCUS_SOCKET}: {reason}") from None
    answer = json.loads(raw)
    if answer.get("type") == "error":
        raise IncusError(str(answer.get("error")), int(answer.get("error_code", 0)))
    return {**answer, ETAG: answer_etag}


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


async def wait_answer(answer: Mapping[str, Any], seconds: float = SECONDS) -> None:
    """Wait for the operation that `answer` names, if any.

    IncusError if the operation fails, or does not end within `seconds`.
    """
    if answer.get("type") != "async":
        return
    try:
        await wait_operation(answer["operation"], seconds)
    except TimeoutError:
        raise IncusError(f"it took over {int(seconds)} s") from None


async def wait_operation(operation: str, seconds: float) -> Mapping[str, Any]:
    """How the operation ended.

    IncusError if it failed, TimeoutError if it did not end within `seconds`.
    """
    # In a cluster, the URL of an operation on another member has a query of its own.
    path, _, query = operation.partition("?")
    url = f"{path}/wait?timeout={int(seconds)}" + (f"&{query}" if query else "")
    ended = (await request("GET", url, seconds=seconds + SECONDS))["metadata"]
    if ended["status"] in ("Pending", "Running"):
        raise TimeoutError
    if ended.get("err"):
        raise IncusError(str(ended["err"]), 400)
    return dict(ended)
