"""The hooks of LXC: send LXC's facts to the sidecar, and return its answer as an exit status.

A hook takes a few milliseconds, so this module imports almost nothing. `socket` takes as long to
import as Python takes to start; `_socket`, which it wraps, does not.

LXC reads a hook's output ten times, and then waits for ever for its end (lxc src/lxc/utils.c,
run_buffer). So the output goes to a log. Incus shows only "Script exited with status N": the reason
is added to the instance's lxc.log, which `incus info NAME --show-log` prints.
"""

import _socket
import os
import sys
import time

from inx_sidecar.base import lxc_log, paths

FACTS = ("LXC_NAME", "LXC_PID", "LXC_TARGET", "LXC_ROOTFS_PATH", "LXC_CONFIG_FILE")
DEADLINE_SECONDS = 30.0
UNREACHABLE = 25
# During an upgrade a new hook may ask the former sidecar, which knows `mount` by this name alone.
FORMER_KINDS = {"mount": "start-host"}


def main() -> int:
    kind = sys.argv[1]
    _redirect_output()
    facts = [f"{name}={os.environ.get(name, '')}" for name in FACTS]
    status, message = ask(
        "\0".join([FORMER_KINDS.get(kind, kind), *facts]).encode(errors="surrogateescape")
    )
    if status and kind == "stop":
        # A stop cannot be refused. The next start puts right what was missed.
        sys.stderr.write(f"{message}\n")
        return 0
    if status:
        _show_reason(message)
    return status


def ask(request: bytes) -> tuple[int, str]:
    """The sidecar's answer. If the sidecar dies meanwhile, the next one is asked, up to the
    deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            answer = _exchange(request, left)
        except TimeoutError:
            break
        except (FileNotFoundError, ConnectionRefusedError):
            return UNREACHABLE, (
                "the inx sidecar is not reachable; run 'systemctl start inx-sidecar.socket' and "
                "see 'journalctl -u inx-sidecar'"
            )
        except ConnectionError:
            continue
        if answer:
            status, _, message = answer.decode(errors="replace").partition("\n")
            return int(status), message
    return UNREACHABLE, (
        f"the inx sidecar did not answer within {DEADLINE_SECONDS:.0f} s; see "
        "'journalctl -u inx-sidecar'"
    )


def _exchange(request: bytes, seconds: float) -> bytes:
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        channel.settimeout(seconds)
        channel.connect(paths.SOCKET)
        channel.sendall(request)
        channel.shutdown(_socket.SHUT_WR)
        answer = b""
        while chunk := channel.recv(65536):
            answer += chunk
        return answer
    finally:
        channel.close()


def _show_reason(message: str) -> None:
    """In the instance's lxc.log, and in the hooks' own log."""
    config, name = (os.environ.get(fact, "") for fact in ("LXC_CONFIG_FILE", "LXC_NAME"))
    sys.stderr.write(lxc_log.append(config, name, message))


def _redirect_output() -> None:
    """Redirect stdout and stderr to the hooks' own log, or to /dev/null if it cannot be opened."""
    try:
        os.makedirs(paths.LOG, mode=0o700, exist_ok=True)
        log = os.open(f"{paths.LOG}/hooks.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        log = os.open("/dev/null", os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


if __name__ == "__main__":
    sys.exit(main())
