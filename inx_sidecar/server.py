"""The sidecar's socket and event loop: each connection has one request, only root may connect."""

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
from inx_sidecar.base.journal import instance_log
from inx_sidecar.base.storage import storage_error
from inx_sidecar.base.systemd_notify import notify, send_keep_alives
from inx_sidecar.container import bootstrap
from inx_sidecar.hook import FORMER_KINDS
from inx_sidecar.incus.instance import UUID, LxcFacts
from inx_sidecar.instances.config_watch import ConfigWatch
from inx_sidecar.instances.lifecycle import Lifecycle
from inx_sidecar.kernel.cgroups import kill_others_of_service
from inx_sidecar.request_files import RequestFiles
from inx_sidecar.roots import metrics

_REQUEST_MAX: Final = 1 << 16
# The backlog of systemd's socket; asyncio's default is smaller.
_BACKLOG: Final = 4096
_FIRST_PASSED_FD: Final = 3
_UNIT: Final = "inx-sidecar.service"
_PRESENT_KINDS: Final = {former: kind for kind, former in FORMER_KINDS.items()}

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
    """Take over what runs, then answer requests and follow Incus until SIGTERM."""
    # Before anything is answered: a child of the former sidecar may still work inside a container.
    for pid in kill_others_of_service(_UNIT):
        log.info("killed process %d, which the former sidecar has left", pid)
    lifecycle = Lifecycle()
    lifecycle.reconciler.open()
    try:
        bootstrap.install_busybox()
    except InxError as error:
        # A copy may exist from before. If not, each start fails with this error.
        log.error("%s", error)
    await lifecycle.resume()
    lifecycle.reconciler.begin()
    config_watch = ConfigWatch(lifecycle)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)

    request_files = RequestFiles(lambda request: _answer(lifecycle, request))

    async def serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            pid, uid = _peer(writer)
            if uid == 0:
                writer.write(await request_files.answer_to(pid, await _read_request(reader)))
                # A child that cannot be killed may have a copy of the socket, so closing it would
                # not end the answer.
                writer.write_eof()
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    # From Python 3.13 on, a server removes its socket at the end; this socket belongs to systemd.
    keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    server = await asyncio.start_unix_server(serve_client, sock=listener, backlog=_BACKLOG, **keep)
    request_files.open()
    notify("READY=1")
    async with server:
        tasks = [
            asyncio.create_task(lifecycle.reconciler.keep_comparing()),
            asyncio.create_task(config_watch.follow()),
            asyncio.create_task(lifecycle.cluster.keep_looking()),
            asyncio.create_task(send_keep_alives()),
            asyncio.create_task(metrics.keep_writing()),
        ]
        await stopping.wait()
        request_files.close()
        for task in tasks:
            task.cancel()
    notify("STOPPING=1")
    await config_watch.close()
    await lifecycle.close()


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    """All that the client sends; the client closes its direction at the end."""
    request = b""
    while len(request) < _REQUEST_MAX and (chunk := await reader.read(_REQUEST_MAX)):
        request += chunk
    return request


async def _answer(lifecycle: Lifecycle, request: bytes) -> bytes:
    """Exit status and message. An expected failure has its own status. A bug has status 1; its
    traceback goes to the journal."""
    parsed: Request | DaemonRequest | str | None = None
    try:
        parsed = parse(request)
        message = await _carry_out(lifecycle, parsed)
    except Exception as error:
        known = error if isinstance(error, InxError) else storage_error(error)
        if known is None:
            log.error("%s", traceback.format_exc())
            return b"1\nthe inx sidecar failed; see 'journalctl -u inx-sidecar'"
        if isinstance(parsed, Request):
            instance_log(parsed.facts.lxc_name).error("%s", known)
        elif parsed is None:
            log.error("%s", known)
        return f"{known.status}\n{known}".encode()
    return f"0\n{message}".encode()


@dataclass(frozen=True)
class Request:
    """The request of a hook: its kind, and LXC's facts. The hook mount has the `pid` of the
    container's init, the hook stop has the `target`, "stop" or "reboot"."""

    kind: str
    facts: LxcFacts
    pid: int
    target: str


@dataclass(frozen=True)
class DaemonRequest:
    """The Nix daemon of an instance is about to start (nix_daemon.py)."""

    uuid: str


def parse(request: bytes) -> Request | DaemonRequest | str:
    """The request of hook.py or nix_daemon.py, or the word of `sidecar_client.ask`;
    UnsupportedError if it is none of these."""
    kind, *pairs = request.decode(errors="replace").split("\0")
    if kind in (sidecar_client.SYNC, sidecar_client.DRAIN) and not pairs:
        return kind
    given = dict(pair.partition("=")[::2] for pair in pairs)
    if kind == "nix-daemon" and UUID.fullmatch(given.get("UUID", "")):
        return DaemonRequest(given["UUID"])
    kind = _PRESENT_KINDS.get(kind, kind)
    if kind not in ("pre-start", "mount", "stop"):
        raise UnsupportedError(f"unknown hook {one_line(kind)[:40]!r}: is inx installed in parts?")
    try:
        facts = LxcFacts(given["LXC_NAME"], given["LXC_ROOTFS_PATH"], given["LXC_CONFIG_FILE"])
        pid = int(given["LXC_PID"]) if kind == "mount" else 0
        return Request(kind, facts, pid, given["LXC_TARGET"] if kind == "stop" else "")
    except (KeyError, ValueError) as error:
        raise UnsupportedError(f"the hook {kind!r} lacks {error}: was it run by LXC?") from None


async def _carry_out(lifecycle: Lifecycle, request: Request | DaemonRequest | str) -> str:
    match request:
        case DaemonRequest(uuid):
            return await lifecycle.daemons.start(uuid)
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


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """The process and the user at the other end (unix(7), SO_PEERCRED)."""
    credentials = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid
