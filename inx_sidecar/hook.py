"""The hooks of LXC: send LXC's facts to the sidecar, and return its answer as an exit status.

LXC waits for a hook, and Python alone takes six milliseconds to start. So the hooks of a start ask
without Python (hooks/ask), and run this file only if they got no answer, or a refusal. Python runs
it without `site` (-S), and until something has failed, it imports only modules in C: not `os` but
`posix`, not `socket` but `_socket`, and no other module of inx.

LXC reads a hook's output ten times, and then waits for ever for its end (lxc src/lxc/utils.c,
run_buffer). So the output goes to a log. Incus shows only "Script exited with status N": the reason
is added to the instance's lxc.log, which `incus info NAME --show-log` prints.
"""

import _socket
import posix
import sys
import time

# As in base/paths.
SOCKET = "/run/inx/sidecar.sock"
LOG = "/var/log/inx"
FACTS = (b"LXC_NAME", b"LXC_PID", b"LXC_TARGET", b"LXC_ROOTFS_PATH", b"LXC_CONFIG_FILE")
DEADLINE_SECONDS = 30.0
# hooks/ask may have waited so long.
ASKED_SECONDS = 5.0
UNREACHABLE = 25
# During an upgrade a new hook may ask the former sidecar, which knows `mount` by this name alone.
FORMER_KINDS = {"mount": "start-host"}


def main() -> int:
    """The arguments are the kind of the hook and the refusal that it has got already, if any: a
    status and a message. No answer is an empty status."""
    kind, *answer = sys.argv[1:]
    _redirect_output()
    if answer and answer[0] not in ("", "0"):
        status, message = int(answer[0]), answer[1]
    else:
        facts = [b"%b=%b" % (name, posix.environ.get(name, b"")) for name in FACTS]
        request = b"\0".join([FORMER_KINDS.get(kind, kind).encode(), *facts])
        status, message = ask(request, DEADLINE_SECONDS - (ASKED_SECONDS if answer else 0))
    if status and kind == "stop":
        # A stop cannot be refused. The next start puts right what was missed.
        sys.stderr.write(f"{message}\n")
        return 0
    if status:
        _show_reason(message)
    return status


def ask(request: bytes, seconds: float = DEADLINE_SECONDS) -> tuple[int, str]:
    """The sidecar's answer. If the sidecar dies meanwhile, the next one is asked, for at most
    `seconds`."""
    deadline = time.monotonic() + seconds
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
        channel.connect(SOCKET)
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
    import os

    if __name__ == "__main__":
        # By the path of this file at this moment: an upgrade may have replaced it meanwhile.
        sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from inx_sidecar.base import lxc_log

    config, name = (os.environ.get(fact, "") for fact in ("LXC_CONFIG_FILE", "LXC_NAME"))
    sys.stderr.write(lxc_log.append(config, name, message))


def _redirect_output() -> None:
    """Redirect stdout and stderr to the hooks' own log, or to /dev/null if it cannot be opened."""
    try:
        try:
            log = _open_log()
        except FileNotFoundError:
            posix.mkdir(LOG, 0o700)
            log = _open_log()
    except OSError:
        log = posix.open("/dev/null", posix.O_WRONLY)
    posix.dup2(log, 1)
    posix.dup2(log, 2)
    posix.close(log)


def _open_log() -> int:
    return posix.open(f"{LOG}/hooks.log", posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT, 0o600)


if __name__ == "__main__":
    sys.exit(main())
