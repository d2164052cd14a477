"""Root inside a container tries to write to the mounts of the host, and to look behind them.

An attack that might fail for a reason of its own is first made against what the container owns.
"""

import pytest
from support.attacker import handles, writing
from support.attacks import inside, on_host
from support.disposable import Host
from support.fingerprint import unchanged
from support.incus import POOL, Incus
from support.shell_tricks import (
    ALL_TRICKS,
    assert_calls_work,
    assert_tricks_work,
    make_plain_and_bound,
    succeeded,
)

pytestmark = pytest.mark.main

DAEMON_SOCKET = "/nix/var/nix/daemon-socket"


def store_file(incus: Incus, name: str) -> str:
    return f"{incus.said(name, 'readlink', '/run/current-system').strip()}/activate"


def files_of(host: Host, uuid: str) -> str:
    """The files in /run/inx of the instance, without the records that the sidecar itself writes
    again soon after a start."""
    script = """
        find "$D" -type d -printf '%p %m %U\n' \\
            -o ! -name '*.json*' -printf '%p %m %U %s %T@ %l\n'
    """
    return host.sh(script, env={"D": f"/run/inx/{uuid}"}).stdout


@pytest.mark.parametrize("privileged", ["false", "true"])
def test_no_mount_can_be_made_writable(incus: Incus, host: Host, privileged: str) -> None:
    options = ["-c", f"security.privileged={privileged}"]
    name = incus.launch(*options, flake="/etc/nixos#web", daemon="true")
    make_plain_and_bound(incus, name)
    assert_tricks_work(incus, name)
    targets = {
        "/nix/store": store_file(incus, name),
        "/dev/.inx": "/dev/.inx/init",
        DAEMON_SOCKET: f"{DAEMON_SOCKET}/socket",
    }
    run = files_of(host, incus.uuid(name))
    with unchanged(host):
        for target, file in targets.items():
            assert succeeded(incus, name, ALL_TRICKS, target, file) == set(), target
        assert files_of(host, incus.uuid(name)) == run


def test_no_system_call_opens_the_host(incus: Incus, host: Host) -> None:
    """Root of the container is tried without the filter that Incus lays over system calls."""
    name = incus.launch(flake="/etc/nixos#web")
    make_plain_and_bound(incus, name)
    uuid = incus.uuid(name)
    secrets = ["/nix/var/nix/db/db.sqlite", "/nix/var/nix/gcroots", "/run/inx/sidecar.sock"]
    secrets += [f"/run/inx/{uuid}", f"{POOL}/{name}/backup.yaml"]
    known = on_host(host, handles.handles_of, secrets)
    assert set(secrets) == set(known)
    assert_calls_work(incus, name)

    bases = ["/", "/nix/store", "/nix/var/nix/profiles", "/dev/.inx", DAEMON_SOCKET]
    with unchanged(host):
        for target, file, handed in (
            ("/nix/store", store_file(incus, name), known),
            ("/dev/.inx", "/dev/.inx/init", {}),
            (DAEMON_SOCKET, f"{DAEMON_SOCKET}/socket", {}),
        ):
            told = inside(incus, name, writing.system_calls, target, file, handed, bases)
            assert "done" not in told.values(), (target, told)
            assert "254" not in told.values(), (target, told)


def test_the_privileged_roots_system_calls_are_refused_too(incus: Incus, host: Host) -> None:
    """Locked mounts stay locked even for uid 0 of the host's own user namespace."""
    options = ["-c", "security.privileged=true"]
    name = incus.launch(*options, flake="/etc/nixos#web", daemon="true")
    make_plain_and_bound(incus, name)
    with unchanged(host):
        for target, file in (
            ("/nix/store", store_file(incus, name)),
            ("/dev/.inx", "/dev/.inx/init"),
        ):
            told = inside(incus, name, writing.system_calls, target, file, {}, [])
            # The call succeeds but changes nothing: the file system is writable on the host anyway.
            told.pop("reconfigure the file system")
            assert "done" not in told.values(), (target, told)


def test_below_each_mount_lies_only_the_containers_own(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    host.run(["touch", "/root/canary"])
    mine = incus.said(name, "sh", "-euc", "ls -a /nix/var/nix/profiles").split()
    # The script uses a copy of busybox, because the programs of the system are in the store.
    peel = """
        box=/root/busybox; cp /dev/.inx/busybox $box
        for m in daemon-socket profiles gcroots; do
            while $box umount -l /nix/var/nix/$m; do :; done
        done
        while $box umount -l /nix/var/nix; do :; done
        while $box umount -l /nix/store; do :; done
        while $box umount -l /dev/.inx; do :; done
        exec 2>&1
        for d in /nix /nix/store /nix/var /nix/var/nix /nix/var/nix/daemon-socket \
                /nix/var/nix/profiles /nix/var/nix/gcroots /dev/.inx; do
            echo $d: $($box ls $d)
        done
    """
    with unchanged(host):
        for wrap in (["unshare", "-m", "--propagation", "private", "sh", "-uc"], ["sh", "-uc"]):
            seen = incus.run(name, *wrap, peel).stdout.splitlines()
            assert seen == [
                "/nix: store var",
                "/nix/store:",
                "/nix/var: nix",
                "/nix/var/nix: daemon-socket gcroots profiles",
                "/nix/var/nix/daemon-socket:",
                f"/nix/var/nix/profiles: {' '.join(mine[2:])}",
                "/nix/var/nix/gcroots:",
                "/dev/.inx:",
            ]
    incus("restart", "-f", name)
    incus.wait_inside(name)


def test_no_process_that_is_visible_inside_leads_out(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    host.run(["touch", "/root/canary"])
    script = """
        for process in /proc/[0-9]*; do
            for way in $process/root $process/cwd $process/fd/* $process/task/*/root; do
                for up in . .. ../../../../.. ; do
                    for place in root/canary ../root/canary run/inx nix/var/nix/db; do
                        [ ! -e "$way/$up/$place" ] || echo "$way/$up/$place"
                    done
                done
                echo pwned 2>/dev/null >"$way/nix/store/pwned" && echo "$way written"
            done
            readlink $process/exe $process/cwd $process/fd/* | grep -E '/opt/inx|/run/inx' &&
                echo "$process is the host's"
        done
        for process in /proc/[0-9]*; do
            cmp -s $process/uid_map /proc/self/uid_map || [ ! -e $process ] || echo "$process"
        done
    """
    with unchanged(host):
        assert incus.sh(name, script, check=False).stdout == ""
        # A mount over the socket inside affects no other container.
        other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
        socket = f"{DAEMON_SOCKET}/socket"
        incus.sh(name, f"mkdir /mine; mount -o bind /mine {DAEMON_SOCKET}; touch {socket}")
        assert incus.run(name, "nix", "store", "info", check=False).returncode != 0
        assert incus.run(other, "nix", "store", "info").returncode == 0
