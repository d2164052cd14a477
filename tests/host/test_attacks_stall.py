"""A container keeps a process of the sidecar waiting for ever."""

import time

import pytest
from support.attacks import stalled
from support.disposable import Host
from support.gc import add_to_store, collect, in_store, main_pid, make_links, register
from support.incus import Incus
from support.services import SERVICE, property_of

pytestmark = pytest.mark.main


def test_a_file_system_that_never_answers_delays_no_other_instance(
    incus: Incus, host: Host
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
    incus.wait_status(name, "building$")
    incus("exec", name, "--", "/dev/.inx/busybox", "mkdir", "-p", "/nix/var/nix/profiles")
    with stalled(incus, name, "/nix/var/nix/profiles") as requests:
        host.sh(f": >{gate}")
        assert requests.readline() == '"asked"\n'
        # The sidecar gives up after 20 s; another start must not wait for that.
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
    incus: Incus, host: Host, how: list[str]
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
        before = main_pid(host)
        begin = time.monotonic()
        host.run(how)
        # Registered while the sidecar is away, and collected at once.
        make_links(incus, neighbour, {"/root/fresh": path})
        register(incus, neighbour, ["/root/fresh"])
        collect(host)
        assert in_store(host, path)
        another = incus.launch(name=incus.name("c"), flake="/etc/nixos#web")
        assert time.monotonic() - begin < 20
        assert main_pid(host) not in (0, before)
        assert incus.status(another) == "ready"
        assert len(stuck(host)) <= 2, "children that cannot be killed are few"
    incus.eventually(lambda: stuck(host) == [], incus.story)


def test_processes_that_wait_for_ever_are_few(incus: Incus, host: Host) -> None:
    """Each new link below the file system would be looked at by another process."""
    name = incus.launch(flake="/etc/nixos#web")
    incus.sh(name, "mkdir /root/stall")
    with stalled(incus, name, "/root/stall"):
        for number in range(6):
            register(incus, name, [f"/root/stall/link{number}"])
        status = incus.wait_status(name, r"ready \(.*processes wait for a file system of")
        assert name in status and "incus stop -f" in status
        assert len(stuck(host)) == 3
        other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
        assert incus.status(other) == "ready"
    incus.eventually(lambda: stuck(host) == [], incus.story)
    sync = host.run(["/opt/inx/bin/inx-sidecar", "sync"], check=False)
    assert sync.returncode == 0, sync


def stuck(host: Host) -> list[str]:
    """The processes of the sidecar's service, besides the main one."""
    group = property_of(host, "ControlGroup")
    found = host.sh(f"cat /sys/fs/cgroup{group}/cgroup.procs").stdout.split()
    return [pid for pid in found if pid != str(main_pid(host))]
