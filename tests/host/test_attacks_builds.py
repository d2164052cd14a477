"""Root of a container uses the Nix daemon of its instance to leave the walls of the container."""

import itertools
import shlex

import pytest
from support.daemon_builds import (
    attempt,
    begin,
    command,
    launch,
    requests,
    web_server,
)
from support.disposable import Host
from support.incus import Incus
from support.store import exists

pytestmark = pytest.mark.main

CONF = "/etc/nix/nix.conf"
NETRC = ["/etc/nix/netrc", "/root/.netrc", "/srv/netrc"]
PORTS = itertools.count(18100)
KINDS = {
    "without NIC": [],
    "with NIC": [],
    "privileged": ["-c", "security.privileged=true"],
}


def netns(host: Host, pid: int) -> str:
    return host.run(["readlink", f"/proc/{pid}/ns/net"]).stdout.strip()


@pytest.mark.parametrize("kind", KINDS)
def test_builds_have_the_network_of_their_container(incus: Incus, host: Host, kind: str) -> None:
    name = launch(incus, *KINDS[kind], nic=kind != "without NIC", daemon="true")
    port, taken = next(PORTS), next(PORTS)
    script = f"""
        echo "the namespace is $(readlink /proc/self/ns/net)" >&2
        wget -T 5 -q -O - http://127.0.0.1:{port}/loopback >&2
        wget -T 5 -q -O - http://localhost:{port}/name >&2
        timeout 1 httpd -f -p 127.0.0.1:{taken}
        echo "the port was held: $?" >&2
    """
    with web_server(host, port) as seen, web_server(host, taken):
        status, log = attempt(incus, name, script, fixed=True)
        attempt(incus, name, "", url=f"http://127.0.0.1:{port}/url")
        assert requests(host, seen) == []
    assert status != 0
    assert f"the namespace is {netns(host, incus.pid(name))}" in log
    assert "the port was held: 143" in log, "nobody else has this port in the container"


def test_builds_reach_what_their_container_reaches(incus: Incus, host: Host) -> None:
    name = launch(incus)
    port = next(PORTS)
    script = f"wget -T 5 -q -O - http://127.0.0.1:{port}/built >&2"
    with web_server(host, port, netns_of=incus.pid(name)) as seen:
        attempt(incus, name, script, fixed=True)
        attempt(incus, name, "", url=f"http://localhost:{port}/fetched")
        assert [line.split()[0] for line in requests(host, seen)][:2] == ["/built", "/fetched"]


def test_no_credentials_of_the_host_are_sent(incus: Incus, host: Host) -> None:
    name = launch(incus)
    port = next(PORTS)
    secret = "machine localhost login host password secret\n"
    for path in NETRC:
        host.sh(f"cat >{path}", input=secret)
    host.sh(f"cp {CONF} /root/saved; echo netrc-file = /srv/netrc >>{CONF}")
    try:
        with web_server(host, port, netns_of=incus.pid(name)) as seen:
            attempt(incus, name, "", url=f"http://localhost:{port}/one")
            restart = f"systemctl stop inx-nix-daemon@{incus.uuid(name)}.service"
            host.sh(f"cp /root/saved {CONF}; {restart}")
            attempt(incus, name, "", url=f"http://localhost:{port}/two")
            assert {*requests(host, seen)} == {"/one None", "/two None"}
    finally:
        host.sh(f"mv /root/saved {CONF}; rm {shlex.join(NETRC)}")


def test_sleeping_builds_delay_no_other_build(incus: Incus, host: Host) -> None:
    """Neither a build of the host, nor one of another instance."""
    name = launch(incus)
    other = launch(incus, name=incus.name("b"))
    for number in range(12):
        begin(incus, name, command("exec sleep 4242", name=f"{name}-sleep-{number}"))
    incus.eventually(
        lambda: int(host.sh("pgrep -cf '^sleep 4242' || :").stdout) >= 8,
        lambda: host.run(["ps", "ax"]).stdout,
    )
    deps = "(builtins.fromJSON (builtins.readFile /etc/nixos/deps.json))"
    text = f"""derivation {{
        name = "{name}-quick"; system = {deps}.system; args = [ "-c" "echo >$out" ];
        builder = "${{builtins.storePath {deps}.busybox}}/bin/sh";
    }}"""
    host.run(["nix-build", "--no-out-link", "--store", "daemon", "-E", text], timeout=60)
    status, log = attempt(incus, other, "echo >$out")
    assert status == 0, log
    users = host.sh("ps -o user:32= -C sleep | sort -u").stdout.split()
    assert users and not [user for user in users if user.startswith("nixbld")]


