"""Read from Incus on a disposable host without a process: tests ask for a status over and over."""

import http.client
import json
import socket
from typing import Any

from support.cache import HostError
from support.disposable import Host

SOCKET = "/var/lib/incus/unix.socket"
_SECONDS = 120.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("incus", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def query(host: Host, url: str) -> Any:
    """What Incus answers to GET, or None if there is nothing (404). Else HostError."""
    connection = _Connection(f"/proc/{host.pid}/root{SOCKET}")
    try:
        connection.request("GET", url)
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise HostError(f"Incus on host '{host.name}' does not answer {url}: {error!r}") from None
    finally:
        connection.close()
    if answer["type"] != "error":
        return answer["metadata"]
    if answer["error_code"] == http.client.NOT_FOUND:
        return None
    raise HostError(f"Incus on host '{host.name}' answers {url} with {answer['error']}")
