"""`inx-sidecar check` finds each fault of an installation and says how to repair it."""

import json

import pytest
from support.disposable import Host
from support.health import is_healthy
from support.incus import Incus
from support.services import PROGRAM, SOCKET, UNITS, check, restart_sidecar

pytestmark = pytest.mark.main


@pytest.mark.sid
def test_check_finds_nothing_on_a_host_as_installed(incus: Incus, host: Host) -> None:
    incus.launch(flake="/etc/nixos#web")
    assert check(host) == (0, [])


def test_administrators_have_tables_json_and_completion(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    found = json.loads(host.run([PROGRAM, "check", "--json"]).stdout)
    assert all(finding.keys() == {"result", "subject", "message"} for finding in found)
    lines = host.run([PROGRAM, "check"]).stdout.splitlines()
    assert [finding["result"] for finding in found] == [line.split()[0] for line in lines]
    # script(1) runs a command on a terminal of its own.
    terminal = 'script -qec "stty columns 60; $PROGRAM roots" /dev/null'
    table = host.sh(terminal, env={"PROGRAM": PROGRAM}).stdout.replace("\r", "").splitlines()
    rows = [line for line in table if line.startswith((name, "INSTANCE"))]
    assert len(rows) >= 2 and max(map(len, rows)) == 60
    assert rows[0].split() == ["INSTANCE", "AGE", "SIZE", "PATH", "WHAT", "HOLDS", "IT"]
    assert "/nix/" in rows[1] and "..." in rows[1]
    # As bash-completion calls the function (bash(1), Programmable Completion).
    complete = """
        . /usr/local/share/bash-completion/completions/inx-sidecar
        COMP_WORDS=(inx-sidecar $WORDS) COMP_CWORD=2
        _inx_sidecar_completion inx-sidecar
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    for words, proposal in (f"roots {name[:-1]}", name), ("check --js", "--json"):
        done = host.run(["bash", "-c", complete], env={"WORDS": words})
        assert proposal in done.stdout.split()


def test_check_finds_a_raw_lxc_without_the_hooks(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    incus("stop", name)
    incus.set(name, "raw.lxc=lxc.signal.halt = SIGTERM")
    status, [found] = check(host)
    assert status == 1
    subject = f"instance '{name}' of project 'default': the hooks of inx are missing: "
    assert found == (
        f"{subject}raw.lxc of '{name}' replaces that of its profiles; add to it the lines that "
        "'incus profile get inx raw.lxc' prints"
    )
    assert incus.start(name, check=False).returncode != 0
    hooks = incus("profile", "get", "inx", "raw.lxc").stdout
    # Incus still puts the failed start away.
    more = ["config", "set", name, f"raw.lxc={hooks}lxc.signal.halt = SIGTERM\n"]
    incus.eventually(lambda: incus(*more, check=False).returncode == 0, incus.story)
    assert check(host) == (0, [])
    incus.start(name)
    is_healthy(incus, name)


def test_check_finds_a_changed_profile(incus: Incus, host: Host) -> None:
    hooks = incus("profile", "get", "inx", "raw.lxc").stdout
    try:
        for left, missing in (
            (hooks.replace("lxc.hook.stop", "# lxc.hook.stop"), "lxc.hook.stop = "),
            ("lxc.signal.halt = SIGTERM", "lxc.init.cmd = "),
        ):
            incus("profile", "set", "inx", f"raw.lxc={left}")
            status, [found, *instances] = check(host)
            assert status == 1
            assert found.startswith("profile 'inx' of project 'default': raw.lxc lacks ")
            assert missing in found
            assert all(line.startswith("instance '") for line in instances)
    finally:
        incus("profile", "set", "inx", f"raw.lxc={hooks}")
    assert check(host) == (0, [])


def test_check_finds_a_missing_profile_and_says_how_to_make_it(incus: Incus, host: Host) -> None:
    incus("profile", "delete", "inx")
    try:
        status, [found] = check(host)
        assert status == 1
        command = found.partition("run '")[2].rstrip("'")
    except BaseException:
        host.sh("incus profile create inx </etc/inx/profile.yaml")
        raise
    host.sh(command)
    assert check(host) == (0, [])


def test_check_finds_a_stopped_socket_and_says_how_to_start_it(incus: Incus, host: Host) -> None:
    host.run(["systemctl", "stop", *UNITS])
    try:
        status, [found] = check(host)
        assert status == 1 and "inx-sidecar.socket" in found
        host.sh(found.partition("run '")[2].rstrip("'"))
    finally:
        host.run(["systemctl", "start", SOCKET])
    assert check(host) == (0, [])


@pytest.mark.parametrize("hook", ["pre-start", "stop"])
def test_check_finds_a_hook_that_cannot_run(host: Host, hook: str) -> None:
    path = f"/etc/inx/hooks/{hook}"
    host.run(["chmod", "a-x", path])
    try:
        status, [found] = check(host)
        assert status == 1 and found.startswith(f"{path}: ")
    finally:
        host.run(["chmod", "755", path])
    assert check(host) == (0, [])


def test_check_tries_to_reach_the_nix_daemon_as_the_user_of_builds(host: Host) -> None:
    conf = "/etc/nix/nix.conf"
    serves = "the Nix daemon serves inx-build: "
    units = "nix-daemon.socket nix-daemon.service"
    for breaks, repairs, says in (
        (
            f"cp -p {conf} {conf}.before; echo broken >>{conf}",
            f"mv {conf}.before {conf}",
            f"Nix: it does not run: syntax error in configuration line 'broken' in '{conf}'; ",
        ),
        (
            f"systemctl stop {units}",
            "",
            f"{serves}the Nix daemon does not run (Connection refused): run 'systemctl start "
            "nix-daemon.socket'",
        ),
        (
            "gpasswd -d inx-build nix-users",
            "",
            f"{serves}inx-build may not use the Nix daemon: run 'usermod -aG nix-users inx-build'",
        ),
        (
            f"cp -p {conf} {conf}.before; echo 'allowed-users = root' >>{conf}; "
            "systemctl restart nix-daemon",
            f"mv {conf}.before {conf}; systemctl restart nix-daemon",
            f"{serves}the Nix daemon closes the connection of inx-build: let allowed-users in ",
        ),
    ):
        host.sh(breaks)
        try:
            status, [found] = check(host)
            # Nix 2.34 quotes paths by '"'.
            assert status == 1 and found.replace('"', "'").startswith(says), found
        finally:
            host.sh(repairs or found.partition("run '")[2].rstrip("'"))
        assert check(host) == (0, [])


def test_check_finds_a_directory_that_the_sidecar_lost_and_a_home_of_another(host: Host) -> None:
    restart_sidecar(host)
    host.run(["rm", "-r", "/var/log/inx"])
    status, [found] = check(host)
    assert status == 1 and found.startswith("/var/log/inx takes files: it is missing; run '")
    host.run(["mkdir", "/var/log/inx"])
    status, [found] = check(host)
    assert status == 1 and found.startswith("/var/log/inx takes files: the sidecar cannot write ")
    host.sh(found.partition("run '")[2].rstrip("'"))
    assert check(host) == (0, [])
    host.run(["chown", "root:", "/var/lib/inx-build"])
    status, [found] = check(host)
    assert status == 1 and found.startswith("inx-build has a home, /var/lib/inx-build: ")
    host.sh(found.partition("run '")[2].rstrip("'"))
    assert check(host) == (0, [])


DOCKER = """
table ip filter {
    chain DOCKER-USER { counter return; }
    chain DOCKER-FORWARD { iifname "docker0" counter accept; }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        counter jump DOCKER-FORWARD
    }
}
"""


def test_check_warns_of_docker_until_the_bridge_is_accepted(host: Host) -> None:
    """The rules are those of Docker; the host has no Docker."""
    warnings = "inx-sidecar check | grep '^warn .*Docker' || :"
    host.run(["nft", "-f", "-"], input=DOCKER)
    try:
        told = host.sh(warnings).stdout
        assert told.count("\n") == 1 and "iptables -I DOCKER-USER -i incusbr0 -j ACCEPT" in told
        host.sh("nft insert rule ip filter DOCKER-USER iifname incusbr0 counter accept")
        assert host.sh(warnings).stdout == ""
    finally:
        host.run(["nft", "delete", "table", "ip", "filter"])
    assert host.sh(warnings).stdout == ""