def test_failed_builds_that_are_kept_vanish_with_the_daemon(incus: Incus, host: Host) -> None:
    name = launch(incus)
    before = host.run(["ls", "/tmp"]).stdout
    count = "find /nix/var/nix/inx-builds /nix/var/nix/builds -name kept | wc -l"
    status, log = attempt(incus, name, "echo much >kept; exit 1", "--keep-failed")
    assert status != 0 and "keeping build directory" in log
    assert host.run(["ls", "/tmp"]).stdout == before
    assert host.sh(count).stdout.strip() == "1"
    incus("restart", "-f", name)
    incus.wait_ready(name)
    incus.eventually(lambda: host.sh(count).stdout.strip() == "0", lambda: host.sh(count).stdout)


@pytest.mark.parametrize("how", ["restart", "reboot inside", "stop and start"])
def test_a_daemon_ends_with_its_container(incus: Incus, host: Host, how: str) -> None:
    """A reboot gives another network namespace: no daemon may stay in the former one."""
    name = launch(incus)
    unit = f"inx-nix-daemon@{incus.uuid(name)}.service"

    def daemon() -> int:
        return int(host.run(["systemctl", "show", "--value", "-p", "MainPID", unit]).stdout)

    incus.sh(name, "nix store ping")
    before = daemon()
    assert netns(host, before) == netns(host, incus.pid(name))
    incus.run(name, "touch", "/run/before")
    match how:
        case "restart":
            incus("restart", "-f", name)
        case "reboot inside":
            incus.run(name, "reboot", check=False)
        case _:
            incus("stop", name)
            incus.eventually(lambda: daemon() == 0, incus.story)
            incus.start(name)
    incus.eventually(lambda: incus.inside(name, "test ! -e /run/before"), incus.story)
    incus.wait_inside(name)
    incus.eventually(lambda: daemon() != before, incus.story)
    incus.sh(name, "nix store ping")
    assert daemon() not in (0, before)
    assert netns(host, daemon()) == netns(host, incus.pid(name))


# Builds a path that the host does not have, and makes a binary cache with it; prints the path and a
# public key that signs it. The path depends on inputs, so its name does not prove its contents.
CACHE = """
    nix="nix --extra-experimental-features nix-command" other="local?root=/srv/afar"
    busybox=$(readlink /nix/var/nix/gcroots/inx-example/busybox)
    $nix copy --no-check-sigs --to "$other" "$busybox"
    drv=$(nix-instantiate --store "$other" -E "derivation {
        name = \\"$NAME\\"; system = \\"$(uname -m)-linux\\";
        builder = builtins.appendContext \\"$busybox/bin/sh\\" { \\"$busybox\\".path = true; };
        args = [ \\"-c\\" \\"echo afar >\\$out\\" ];
    }")
    out=$(nix-store --store "$other" --realise "$drv")
    nix-store --generate-binary-cache-key "$NAME" /srv/afar/secret /srv/afar/public
    $nix store sign --store "$other" --key-file /srv/afar/secret "$out"
    $nix copy --from "$other" --to file:///srv/cache "$out"
    echo "$out $(cat /srv/afar/public)"
"""


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_a_cache_in_the_network_of_the_container(incus: Incus, host: Host, signed: bool) -> None:
    """The substituters of the host are reached there. Whoever answers, only a signature counts."""
    name = launch(incus)
    port = next(PORTS)
    path, key = host.sh(CACHE, env={"NAME": f"{incus.prefix}-afar"}).stdout.split()
    lines = [
        f"substituters = http://127.0.0.1:{port}?trusted=true",
        "require-sigs = false",
        f"extra-trusted-public-keys = {key if signed else ''}",
    ]
    host.sh(f"cp {CONF} /root/saved; cat >>{CONF}", input="\n".join(lines))
    serve = (
        f"exec nsenter -n -t {incus.pid(name)} busybox httpd -f -p 127.0.0.1:{port} -h /srv/cache"
    )
    try:
        host.run(["systemd-run", "--quiet", f"--unit=cache-{port}", "sh", "-c", serve])
        incus.eventually(
            lambda: incus.inside(name, f"wget -qO - http://127.0.0.1:{port}/nix-cache-info"),
            incus.story,
        )
        done = incus.sh(name, f"nix-store --realise {path}", check=False)
        assert (done.returncode == 0) == signed, done
        assert exists(host, path) == signed
    finally:
        host.sh(f"mv /root/saved {CONF}; systemctl stop cache-{port}")
        host.sh("chmod -R u+w /srv/afar; rm -rf /srv/afar /srv/cache")
