"""The Nix daemon of an instance: what it sees, its limits, and when it does not start."""

import json
import re

import pytest
from support.attacks import stalled
from support.daemon_builds import attempt, begin, command, launch
from support.disposable import Host
from support.incus import Incus
from support.services import journal, kill_sidecar, restart_sidecar, state_of, stopped_sidecar

pytestmark = pytest.mark.main


def unit(incus: Incus, name: str) -> str:
    return f"inx-nix-daemon@{incus.uuid(name)}.service"


def ping(incus: Incus, name: str) -> bool:
    return incus.inside(name, "timeout 60 nix store ping")


def of_unit(incus: Incus, name: str, field: str) -> str:
    argv = ["systemctl", "show", "--value", "-p", field, unit(incus, name)]
    return incus.host.run(argv).stdout.strip()


def seen(incus: Incus, name: str, script: str) -> str:
    """What a script prints among the mounts of the daemon."""
    argv = ["nsenter", "-m", "-t", of_unit(incus, name, "MainPID"), "sh", "-uc", script]
    return incus.host.run(argv, check=False).stdout


@pytest.mark.sid
def test_the_daemon_sees_little_of_the_host(incus: Incus, host: Host) -> None:
    host.sh("mkdir -p /root/.ssh /srv/secret; echo key >/root/.ssh/id_x")
    name = launch(incus)
    assert ping(incus, name)
    assert seen(incus, name, "find /root /home /srv /tmp /mnt /media -mindepth 1") == ""
    assert seen(incus, name, "ls -A /var") == "lib\n"
    assert set(seen(incus, name, "cd /etc; find . -type f").split()) == {
        "./passwd", "./group", "./hosts", "./nsswitch.conf", "./resolv.conf", "./nix/nix.conf",
        "./services", "./protocols", "./ssl/certs/ca-certificates.crt",
    }  # fmt: skip
    found = seen(incus, name, "find /run /var ! -type d ! -type l").split()
    uuid = incus.uuid(name)
    assert [path for path in found if not path.startswith(f"/var/lib/inx/{uuid}/")] == [
        "/run/inx/sidecar.sock"
    ]
    for path in ("/etc/x", "/run/x", "/usr/x", "/var/x", "/x", "/opt/x"):
        assert seen(incus, name, f"touch {path} 2>&1").endswith("Read-only file system\n"), path
    pid = of_unit(incus, name, "MainPID")
    variables = host.run(["cat", f"/proc/{pid}/environ"]).stdout.strip("\0").split("\0")
    assert {variable.partition("=")[0] for variable in variables} == {
        "PATH", "HOME", "LANG", "TMPDIR", "NIX_SSL_CERT_FILE",
        "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
    }  # fmt: skip


@pytest.mark.sid
def test_each_instance_has_build_users_of_its_own(incus: Incus, host: Host) -> None:
    names = [launch(incus), launch(incus, name=incus.name("b"))]
    users: list[set[int]] = []
    for name in names:
        begin(incus, name, command("exec sleep 5353", name=f"{name}-sleep"))

    def sleeping(name: str) -> set[int]:
        group = of_unit(incus, name, "ControlGroup")
        found = host.sh(
            f"for pid in $(cat /sys/fs/cgroup{group}/cgroup.procs); do "
            "grep -lz '^5353' /proc/$pid/cmdline >/dev/null && stat -c %u /proc/$pid; done || :"
        ).stdout.split()
        return {int(uid) for uid in found}

    for name in names:
        incus.eventually(lambda name=name: sleeping(name) != set(), incus.story)  # type: ignore[misc]
        users.append(sleeping(name))
    assert all(65536 <= uid < 100_000 for uid in users[0] | users[1])
    assert {uid // 32 for uid in users[0]} != {uid // 32 for uid in users[1]}
    # A build that begins kills all processes of its user; it ends no build of the other instance.
    status, log = attempt(incus, names[0], "id >&2; echo >$out")
    assert status == 0, log
    assert [sleeping(name) for name in names] == users
    owner = host.run(["stat", "-c", "%u %g %a", "/nix/store"]).stdout.split()
    assert owner == ["0", host.run(["getent", "group", "nixbld"]).stdout.split(":")[2], "1775"]


def test_the_daemon_has_the_limits_of_its_instance(incus: Incus) -> None:
    limits = ["limits.memory=700MiB", "limits.processes=300", "limits.cpu.allowance=50ms/100ms"]
    name = launch(incus, *[word for limit in limits for word in ("-c", limit)])
    fields = ("MemoryMax", "TasksMax", "CPUQuotaPerSecUSec")
    assert ping(incus, name)
    assert [of_unit(incus, name, field) for field in fields] == [str(700 << 20), "300", "500ms"]
    incus.set(name, "limits.memory=900MiB", "limits.processes=", "limits.cpu.allowance=")
    wanted = [str(900 << 20), "4096", "infinity"]
    incus.eventually(lambda: [of_unit(incus, name, f) for f in fields] == wanted, incus.story)
    memory = re.search(r"MemTotal: *(\d+)", incus.host.run(["cat", "/proc/meminfo"]).stdout)
    incus.set(name, "limits.memory=")
    incus("restart", "-f", name)
    incus.wait_ready(name)
    assert ping(incus, name)
    assert memory is not None
    half = int(memory[1]) * 1024 // 2
    assert abs(int(of_unit(incus, name, "MemoryMax")) - half) <= 1 << 20
    group = of_unit(incus, name, "ControlGroup")
    assert group.startswith("/inx.slice/inx-nix.slice/")


NAME_SERVERS = {
    "text": ("printf 'search x\\nnameserver 10.9.8.7\\noptions x\\n' >F", "nameserver 10.9.8.7\n"),
    "a link inside": ("mkdir -p /run/r; echo nameserver ::1 >/run/r/c; ln -s ../run/r/c F",
                      "nameserver ::1\n"),
    "a link out": ("ln -s /../../../../../etc/hostname F", ""),
    "a pipe": ("mkfifo F", ""),
    "endless": ("ln -s /dev/zero F", ""),
    "a directory": ("mkdir F", ""),
    "long": ("yes nameserver 10.1.1.1 | head -c 9000000 >F", "nameserver 10.1.1.1\n" * 3),
    "nothing": ("true", ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAME_SERVERS)
def test_name_servers_are_addresses_from_the_container(incus: Incus, kind: str) -> None:
    script, servers = NAME_SERVERS[kind]
    name = launch(incus)
    incus.sh(name, f"rm -f /etc/resolv.conf; {script.replace('F', '/etc/resolv.conf')}")
    assert ping(incus, name)
    assert seen(incus, name, "cat /etc/resolv.conf") == servers


def test_name_servers_are_followed_while_the_daemon_runs(incus: Incus, host: Host) -> None:
    name = launch(incus)
    assert ping(incus, name)
    before = of_unit(incus, name, "MainPID")
    for number, disturb in enumerate([None, restart_sidecar, kill_sidecar], 1):
        if disturb is not None:
            disturb(host)
        incus.sh(name, f"rm -f /etc/resolv.conf; echo nameserver 10.0.0.{number} >/etc/resolv.conf")
        wanted = f"nameserver 10.0.0.{number}\n"
        incus.eventually(
            lambda wanted=wanted: seen(incus, name, "cat /etc/resolv.conf") == wanted,  # type: ignore[misc]
            incus.story,
        )
    status, log = attempt(incus, name, "cat /etc/resolv.conf /etc/hosts >&2", fixed=True)
    assert status and "nameserver 10.0.0.3\n127.0.0.1 localhost\n::1 localhost\n" in log
    assert of_unit(incus, name, "MainPID") == before


def test_a_file_system_that_never_answers_delays_one_daemon_a_little(incus: Incus) -> None:
    name = launch(incus)
    incus.sh(name, "mkdir /stall; ln -sfn /stall/resolv.conf /etc/resolv.conf")
    with stalled(incus, name, "/stall"):
        assert ping(incus, name)
        assert seen(incus, name, "cat /etc/resolv.conf") == ""
        other = launch(incus, name=incus.name("b"))
        assert ping(incus, other)
    incus.wait_state(name, "STOPPED")
    incus.start(name)
    incus.wait_ready(name)


def test_without_the_network_of_the_container_there_is_no_daemon(incus: Incus, host: Host) -> None:
    name = launch(incus)
    uuid = incus.uuid(name)
    record = f"/run/inx/{uuid}/running.json"
    saved = host.run(["cat", record]).stdout
    for key, value in ("started", 1), ("pid", 1):
        host.run(["tee", record], input=json.dumps(json.loads(saved) | {key: value}))
        for _ in range(30):
            assert not ping(incus, name)
        assert state_of(host, unit(incus, name)) != "active"
        assert state_of(host, f"inx-nix-daemon@{uuid}.socket") == "active"
    host.run(["tee", record], input=saved)
    assert ping(incus, name)
    log = host.run(["journalctl", "-o", "cat", "-u", unit(incus, name)]).stdout
    assert f"the instance {uuid} does not run: its Nix daemon does not start" in log


def test_without_a_sidecar_no_daemon_starts_and_later_it_does(incus: Incus, host: Host) -> None:
    name = launch(incus)
    with stopped_sidecar(host):
        assert not ping(incus, name)
    assert ping(incus, name)
    with stopped_sidecar(host):
        assert ping(incus, name), "it runs by now"


def test_wrong_settings_keep_a_daemon_from_starting(incus: Incus, host: Host) -> None:
    name = launch(incus)
    host.run(["tee", "/etc/inx/config.toml"], input="builds_per_instance = 33")
    try:
        assert not ping(incus, name)
    finally:
        host.run(["rm", "/etc/inx/config.toml"])
    log = host.run(["journalctl", "-o", "cat", "-u", unit(incus, name)]).stdout
    assert "builds_per_instance is 33; allowed: a whole number from 1 to 32" in log
    assert ping(incus, name)


def test_the_daemon_of_an_older_inx_ends_when_the_sidecar_comes(incus: Incus, host: Host) -> None:
    """It is in the network of the host."""
    name = launch(incus)
    assert ping(incus, name)
    before = of_unit(incus, name, "MainPID")
    host.run(["rm", "-r", f"/run/inx/{incus.uuid(name)}/etc"])
    restart_sidecar(host)
    incus.eventually(lambda: of_unit(incus, name, "MainPID") != before, incus.story)
    assert ping(incus, name)
    assert not [line for line in journal(host, name) if "error" in line]
