"""Become the Nix daemon of an instance, in the network of its container: `inx-nix-daemon UUID`.

systemd runs this program when the first client connects. The sidecar writes the files that the
daemon sees in /etc, sets its limits, and tells which process is the container's init. The daemon,
its workers, its builds and its downloads then reach what the container reaches. If the network of
the container cannot be entered, no daemon starts.
"""

import os
import sys
from contextlib import suppress

from inx_sidecar.base import paths
from inx_sidecar.hook import ask
from inx_sidecar.kernel.process_times import process_start_time
from inx_sidecar.kernel.syscalls import CLONE_NEWNET, setns

_LISTEN_FD = 3
_PASSED_ON = ("PATH", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_ENVIRONMENT = {
    "HOME": "/root", "LANG": "C.UTF-8", "TMPDIR": paths.DAEMON_BUILDS,
    "NIX_SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
}  # fmt: skip
# --force-untrusted: a client is untrusted even if it has uid 0 of the host (privileged container).
# min-free 0: this daemon never starts a collection, because it sees only its own roots.
_DAEMON = (
    "nix", "--extra-experimental-features", "nix-command daemon-trust-override",
    "daemon", "--force-untrusted", "--option", "min-free", "0",
)  # fmt: skip


def main() -> int:
    uuid = sys.argv[1]
    status, answer = ask(f"nix-daemon\0UUID={uuid}".encode())
    if status == 0:
        pid, started = map(int, answer.split())
        try:
            _enter_network(pid, started)
            given = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
            os.execvpe(_DAEMON[0], _DAEMON, given | _ENVIRONMENT)
        except OSError as error:
            status, answer = 1, f"cannot start the Nix daemon of the instance: {error}"
    sys.stderr.write(f"<3>{answer}\n")
    _refuse_clients()
    return status


def _enter_network(pid: int, started: int) -> None:
    """Join the network namespace of process `pid`, which began at `started`.

    The process that has this number and this start time after the namespace was opened had them
    before, so the namespace is its own. OSError if that process has ended.
    """
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if process_start_time(pid) != started:
        raise ProcessLookupError(f"the container whose init was process {pid} has ended")
    setns(fd, CLONE_NEWNET)
    os.close(fd)


def _refuse_clients() -> None:
    """Close the connections that wait: else systemd would run this program again at once."""
    from socket import socket  # takes long to import

    listener = socket(fileno=_LISTEN_FD)
    listener.setblocking(False)
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


if __name__ == "__main__":
    sys.exit(main())
