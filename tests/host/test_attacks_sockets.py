"""Containers and unprivileged users attack the sidecar and the Nix daemons by their sockets."""

import pytest
from support.disposable import Host
from support.fingerprint import unchanged
from support.incus import POOL, Incus
from support.services import state_of
from support.store import exists

pytestmark = pytest.mark.main

UNPRIVILEGED = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
TALK = """
import socket, sys
try:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(sys.argv[1])
        channel.sendall(sys.argv[2].encode().replace(b"|", b"\\0"))
        channel.shutdown(socket.SHUT_WR)
        print("heard", channel.recv(100))
except ConnectionError:
    print("heard b''")
except OSError as error:
    print(error.strerror)
"""


def as_nobody(host: Host, path: str, send: str) -> str:
    """What the socket answers to a user of the host without any rights, or the error."""
    return host.run([*UNPRIVILEGED, "python3", "-I", "-c", TALK, path, send]).stdout.strip()


def test_only_root_speaks_to_the_sidecar(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    socket = "/run/inx/sidecar.sock"
    assert host.run(["stat", "-c", "%a %U", socket]).stdout.strip() == "600 root"
    request = f"stop|LXC_NAME={name}|LXC_ROOTFS_PATH={POOL}/{name}/rootfs|LXC_TARGET=stop"
    assert as_nobody(host, socket, request) == "Permission denied"
    host.run(["chmod", "666", socket])
    try:
        assert as_nobody(host, socket, request) == "heard b''"
    finally:
        host.run(["chmod", "600", socket])
    assert incus.run(name, "nix", "store", "info").returncode == 0
    for path in ("/var/log/inx", f"/var/lib/inx/{incus.uuid(name)}/auto/x"):
        done = host.run(["setpriv", "--reuid=nobody", "--clear-groups", "ls", path], check=False)
        assert "Permission denied" in done.stderr or path.endswith("x")


def test_an_instances_daemon_serves_no_user_of_the_host(incus: Incus, host: Host) -> None:
    """A user of the host uses the daemon of the host; on Debian, only the group nix-users may."""
    name = incus.launch(flake="/etc/nixos#web")
    assert as_nobody(host, "/nix/var/nix/daemon-socket/socket", "") == "Permission denied"
    socket = f"/run/inx/{incus.uuid(name)}/daemon-socket/socket"
    assert as_nobody(host, socket, "") == "Permission denied"


@pytest.mark.parametrize("privileged", ["false", "true"])
def test_the_daemon_trusts_no_container(incus: Incus, host: Host, privileged: str) -> None:
    """Settings that only a trusted user may choose are ignored, unsigned paths refused."""
    options = ["-c", f"security.privileged={privileged}"]
    trap = f"/srv/{incus.prefix}-trap"
    host.sh(
        'mkdir -m 777 "$D"; printf "#!/bin/sh\\ntouch $D/hit" >"$D/hook"; chmod 755 "$D/hook"; '
        'echo secret >"$D/secret"',
        env={"D": trap},
    )
    name = incus.launch(*options, flake="/etc/nixos#web", daemon="true")
    told = incus.run(name, "nix", "store", "info")
    assert "Trusted: 0" in told.stderr + told.stdout
    expression = """derivation {
        name = "probe-%s"; system = "%s"; __noChroot = true; builder = builtins.storePath "%s";
        args = [ "sh" "-c" "if [ -e %s/secret ]; then echo out; else echo in; fi >$out" ]; }"""
    kind = incus.said(name, "cat", "/run/current-system/system")
    shell = incus.said(name, "readlink", "-f", "/bin/sh").strip()
    hostile = {
        "post-build-hook": f"{trap}/hook",
        "diff-hook": f"{trap}/hook",
        "run-diff-hook": "true",
        "build-hook": f"{trap}/hook",
        "builders": f"ssh-ng://x?remote-program={trap}/hook {kind}",
        "pre-build-hook": f"{trap}/hook",
        "sandbox": "relaxed",
        "sandbox-paths": trap,
        "extra-sandbox-paths": trap,
        "trusted-users": "*",
        "require-sigs": "false",
        "secret-key-files": "/etc/shadow",
    }
    settings = [word for key, value in hostile.items() for word in ("--option", key, value)]
    text = expression % (incus.prefix, kind, shell, trap)
    build = ["nix", "build", "--impure", "--expr", text, "-o", "/root/result", *settings]
    done = incus.run(name, *build, check=False)
    if done.returncode:
        # Nix may refuse a build without a sandbox, instead of using a sandbox.
        assert "sandbox" in done.stderr, done
        done = incus.run(name, *build[:4], text.replace("__noChroot = true;", ""), *build[5:])
    assert "not a trusted user" in done.stderr
    assert incus.said(name, "cat", "/root/result") == "in\n"
    assert host.run(["ls", trap]).stdout.split() == ["hook", "secret"]

    # This store does not know the path, and the path has no signature.
    output = incus.said(name, "readlink", "/root/result").strip()
    incus.sh(name, f"nix-store --export {output} >/root/export; rm /root/result")
    host.run(["nix-store", "--delete", output])
    done = incus.sh(name, "nix-store --import </root/export", check=False)
    assert done.returncode != 0 and "signature" in done.stderr, done
    done = incus.sh(
        name, "nix-store --import --option require-sigs false </root/export", check=False
    )
    assert done.returncode != 0 and "signature" in done.stderr, done
    assert not exists(host, output)


def test_a_privileged_container_has_no_daemon_unless_asked_for(incus: Incus, host: Host) -> None:
    name = incus.launch("-c", "security.privileged=true", flake="/etc/nixos#web")
    uuid = incus.uuid(name)
    assert host.sh(f"ss -xl | grep {uuid} || :").stdout == ""
    assert state_of(host, f"inx-nix-daemon@{uuid}.socket") == "inactive"
    with unchanged(host):
        assert incus.run(name, "nix", "store", "info", check=False).returncode != 0
        incus.set(name, "user.inx.daemon=true")
        incus("restart", "-f", name)
        incus.wait_ready(name)
        assert incus.run(name, "nix", "store", "info").returncode == 0
