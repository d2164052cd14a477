"""An update that the operator, or a check inside, has to confirm, and that comes back otherwise."""

import json

import pytest
from support.disposable import REPO, Host
from support.gc import ROOTS
from support.incus import Incus
from support.running import PROFILES, generations, says
from support.services import (
    PROGRAM,
    kill_sidecar,
    restart_sidecar,
    stopped_sidecar,
    sync,
    wait_build,
)
from support.sources import at_switch, bump, launched, offer, slow, source
from support.store import collect, exists

pytestmark = pytest.mark.life

SHELL = "/run/current-system/sw/bin/sh"
CHECK = f"{SHELL} /etc/greeting"
WAITS = "unconfirmed: "
LET_TIME_PASS = """
import json, sys, time
path = sys.argv[1]
update = json.load(open(path))
update["until"] |= {"wall": time.time(), "up": time.clock_gettime(time.CLOCK_BOOTTIME)}
json.dump(update, open(path, "w"))
"""


def record(incus: Incus, name: str) -> str:
    """The file that exists as long as an update of the instance waits to be confirmed."""
    return f"/var/lib/inx/{incus.uuid(name)}/unconfirmed.json"


def waits(incus: Incus, host: Host, name: str) -> bool:
    return host.run(["test", "-e", record(incus, name)], check=False).returncode == 0


def waited(host: Host, name: str) -> list[str]:
    """What an administrator, and a client of Incus, are told who wait for an update."""
    client = ["bash", "-c", (REPO / "example/wait").read_text(), "wait", name]
    return [host.run(["timeout", "60", *each]).stdout for each in ([PROGRAM, "wait", name], client)]


def let_time_pass(incus: Incus, host: Host, name: str) -> None:
    """While no sidecar runs, the time of the update ends."""
    kill_sidecar(host)
    with stopped_sidecar(host):
        host.run(["python3", "-c", LET_TIME_PASS, record(incus, name)])


def updated(incus: Incus, name: str, greeting: str, *, activate: str = "") -> None:
    """Ask for an update, and wait until it waits to be confirmed."""
    source(incus, greeting, activate=activate)
    bump(incus, name, greeting)
    dealt_with = "user.inx.status.update"
    incus.eventually(lambda: incus.get(name, dealt_with) == greeting, incus.story)
    incus.wait_status(name, WAITS)
    assert says(incus, name, greeting)


def test_what_nobody_confirms_comes_back_and_what_is_confirmed_stays(
    incus: Incus, host: Host
) -> None:
    name = launched(incus, confirm="2", keep="1")
    first = incus.get(name, "user.inx.status.system")
    source(incus, "two")
    bump(incus, name, "two")
    said = incus.wait_status(name, "failed: ")
    assert said == "failed: generation 2 was not confirmed within 2 s; generation 1 runs again"
    assert says(incus, name, "one") and not waits(incus, host, name)
    assert incus.get(name, "user.inx.status.system") == first
    assert incus.get(name, "user.inx.status.generation") == "1"
    assert incus.get(name, "user.inx.status.update") == "two"
    assert incus.get(name, "user.inx.status.changes") == ""
    log = host.run(["cat", f"/var/log/inx/{incus.uuid(name)}.changes"]).stdout
    assert " switch, taken back: " in log and log.rstrip().count(f"after: {first}") == 2
    # Neither a look nor a start tries it again.
    incus.set(name, "user.other=1")
    restart_sidecar(host)
    sync(host)
    incus.restart_into(name, generation=1)
    assert says(incus, name, "one")

    incus.set(name, "user.inx.confirm=60")
    updated(incus, name, "three")
    shown = "unconfirmed: set user.inx.confirmed=3 within 60 s, or generation 1 comes back"
    assert incus.status(name) == shown and waits(incus, host, name)
    assert incus.get(name, "user.inx.status.changes")
    assert waited(host, name) == [f"{name}: {shown}\n"] * 2
    collect(host)
    assert set(generations(host, incus.pid(name))[0]) == {1, 2, 3}
    incus("restart", "-f", name)
    incus.wait_inside(name)
    incus.wait_status(name, WAITS)
    assert incus.status(name) == shown and says(incus, name, "three")
    incus.set(name, "user.inx.confirmed=3")
    incus.wait_generation(name, "3")
    assert says(incus, name, "three") and not waits(incus, host, name)
    incus.eventually(lambda: set(generations(host, incus.pid(name))[0]) == {3}, incus.story)
    incus.restart_into(name, generation=3)
    assert says(incus, name, "three")

    # A try tells of itself, and the update that waits goes on to wait.
    updated(incus, name, "four")
    source(incus, "five")
    incus.set(name, "user.inx.activate=build", "user.inx.update=try")
    incus.wait_status(name, r"ready \(tried: ")
    assert says(incus, name, "four")
    let_time_pass(incus, host, name)
    incus.wait_status(name, "failed: generation 4 was not confirmed within 60 s; generation 3 runs")
    assert says(incus, name, "three") and not waits(incus, host, name)
    incus.set(name, "user.inx.activate=switch")
    incus.wait_status(name, "unconfirmed: set user.inx.confirmed=5 .* or generation 3 comes back")
    assert says(incus, name, "five")


