"""A wait for an update or a start ends when inx has dealt with it, and tells how that went."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess

import pytest
from support.disposable import REPO, Host
from support.incus import Incus
from support.running import says
from support.services import LISTEN, PROGRAM, wait_build
from support.sources import at_switch, broken, bump, endless, launched, source

pytestmark = pytest.mark.life

DONE = "user.inx.status.update"


def waited(
    host: Host, name: str, *args: str, act: Callable[[], None] = lambda: None
) -> CompletedProcess[str]:
    """How the wait of an administrator ended that begins before `act`, and that of a client of
    Incus, which ends in the same way."""
    script = (REPO / "example/wait").read_text()
    waits = ([PROGRAM, "wait", name, *args], ["bash", "-c", script, "wait", name])
    with ThreadPoolExecutor(2) as pool:
        ended = [pool.submit(host.run, ["timeout", "60", *each], check=False) for each in waits]
        act()
        own, client = (each.result() for each in ended)
    assert own.returncode == client.returncode, (own, client)
    return own


def overtake(incus: Incus, name: str, update: str) -> None:
    """Ask for another update once a client listens, which has read before what is asked for."""
    monitor = ["pgrep", "-f", "^incus monitor --type=logging"]
    incus.eventually(lambda: incus.host.run(monitor, check=False).returncode == 0, incus.story)
    bump(incus, name, update)


@pytest.mark.sid
def test_a_wait_ends_with_the_update(incus: Incus, host: Host) -> None:
    name = launched(incus)
    end = waited(host, name)
    assert (end.returncode, end.stdout) == (0, f"{name}: ready\n")
    source(incus, "two")
    bump(incus, name)
    end = waited(host, name)
    assert (end.returncode, end.stdout) == (0, f"{name}: ready\n")
    assert says(incus, name, "two") and incus.get(name, DONE) == "2"

    bump(incus, name, "an unchanged source")
    assert waited(host, name).returncode == 0
    assert incus.get(name, DONE) == "an unchanged source"

    broken(incus)
    bump(incus, name, "3")
    end = waited(host, name)
    assert end.returncode == 1 and end.stderr.startswith(f"{name}: failed: "), end.stderr
    assert "no such luck" in end.stderr and incus.get(name, DONE) == "3"

    source(incus, "four", activate=at_switch("exit 1"))
    bump(incus, name, "4")
    end = waited(host, name)
    assert end.returncode == 1 and ": failed: activating" in end.stderr
    assert incus.get(name, DONE) == "4"

    endless(incus)
    bump(incus, name, "5")
    wait_build(incus, name)
    source(incus, "six")
    end = waited(host, name, "--update", "5", act=lambda: overtake(incus, name, "6"))
    assert end.returncode == 1 and "'6' by now, and not '5'" in end.stderr
    assert host.run([PROGRAM, "wait", name, "--update", "6"]).stdout == f"{name}: ready\n"
    assert incus.get(name, DONE) == "6" and says(incus, name, "six")

    incus("stop", "-f", name)
    bump(incus, name, "7")
    end = waited(host, name)
    assert end.returncode == 1 and "it does not run; its next start deals with" in end.stderr
    assert incus.get(name, DONE) == "6"
    incus.start(name)
    assert waited(host, name).returncode == 0 and incus.get(name, DONE) == "7"
    incus.sh(name, "true")


def test_a_wait_ends_with_the_start(incus: Incus, host: Host) -> None:
    flake = f"{source(incus, 'one')}#web"
    name = incus.init(flake=flake, update="1")
    incus.start(name)
    end = waited(host, name)
    assert end.returncode == 0, end.stderr
    incus.run(name, "ls")
    broken(incus)
    failed = incus.init(flake=flake, name=incus.name("failed"), update="1")
    incus.start(failed)
    end = waited(host, failed)
    assert end.returncode == 1 and "no such luck" in end.stderr
    incus.wait_state(failed, "STOPPED")
    end = waited(host, failed)
    assert end.returncode == 1 and "no such luck" in end.stderr


def test_the_status_says_that_a_change_is_dealt_with(incus: Incus) -> None:
    """The build has no end."""
    name = launched(incus)
    endless(incus)
    bump(incus, name)
    incus.wait_status(name, "building")


def test_a_system_is_starting_until_its_activation_is_done(incus: Incus, host: Host) -> None:
    slow = "[ -e /root/go ] || until [ -e /root/go ]; do sleep 0.1; done"
    name = incus.init(flake=f"{source(incus, 'one', activate=slow)}#web")
    seen = f"/root/{incus.prefix}-events"
    script = """
        incus start "$NAME"
        sleep 3
        incus config get "$NAME" user.inx.status
        incus exec "$NAME" -- /dev/.inx/busybox touch /root/go
        /opt/inx/bin/inx-sidecar wait "$NAME" --timeout 30
        sleep 2
        sed -n '/instance-started/,$p' "$SEEN" | grep -c '"action":"instance-updated"'
    """
    said = host.sh(LISTEN + script, env={"SEEN": seen, "NAME": name}).stdout.split("\n")
    writes = host.run(["cat", seen]).stdout
    assert said[:2] == ["starting", f"{name}: ready"], (said, writes)
    # The build, the start, and the end of it.
    assert int(said[2]) <= 3, writes
