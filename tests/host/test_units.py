"""The units of instances are changed over the message bus; without a bus, by systemctl."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.disposable import Host
from support.incus import Incus
from support.refusals import refused, sentence, start
from support.services import SERVICE, state_of

pytestmark = pytest.mark.life

WRAPPER = "/usr/local/bin/systemctl"  # comes before the real one in the PATH of the sidecar
SEEN = "/var/log/inx/systemctl.log"  # the sidecar may write there
LOGGING = f"""#!/bin/sh
echo "$PPID $*" >>{SEEN}
exec /usr/bin/systemctl "$@"
"""
BUS = ("dbus.socket", "dbus.service")
# A job takes a second. Meanwhile another user of the host tells the connection, and every other one
# of the bus, that the job has failed, and sends what is too long.
FORGED = """
import asyncio, subprocess, sys, time
from inx_sidecar.base.systemd_bus import SystemdBus
FORGE = '''
import os, sys
os.setgid(65534); os.setuid(65534)
from jeepney import DBusAddress, HeaderFields, message_bus, new_signal
from jeepney.io.blocking import open_dbus_connection
bus = open_dbus_connection("SYSTEM")
systemd = "org.freedesktop.systemd1"
manager = DBusAddress("/org/freedesktop/systemd1", interface=systemd + ".Manager")
def send(signature, *body):
    for number in range(100):
        signal = new_signal(manager, "JobRemoved", signature, body)
        signal.header.fields[HeaderFields.destination] = ":1.%d" % number
        bus.send(signal)
path = sys.argv[1]
send("uoss", int(path.rpartition("/")[2]), path, "inx-slow.service", "failed")
send("s", "JobRemoved")
send("as", ["x" * 250] * 40)
if sys.argv[2] == "long":
    send("as", ["x" * 1000] * 100)
bus.send_and_get_reply(message_bus.GetId())
'''
async def main():
    bus = await SystemdBus.open()
    begin = time.monotonic()
    job = asyncio.create_task(bus.run_job("StartUnit", "inx-slow.service"))
    while not bus._jobs:
        await asyncio.sleep(0.01)
    ((_, path),) = bus._jobs
    forge = [sys.executable, "-c", FORGE, path, sys.argv[1]]
    await asyncio.to_thread(subprocess.run, forge, check=True)
    assert not job.done() or sys.argv[1] == "long"
    await job
    print(time.monotonic() - begin)
asyncio.run(main())
"""
# systemd says that the job exists, as long as it does, but not that it has ended.
LOST = """
import asyncio, time
from jeepney.bus_messages import message_bus
from inx_sidecar.base import systemd_bus
systemd_bus._LOOK_SECONDS = 0.2
async def main():
    bus = await systemd_bus.SystemdBus.open()
    await bus._call(message_bus.RemoveMatch(systemd_bus._JOBS))
    begin = time.monotonic()
    try:
        await bus.run_job("StartUnit", "inx-slow.service")
    except systemd_bus.BusError as error:
        assert "NoSuchJob" in str(error), error
        assert not bus.is_closed and not bus._jobs
        print(time.monotonic() - begin)
asyncio.run(main())
"""

# What has ended meanwhile has no processes.
GONE = """
import asyncio
from inx_sidecar.base.units import Units
asyncio.run(Units().kill("inx-gone.service"))
print("killed")
"""


@pytest.fixture(scope="module", autouse=True)
def wrapper(host: Host) -> Iterator[None]:
    """Each systemctl that is found by PATH is written down."""
    host.sh(f"cat >{WRAPPER}; chmod 755 {WRAPPER}; : >{SEEN}", input=LOGGING)
    yield
    host.run(["rm", WRAPPER, SEEN])
    # A logind that has lost its bus answers nobody, and a later reboot waits a minute for it.
    host.run(["/usr/bin/systemctl", "restart", "systemd-logind"])


def commands(host: Host) -> list[str]:
    """Those of the sidecar about daemons since the last call."""
    script = f"""
        pid=$(/usr/bin/systemctl show -P MainPID inx-sidecar)
        sed -n "/inx-nix-daemon/s/^$pid //p" {SEEN}
        : >{SEEN}
    """
    return host.sh(script).stdout.splitlines()


def live(incus: Incus, host: Host, *names: str) -> None:
    """Start, reboot and stop; the daemon's socket is there exactly while an instance may use it."""
    units = [f"inx-nix-daemon@{incus.uuid(name)}" for name in names]

    def look() -> None:
        for name, unit in zip(names, units, strict=True):
            has_daemon = incus.get(name, "user.inx.daemon") != "false"
            assert (state_of(host, f"{unit}.socket") == "active") is has_daemon
            ping = incus.run(name, "nix", "store", "info", "--store", "daemon", check=False)
            assert (ping.returncode == 0) is has_daemon, ping
            incus.wait_ready(name)

    for name in names:
        assert start(incus, name) == 0
    look()
    incus("restart", "-f", *names)
    look()
    incus("stop", "-f", *names)

    def all_stopped() -> bool:
        argv = ["/usr/bin/systemctl", "list-units", "--no-legend"]
        return host.run([*argv, *(f"{unit}.*" for unit in units)]).stdout == ""

    incus.eventually(all_stopped, incus.story)


@contextmanager
def away(host: Host) -> Iterator[None]:
    """There is no bus within the block."""
    host.run(["/usr/bin/systemctl", "mask", "--runtime", "--now", *BUS])
    try:
        yield
    finally:
        host.run(["/usr/bin/systemctl", "unmask", "--runtime", *BUS])
        host.run(["/usr/bin/systemctl", "start", *BUS])


@contextmanager
def silent(host: Host) -> Iterator[None]:
    """The bus answers nobody within the block."""
    pid = host.run(["/usr/bin/systemctl", "show", "-P", "MainPID", "dbus"]).stdout.strip()
    host.run(["kill", "-STOP", pid])
    try:
        yield
    finally:
        host.run(["kill", "-CONT", pid])


def test_no_systemctl_is_run_and_a_new_bus_is_found(incus: Incus, host: Host) -> None:
    shared, without = (
        incus.launch(name=incus.name(s), flake="/etc/nixos#web", **more)
        for s, more in (("with", {}), ("without", {"daemon": "false"}))
    )
    incus("stop", "-f", shared, without)
    commands(host)
    live(incus, host, shared, without)
    of_daemons = [line for line in commands(host) if not line.startswith("set-property ")]
    assert of_daemons == []
    host.run(["/usr/bin/systemctl", "restart", *BUS])
    live(incus, host, shared, without)
    host.run(["/usr/bin/systemctl", "daemon-reexec"])
    live(incus, host, shared, without)
    of_daemons = [line for line in commands(host) if not line.startswith("set-property ")]
    assert of_daemons == []


def test_without_a_bus_systemctl_is_run(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    incus("stop", "-f", name)
    commands(host)
    with away(host):
        live(incus, host, name)
        assert {line.split()[0] for line in commands(host)} >= {"start", "stop"}
    with silent(host):
        begin = time.monotonic()
        assert start(incus, name) == 0
        assert time.monotonic() - begin < 8
        assert state_of(host, f"inx-nix-daemon@{incus.uuid(name)}.socket") == "active"
        assert "start" in {line.split()[0] for line in commands(host)}
        incus("stop", "-f", name)
    live(incus, host, name)


def test_a_socket_that_cannot_be_started_refuses_the_start_and_says_why(
    incus: Incus, host: Host
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    incus("stop", "-f", name)
    unit = f"inx-nix-daemon@{incus.uuid(name)}.socket"
    host.run(["/usr/bin/systemctl", "mask", "--runtime", unit])
    try:
        said = refused(incus, name)
    finally:
        host.run(["/usr/bin/systemctl", "unmask", "--runtime", unit])
    assert f"'systemctl start {unit}' failed: " in said and "masked" in said
    incus.wait_state(name, "STOPPED")  # the hook mount refuses: LXC ends what has begun
    place = f"/run/systemd/system/{unit}.d"
    reload = "/usr/bin/systemctl daemon-reload"
    drop_in = "[Socket]\nExecStartPre=false\n"
    host.sh(f"mkdir {place}; cat >{place}/fail.conf; {reload}", input=drop_in)
    try:
        assert start(incus, name) != 0
        said = sentence(incus, name)
    finally:
        host.sh(f"rm -r {place}; {reload}")
    # Newer ones name the unit again: "Job for UNIT failed".
    assert f"'systemctl start {unit}' failed: Job " in said and 'See "' in said
    incus.wait_state(name, "STOPPED")
    live(incus, host, name)


@pytest.fixture
def slow(host: Host) -> Iterator[None]:
    """A unit whose start takes a second."""
    unit = "[Service]\nType=oneshot\nExecStart=sleep 1\n"
    place = "/run/systemd/system/inx-slow.service"
    host.sh(f"cat >{place}; /usr/bin/systemctl daemon-reload", input=unit)
    yield
    host.sh(f"/usr/bin/systemctl stop inx-slow; rm {place}; /usr/bin/systemctl daemon-reload")


def by_bus(host: Host, script: str, *args: str) -> tuple[str, str]:
    """What the script prints, and its errors."""
    done = host.run(["/opt/inx/bin/python", "-c", script, *args], check=False)
    return done.stdout, done.stderr


@pytest.mark.usefixtures("slow")
def test_another_user_cannot_end_the_wait_for_a_job(host: Host) -> None:
    """Nor block the connection: a message that is too long ends it, and systemctl is run."""
    output, errors = by_bus(host, FORGED, "short")
    assert float(output) > 1, errors
    output, errors = by_bus(host, FORGED, "long")
    assert (output, errors.splitlines()[-1].rpartition(": ")[2]) == (
        "",
        "the connection was closed",
    )


@pytest.mark.usefixtures("slow")
def test_a_job_that_has_gone_unnoticed_is_not_waited_for(host: Host) -> None:
    output, errors = by_bus(host, LOST)
    assert float(output) > 1, errors


def test_a_unit_that_is_gone_is_killed(host: Host) -> None:
    output, errors = by_bus(host, GONE)
    assert output == "killed\n", errors


def test_a_child_that_is_killed_for_want_of_memory_ends_no_sidecar(host: Host) -> None:
    """By default systemd stops a whole service then (OOMPolicy= in systemd.service(5))."""
    assert host.run(["systemctl", "show", "-P", "OOMPolicy", SERVICE]).stdout == "continue\n"