def test_the_way_back_needs_neither_a_network_nor_a_sidecar_nor_a_generation(
    incus: Incus, host: Host
) -> None:
    name = launched(incus, confirm="60")
    updated(incus, name, "two", activate=at_switch("ip link set eth0 down"))
    assert incus.inside(name, "! ip link show eth0 | grep -q LOWER_UP")
    let_time_pass(incus, host, name)
    incus.wait_status(name, "failed: generation 2 was not confirmed within 60 s")
    assert says(incus, name, "one")

    # Root inside deletes what would come back.
    updated(incus, name, "three")
    incus.sh(name, f"rm {PROFILES}/system-1-link")
    let_time_pass(incus, host, name)
    incus.wait_status(name, "failed: generation 3 was not confirmed within 60 s")
    assert says(incus, name, "one")
    incus.restart_into(name, generation=4)
    assert says(incus, name, "one")

    # What was confirmed while there was no sidecar counts.
    updated(incus, name, "four")
    with stopped_sidecar(host):
        host.run(["python3", "-c", LET_TIME_PASS, record(incus, name)])
        incus.set(name, f"user.inx.confirmed={incus.get(name, 'user.inx.status.system')}")
    incus.wait_generation(name, "5")
    assert says(incus, name, "four")

    # Nothing but the update that waits keeps what would come back.
    four = incus.get(name, "user.inx.status.system")
    updated(incus, name, "five")
    incus.sh(name, f"rm {PROFILES}/system-5-link")
    roots = f"{ROOTS}/{name}.{incus.uuid(name)}"
    collect(host)
    there = host.run(["ls", roots]).stdout.split()
    assert "before-system" in there and "system-5" not in there
    assert exists(host, four)
    let_time_pass(incus, host, name)
    incus.wait_status(name, "failed: generation 6 was not confirmed within 60 s")
    assert says(incus, name, "four")
    assert "before-system" not in host.run(["ls", roots]).stdout


def test_a_start_after_the_time_boots_the_generation_from_before(incus: Incus, host: Host) -> None:
    name = launched(incus, confirm="60")
    updated(incus, name, "two")
    host.reboot()
    incus.wait_inside(name)
    incus.wait_status(name, WAITS)
    assert says(incus, name, "two") and waits(incus, host, name)
    incus("stop", "-f", name)
    host.run(["python3", "-c", LET_TIME_PASS, record(incus, name)])
    assert incus.status(name).startswith(WAITS)
    incus.start(name)
    incus.wait_inside(name)
    said = incus.wait_status(name, "failed: ")
    assert said == "failed: generation 2 was not confirmed within 60 s; started generation 1"
    assert says(incus, name, "one") and not waits(incus, host, name)
    incus.restart_into(name, generation=1)
    assert says(incus, name, "one")

    # A newer wish is tried by the start, and the build of a start need not be confirmed.
    updated(incus, name, "three")
    incus("stop", "-f", name)
    host.run(["python3", "-c", LET_TIME_PASS, record(incus, name)])
    source(incus, "four")
    bump(incus, name, "four")
    incus.start(name)
    incus.wait_generation(name, "4")
    assert says(incus, name, "four") and not waits(incus, host, name)


def test_a_newer_wish_goes_back_to_the_last_one_that_was_confirmed(
    incus: Incus, host: Host
) -> None:
    name = launched(incus, confirm="60")
    updated(incus, name, "two")
    updated(incus, name, "three")
    # The build of a wish that comes later begins again.
    flake = slow(incus, 4)
    incus.set(name, f"user.inx.flake={flake}#web")
    wait_build(incus, name)
    let_time_pass(incus, host, name)
    incus.wait_status(name, "unconfirmed: set user.inx.confirmed=4 .* or generation 1 comes back")
    assert incus.inside(name, "[ -e /etc/slow ]")
    ran = host.sh(f"journalctl INX_INSTANCE={name} -o cat --no-pager").stdout
    assert "generation 3 was not confirmed within 60 s" in ran

    # A pin needs no confirmation; a test makes no generation.
    incus.set(name, "user.inx.generation=1")
    incus.wait_generation(name, "1")
    assert not waits(incus, host, name)
    incus.set(
        name, "user.inx.activate=test", "user.inx.generation=", f"user.inx.flake=/srv/{name}#web"
    )
    incus.wait_status(name, "unconfirmed: set user.inx.confirmed to what user.inx.status.system")
    assert says(incus, name, "three")
    let_time_pass(incus, host, name)
    incus.wait_status(name, "failed: the system that was tried was not confirmed within 60 s")
    assert says(incus, name, "one")


