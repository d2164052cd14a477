"""The sidecar's socket and loop: one request per connection, from root alone, answered in turn."""

import asyncio
import logging
import os
import signal
import socket
import struct
import sys
import traceback
from dataclasses import dataclass
from typing import Any, Final

from inx_sidecar.base import sidecar_client
from inx_sidecar.base.errors import InxError, UnsupportedError, one_line
from inx_sidecar.base.journal import about
from inx_sidecar.base.systemd_notify import live, notify
from inx_sidecar.container import bootstrap
from inx_sidecar.incus.instance import Facts
from inx_sidecar.instances.follower import Follower
from inx_sidecar.instances.lifecycle import Lifecycle

_REQUEST_MAX: Final = 1 << 16
# As systemd has it; asyncio would make it less.
_BACKLOG: Final = 4096
_FIRST_PASSED_FD: Final = 3
# A hook of the version before may still run while the sidecar is upgraded.
_FORMER_KINDS: Final = {"start-host": "mount"}

log = logging.getLogger(__name__)


def listening_socket() -> socket.socket:
    """The socket that systemd passes (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        raise UnsupportedError(
            "the sidecar is started by its socket: run 'systemctl start inx-sidecar.socket'"
        )
    listener = socket.socket(fileno=_FIRST_PASSED_FD)
    listener.setblocking(False)
    return listener


async def serve(listener: socket.socket) -> None:
    """Answer hooks until SIGTERM."""
    lifecycle = Lifecycle()
    lifecycle.reconciler.open()
    try:
        bootstrap.install_busybox()
    except InxError as error:
        log.error("%s", error)  # there may be one from before; if not, starts say so themselves
    await lifecycle.resume()
    lifecycle.reconciler.begin()
    follower = Follower(lifecycle)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _peer_uid(writer) == 0:
                writer.write(await _answer(lifecycle, await _request(reader)))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    # From Python 3.13 on the server removes its socket at the end; this one is systemd's.
    keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    server = await asyncio.start_unix_server(client, sock=listener, backlog=_BACKLOG, **keep)
    notify("READY=1")
    async with server:
        tasks = [
            asyncio.create_task(lifecycle.reconciler.keep_syncing()),
            asyncio.create_task(follower.follow()),
            asyncio.create_task(live()),
        ]
        await stopping.wait()
        for task in tasks:
            task.cancel()
    notify("STOPPING=1")
    await follower.close()
    await lifecycle.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    """All that the hook sends, to the end that it marks."""
    request = b""
    while len(request) < _REQUEST_MAX and (chunk := await reader.read(_REQUEST_MAX)):
        request += chunk
    return request


async def _answer(lifecycle: Lifecycle, request: bytes) -> bytes:
    """Status and message: an expected failure's own, 1 for a bug, which goes to the journal."""
    asked: Request | str | None = None
    try:
        asked = parse(request)
        said = await _handle(lifecycle, asked)
    except InxError as error:
        if isinstance(asked, Request):
            about(asked.facts.lxc_name).error("%s", error)
        elif asked is None:
            log.error("%s", error)
        return f"{error.status}\n{error}".encode()
    except Exception:
        log.error("%s", traceback.format_exc())
        return b"1\nthe inx sidecar failed; see 'journalctl -u inx-sidecar'"
    return f"0\n{said}".encode()


@dataclass(frozen=True)
class Request:
    """What a hook asks for: its kind, and LXC's facts; `pid` and `target` where they matter."""

    kind: str
    facts: Facts
    pid: int
    target: str


def parse(request: bytes) -> Request | str:
    """The request that hook.py made, or the word of a `client.ask`; UnsupportedError if it is of
    another making."""
    kind, *pairs = request.decode(errors="replace").split("\0")
    if kind in (sidecar_client.SYNC, sidecar_client.DRAIN) and not pairs:
        return kind
    given = dict(pair.partition("=")[::2] for pair in pairs)
    kind = _FORMER_KINDS.get(kind, kind)
    if kind not in ("pre-start", "mount", "stop"):
        raise UnsupportedError(f"unknown hook {one_line(kind)[:40]!r}: is inx installed in parts?")
    try:
        facts = Facts(given["LXC_NAME"], given["LXC_ROOTFS_PATH"], given["LXC_CONFIG_FILE"])
        pid = int(given["LXC_PID"]) if kind == "mount" else 0
        return Request(kind, facts, pid, given["LXC_TARGET"] if kind == "stop" else "")
    except (KeyError, ValueError) as error:
        raise UnsupportedError(f"the hook {kind!r} lacks {error}: was it run by LXC?") from None


async def _handle(lifecycle: Lifecycle, request: Request | str) -> str:
    match request:
        case sidecar_client.SYNC:
            return await lifecycle.reconciler.sync()
        case sidecar_client.DRAIN:
            return await lifecycle.reconciler.drain()
        case Request(kind="pre-start"):
            await lifecycle.pre_start(request.facts)
        case Request(kind="mount"):
            await lifecycle.mount(request.facts, request.pid)
        case Request(kind="stop"):
            await lifecycle.stop(request.facts, request.target)
    return ""


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    credentials = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    return int(struct.unpack("3i", credentials)[1])
