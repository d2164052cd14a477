"""A container keeps a process of the sidecar waiting for ever."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.attacker.stalling import never_answer_below_overlay
from support.attacks import stalled
from support.disposable import Host
from support.gc import (
    add_to_store,
    collect_in_time,
    in_store,
    journal_end,
    main_pid,
    make_links,
    register,
)
from support.gc import journal as journal_of
from support.incus import Incus
from support.running import PROFILES, newest_system, says
from support.services import SERVICE, constant, journal, property_of
from support.sources import at_switch, bump, launched, source

pytestmark = pytest.mark.main


@pytest.fixture
def impatient(host: Host) -> Iterator[None]:
    """The sidecar gives up sooner what a container keeps waiting."""
    with constant(host, "kernel/forked", "_SECONDS", 6.0):
        with constant(host, "links/resolver", "_SECONDS", 1.5):
            yield


def test_a_file_system_that_never_answers_delays_no_other_instance(
    impatient: None, incus: Incus, host: Host
) -> None:
    """The file system covers the profile while a build runs.

    The process that then writes the generation blocks there, and not even SIGKILL ends it.
    """
    gate = f"/srv/{incus.prefix}-gate"
    flake = incus.flake()
    host.sh(f"mkfifo {gate}")
    host.sh(
        f"cat >{flake}/gated.nix",
        input=f"""{{ held = builtins.seq (builtins.readFile {gate}) (import {flake}).web; }}""",
    )
    name = incus.init(file=f"{flake}/gated.nix", attr="held")
    incus.start(name)
    incus.wait_status(name, "building")
    incus("exec", name, "--", "/dev/.inx/busybox", "mkdir", "-p", "/nix/var/nix/profiles")
    with stalled(incus, name, "/nix/var/nix/profiles") as requests:
        host.sh(f": >{gate}")
        assert requests.readline() == '"asked"\n'
        # The sidecar gives up after some seconds; another start must not wait for that.
        other = incus.init(name=incus.name("b"), flake="/etc/nixos#web")
        started = incus("start", other, check=False, timeout=60)
        assert started.returncode == 0, incus.log(other)
        incus.wait_status(name, "failed: .*took over")
        another = incus.init(name=incus.name("c"), flake="/etc/nixos#web")
        started = incus("start", another, check=False, timeout=60)
        assert started.returncode == 0, incus.log(another)


HOW = {
    "restarted": ["systemctl", "restart", SERVICE],
    "killed": ["systemctl", "kill", "--kill-whom=main", "--signal=KILL", SERVICE],
    "aborted": ["systemctl", "kill", "--kill-whom=main", "--signal=ABRT", SERVICE],
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_a_file_system_that_never_answers_delays_no_restart_of_the_sidecar(
    impatient: None, incus: Incus, host: Host, how: list[str]
) -> None:
    """The child that looks there cannot be killed. systemd waited minutes for its end.

    Meanwhile no instance could start, and a collection deleted what was just built.
    """
    name = incus.launch(flake="/etc/nixos#web")
    neighbour = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    path = add_to_store(incus, "fresh")
    incus.sh(name, "mkdir /root/stall")
    with stalled(incus, name, "/root/stall") as requests:
        register(incus, name, ["/root/stall/link"])
        assert requests.readline() == '"asked"\n'
        incus.wait_status(name, r"ready \(the file system at .* does not answer")
        before, since = main_pid(host), journal_end(host)
        host.run(how)
        # Registered while the sidecar is away, and collected at once.
        make_links(incus, neighbour, {"/root/fresh": path})
        register(incus, neighbour, ["/root/fresh"])
        collect_in_time(host)
        assert in_store(host, path)
        another = incus.launch(name=incus.name("c"), flake="/etc/nixos#web")
        # systemd would say so, if it gave up to wait for an end.
        said = journal_of(host, since, SERVICE)
        assert not re.search("timed out|final SIGKILL", said), said
        assert stuck(host), "the child has ended, so it delayed nothing"
        assert main_pid(host) not in (0, before)
        incus.wait_status(another, "ready$")
        # Others end at once.
        incus.eventually(lambda: len(stuck(host)) <= 2, lambda: f"left: {stuck(host)}")
    incus.eventually(lambda: stuck(host) == [], incus.story)


def test_processes_that_wait_for_ever_are_few(impatient: None, incus: Incus, host: Host) -> None:
    """Each new link below the file system would be looked at by another process."""
    name = incus.launch(flake="/etc/nixos#web")
    incus.sh(name, "mkdir /root/stall")
    with stalled(incus, name, "/root/stall"):
        for number in range(6):
            register(incus, name, [f"/root/stall/link{number}"])
        status = incus.wait_status(name, r"ready \(.*processes wait for a file system of")
        assert name in status and "incus stop -f" in status
        incus.eventually(lambda: len(stuck(host)) == 3, lambda: f"left: {stuck(host)}")
        other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
        incus.wait_status(other, "ready$")
    incus.eventually(lambda: stuck(host) == [], incus.story)
    sync = host.run(["/opt/inx/bin/inx-sidecar", "sync"], check=False)
    assert sync.returncode == 0, sync


def test_a_profile_that_does_not_answer_while_an_update_fails_is_restored_later(
    impatient: None, incus: Incus, host: Host
) -> None:
    """The activation itself can put the file system there. Then the profile cannot be restored."""
    name = launched(incus, "one")
    old = newest_system(incus, name)
    source(
        incus,
        "two",
        activate=at_switch(": >/run/began; until [ -e /run/go ]; do sleep 0.05; done; exit 1"),
    )
    bump(incus, name)
    incus.eventually(lambda: incus.inside(name, "[ -e /run/began ]"), incus.story)
    descriptors = open_files(host)
    with stalled(incus, name, PROFILES):
        incus.sh(name, ": >/run/go")
        said = incus.wait_status(name, f"failed: .*/{PROFILES.strip('/')} does not answer")
        assert f"incus stop -f {name}" in said
        source(incus, "three")
        seen = []
        for number in range(3, 9):
            bump(incus, name, str(number))
            other = incus.launch(name=incus.name(f"b{number}"), flake="/etc/nixos#web")
            incus.wait_status(other, "ready$")
            incus("delete", "-f", other)
            seen.append(len(stuck(host)))
        incus.wait_status(name, "failed: .*3 processes wait for a file system of")
        lines = journal(host, name)
        assert max(seen) <= 3 == len(stuck(host)), seen
        assert open_files(host) <= descriptors + 12
        assert len([line for line in lines if "does not answer" in line]) < 12, lines
        # The server ends, and the instance runs on.
        host.run(["pkill", "-KILL", "-f", f"support.attacker {incus.pid(name)} "])
        incus.sh(name, f"umount -l {PROFILES}")
        incus.wait_generation(name, "2")
        assert says(incus, name, "three")
        assert newest_system(incus, name) != old
        incus.eventually(lambda: stuck(host) == [], incus.story)


STOPS: dict[str, Callable[[Incus, str], Any]] = {
    "stop": lambda incus, name: incus("stop", "-f", name),
    "delete": lambda incus, name: incus("delete", "-f", name),
    "restart": lambda incus, name: incus("restart", "-f", name),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_an_instance_whose_profile_does_not_answer_can_be_stopped(
    incus: Incus, host: Host, stop: Callable[[Incus, str], Any]
) -> None:
    name = launched(incus, "one")
    source(
        incus,
        "two",
        activate=at_switch(": >/run/began; until [ -e /run/go ]; do sleep 0.05; done; exit 1"),
    )
    bump(incus, name)
    incus.eventually(lambda: incus.inside(name, "[ -e /run/began ]"), incus.story)
    with stalled(incus, name, PROFILES) as requests:
        incus.sh(name, ": >/run/go")
        assert requests.readline() == '"asked"\n'
        begin = time.monotonic()
        stop(incus, name)
        assert time.monotonic() - begin < 20, "the sidecar waits for 20 s, and the stop for it"
        incus.eventually(lambda: stuck(host) == [], incus.story)


LINKS = {
    "the system": "ln -s {inside} $out",
    "its programs": "mkdir $out; : >$out/init; ln -s {inside} $out/bin",
}


@pytest.mark.parametrize("script", LINKS.values(), ids=LINKS)
def test_a_store_path_that_leads_into_a_container_is_not_followed(
    incus: Incus, host: Host, script: str
) -> None:
    """Every container may add store paths. By /proc/PID/root, host root would follow their links.

    The sidecar itself hung, and systemd ended it after 30 seconds, over and over.
    """
    name = incus.launch(flake="/etc/nixos#web")
    inside = f"/proc/{incus.pid(name)}/root/root/stall"
    system = host.sh(
        f"""
        d=$(mktemp -d); out=$d/{incus.prefix}-leads-away; {script.format(inside=inside)}
        nix-store --add $out
        """
    ).stdout.strip()
    incus.sh(
        name,
        f"""
        mkdir /root/stall; cd {PROFILES}
        ln -s {system} system-2-link; ln -sfn system-2-link system; ln -s 2 system-pinned
        """,
    )
    with stalled(incus, name, "/root/stall", never_answer_below_overlay):
        before = main_pid(host)
        incus.set(name, "user.inx.activate=test")
        incus.wait_status(name, "failed: .*(is not a NixOS system|no bin/switch)")
        goes_on(incus, host, before)


def goes_on(incus: Incus, host: Host, before: int) -> None:
    """The sidecar whose PID was `before` starts another instance."""
    other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    incus.wait_status(other, "ready$")
    assert main_pid(host) == before


def stuck(host: Host) -> list[str]:
    """The processes of the sidecar's service, besides the main one."""
    group = property_of(host, "ControlGroup")
    found = host.sh(f"cat /sys/fs/cgroup{group}/cgroup.procs").stdout.split()
    return [pid for pid in found if pid != str(main_pid(host))]


def open_files(host: Host) -> int:
    """The number of descriptors that the sidecar has open."""
    return len(host.run(["ls", f"/proc/{main_pid(host)}/fd"]).stdout.split())