def test_a_way_back_that_fails_is_told_and_the_next_start_boots_the_old_system(
    incus: Incus, host: Host
) -> None:
    name = launched(incus)
    source(incus, "two", activate=at_switch("[ ! -e /root/broken ] || { echo no luck; exit 1; }"))
    bump(incus, name, "two")
    incus.wait_generation(name, "2")
    incus.set(name, "user.inx.confirm=60")
    # An activation that fails is taken back at once.
    source(incus, "bad", activate=at_switch("echo so bad; exit 1"))
    bump(incus, name, "bad")
    incus.wait_status(name, "failed: activating .* status 1: so bad; generation 2 runs again")
    assert says(incus, name, "two") and not waits(incus, host, name)
    updated(incus, name, "three")
    incus.sh(name, "touch /root/broken")
    let_time_pass(incus, host, name)
    said = incus.wait_status(name, "failed: .* going back to generation 2 failed: .*no luck")
    assert said.endswith("it is tried again, and the next start boots generation 2")
    incus.set(name, "user.inx.confirmed=3")  # too late
    incus("restart", "-f", name)
    incus.wait_inside(name)
    incus.wait_status(
        name, "failed: generation 3 was not confirmed within 60 s; started generation 2"
    )
    assert says(incus, name, "two")


def test_a_check_inside(incus: Incus, host: Host) -> None:
    """The greeting is the script that checks."""
    name = launched(incus, "exit 0", check=CHECK)
    source(incus, "exit 0 # again")
    bump(incus, name, "again")
    assert waited(host, name) == [f"{name}: ready\n"] * 2
    assert incus.get(name, "user.inx.status.generation") == "2"
    assert incus.get(name, "user.inx.status.update") == "again"

    incus.set(name, "user.inx.confirm=2")
    failed = f"failed: the check {SHELL} did not succeed within 2 s: "
    source(incus, "echo; echo no luck; exit 3")
    bump(incus, name, "bad")
    said = incus.wait_status(name, "failed: ")
    assert said == f"{failed}no luck; generation 2 runs again"
    assert says(incus, name, "exit 0 # again")

    source(incus, "sleep 1000")
    bump(incus, name, "hangs")
    said = incus.wait_status(name, "failed: .*end")
    assert said == f"{failed}it did not end within 5 s; generation 2 runs again"

    # Both are needed.
    incus.set(name, "user.inx.confirm=60")
    updated(incus, name, "exit 0 # once more")
    assert incus.status(name) == (
        f"unconfirmed: set user.inx.confirmed=5, and the check {SHELL} has to succeed, within "
        "60 s, or generation 2 comes back"
    )
    let_time_pass(incus, host, name)
    incus.wait_status(name, "failed: generation 5 was not confirmed within 60 s")
    updated(incus, name, "exit 1")
    incus.set(name, "user.inx.confirmed=6")
    let_time_pass(incus, host, name)
    incus.wait_status(name, f"failed: the check {SHELL} did not succeed within 60 s: it ended with")
    updated(incus, name, "exit 0 # at last")
    incus.set(name, "user.inx.confirmed=7")
    incus.wait_generation(name, "7")


@pytest.mark.isolated
def test_what_a_check_prints_in_an_isolated_instance(incus: Incus, host: Host) -> None:
    name = launched(incus, "exit 0", check=CHECK, confirm="2", store="isolated")
    old = incus.get(name, "user.inx.status.system")
    source(incus, "readlink /run/current-system; printf '\\033[2J%1000s' x; exit 1")
    bump(incus, name, "bad")
    said = incus.wait_status(name, "failed: ")
    assert "/nix/store/" not in said and "\033" not in said and len(said) < 500
    assert incus.get(name, "user.inx.status.system") == old
    assert says(incus, name, "exit 0")


def test_a_unit_that_has_to_be_active(incus: Incus, host: Host) -> None:
    def system(greeting: str, program: str) -> str:
        return offer(
            incus,
            f"""import ./systemd.nix {{
                inherit deps; name = "web"; extra = {{
                    greeting = {json.dumps(greeting)};
                    "systemd/system/web.service" = "[Service]\\nExecStart={program}\\n";
                    "systemd/system/multi-user.target.d/web.conf" =
                        "[Unit]\\nWants=web.service\\n";
                }};
            }}""",
        )

    good, bad = ("/run/current-system/sw/bin/sleep 1000", "/run/current-system/sw/bin/false")
    name = incus.launch(flake=f"{system('one', good)}#web", check="web.service", confirm="2")
    incus.set(name, "user.inx.confirm=")
    system("two", good)
    bump(incus, name, "two")
    incus.wait_generation(name, "2")
    incus.set(name, "user.inx.confirm=2")
    system("three", bad)
    bump(incus, name, "three")
    said = incus.wait_status(name, "failed: ")
    assert said == (
        "failed: the check web.service did not succeed within 2 s: failed; generation 2 runs again"
    )
    assert says(incus, name, "two")
