"""The services of inx, of Incus and of Nix on a host, in the hands of the operator."""

import contextlib
import json
from collections.abc import Iterator

from support.cache import HostError
from support.disposable import Host
from support.incus import Incus, end_hung_incus

PROGRAM = "/opt/inx/bin/inx-sidecar"
SERVICE = "inx-sidecar.service"
SOCKET = "inx-sidecar.socket"
UNITS = [SOCKET, SERVICE]
# Shell text: from its end on, the file $SEEN gets each event of Incus. The first change of the
# profile that is told shows that this client listens.
LISTEN = """
    incus monitor --type=lifecycle --format=json >"$SEEN" &
    trap "kill $!" EXIT
    until grep -q profile-updated "$SEEN"; do
        incus profile set inx user.other="$(date +%N)"; sleep 0.1
    done
    incus profile unset inx user.other
"""


def sync(host: Host) -> None:
    """Let the sidecar compare all roots with all instances."""
    host.run([PROGRAM, "sync"])


def check(host: Host) -> tuple[int, list[str]]:
    """The exit status of `inx-sidecar check`, and the faults that it finds."""
    done = host.run([PROGRAM, "check"], check=False)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert {line[:6] for line in lines} <= {"ok    ", "warn  ", "FAIL  "}
    return done.returncode, [line[6:] for line in lines if line.startswith("FAIL")]


def state_of(host: Host, unit: str) -> str:
    """As systemd says: "active", "inactive", "failed" and so on."""
    return host.run(["systemctl", "is-active", unit], check=False).stdout.strip()


def is_active(host: Host, unit: str) -> bool:
    return state_of(host, unit) == "active"


def property_of(host: Host, name: str) -> str:
    """A property of the sidecar's service."""
    return host.run(["systemctl", "show", "--value", "-p", name, SERVICE]).stdout.strip()


@contextlib.contextmanager
def constant(
    host: Host, module: str, name: str, value: float, unit: str = SERVICE
) -> Iterator[None]:
    """While the block runs, a constant of the installed program has another value for a unit.

    For times that a test would only wait for. `module` is as "kernel/forked".
    """
    script = r"""
        file=$(ls /opt/inx/lib/python3*/site-packages/inx_sidecar/$MODULE.py)
        sed -i.before "s/^$NAME: Final = .*/$NAME: Final = $VALUE/" "$file"
        if cmp -s "$file" "$file.before"; then exit 1; fi
        systemctl restart "$UNIT"
    """
    back = r"""
        file=$(ls /opt/inx/lib/python3*/site-packages/inx_sidecar/$MODULE.py)
        mv "$file.before" "$file"
        systemctl restart "$UNIT"
    """
    env = {"MODULE": module, "NAME": name, "VALUE": f"{value}", "UNIT": unit}
    host.sh(script, env=env)
    try:
        yield
    finally:
        host.sh(back, env=env)


def restart_sidecar(host: Host) -> None:
    host.run(["systemctl", "restart", SERVICE])


def restart_incus(host: Host) -> None:
    try:
        host.run(["systemctl", "restart", "incus"])
    except HostError:
        print(end_hung_incus(host))
        raise


def kill_sidecar(host: Host) -> None:
    host.run(["systemctl", "kill", "--signal=KILL", SERVICE])


@contextlib.contextmanager
def stopped_sidecar(host: Host) -> Iterator[None]:
    """Neither the sidecar nor its socket is there within the block."""
    host.run(["systemctl", "stop", *UNITS])
    try:
        yield
    finally:
        host.run(["systemctl", "start", *UNITS])


@contextlib.contextmanager
def hanging_incus(host: Host) -> Iterator[None]:
    """incusd answers nobody within the block."""
    host.run(["systemctl", "kill", "--kill-whom=main", "--signal=STOP", "incus"])
    try:
        yield
    finally:
        host.run(["systemctl", "kill", "--kill-whom=main", "--signal=CONT", "incus"])


@contextlib.contextmanager
def stopped_nix_daemon(host: Host) -> Iterator[None]:
    """Nothing can be built or evaluated within the block."""
    host.run(["systemctl", "stop", "nix-daemon.socket", "nix-daemon.service"])
    try:
        yield
    finally:
        host.run(["systemctl", "start", "nix-daemon.socket"])


@contextlib.contextmanager
def unreadable_database(host: Host) -> Iterator[None]:
    """While the block runs, the sidecar finds no database of Nix; everybody else does.

    An empty file in its place would be no way: whoever opens a database of 0 bytes, also with
    mode=ro, deletes its write-ahead log (SQLite, pagerOpenWalIfPresent), and with it what Nix
    wrote last.
    """
    within = ["nsenter", "-m", "-t", property_of(host, "MainPID")]
    database = "/nix/var/nix/db"
    host.run([*within, "mount", "-t", "tmpfs", "none", database])
    try:
        yield
    finally:
        host.run([*within, "umount", database])


def journal(host: Host, name: str) -> list[str]:
    """All that the sidecar has logged about the instance."""
    text = host.run(["journalctl", "-u", "inx-sidecar", "-o", "cat", "--no-pager"]).stdout
    return [line for line in text.splitlines() if line.startswith(f"{name}: ")]


def builds(host: Host) -> str:
    """The builds that run."""
    argv = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active", "inx-build-*"]
    return host.run(argv).stdout


def wait_build(incus: Incus, name: str) -> None:
    """Until the build for the instance runs."""
    uuid = incus.uuid(name)
    incus.eventually(lambda: uuid in builds(incus.host), incus.story)


def remembered(incus: Incus, name: str) -> dict[str, object]:
    """What the sidecar has written down about the running instance."""
    text = incus.host.run(["cat", f"/run/inx/{incus.uuid(name)}/running.json"]).stdout
    return dict(json.loads(text))
