"""A user inside a container: the store, Nix without any environment, and every restart."""

from subprocess import CompletedProcess
from typing import Any

import pytest
from support.disposable import Host
from support.incus import Incus
from support.store import exists

pytestmark = pytest.mark.main

BIN = "/run/current-system/sw/bin"
# Options of incus exec for a user without rights.
PERSON = ["--user", "1000", "--group", "1000"]
PASSWD = """root:x:0:0:root:/root:/bin/sh
person:x:1000:1000:person:/home/person:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
# A derivation that needs no network and no bash.
DERIVATION = """{ text ? "inside" }:
let gathered = builtins.fromJSON (builtins.readFile ./deps.json);
in derivation {
  name = "probe-${text}";
  system = gathered.system;
  builder = "${builtins.storePath gathered.busybox}/bin/sh";
  args = [ "-c" "echo ${text} >$out" ];
}
"""
MOUNTS = {
    "/nix/store": "ro",
    "/nix/var/nix": "ro",
    "/nix/var/nix/daemon-socket": "ro",
    "/nix/var/nix/profiles": "rw",
    "/nix/var/nix/gcroots": "rw",
    "/dev/.inx": "ro",
}


def launch(incus: Incus, **config: str) -> str:
    """An instance with a user `person` and the probe in /etc/probe."""
    name = incus.launch(flake=f"{incus.flake(passwd=PASSWD)}#web", **config)
    incus.sh(name, "mkdir -p /etc/probe /home/person; chown 1000:1000 /home/person")
    push(incus, name, "/etc/probe/default.nix", DERIVATION)
    deps = incus.host.run(["cat", "/etc/nixos/deps.json"]).stdout
    push(incus, name, "/etc/probe/deps.json", deps)
    return name


def push(incus: Incus, name: str, path: str, text: str) -> None:
    incus.sh(name, f"cat >{path}", input=text)


def bare(
    incus: Incus, name: str, tool: str, *args: str, check: bool = True, user: bool = False
) -> CompletedProcess[str]:
    """Run one of Nix's programs with no environment at all."""
    who = PERSON if user else []
    argv = ["exec", name, *who, "--", "env", "-i", f"{BIN}/{tool}", *args]
    return incus(*argv, check=check)


def heard(
    incus: Incus, name: str, tool: str, *args: str, check: bool = True, user: bool = False
) -> str:
    """What one of Nix's programs prints to stderr; without `check`, the program has to fail.

    incus exec may lose all output of a program. So the program, which changes nothing, runs again
    while there is none.
    """
    done: list[CompletedProcess[str]] = []

    def has_output() -> bool:
        done[:] = [bare(incus, name, tool, *args, check=check, user=user)]
        assert check or done[0].returncode != 0
        return done[0].stderr != ""

    incus.eventually(has_output, lambda: f"{tool} prints nothing in {name}")
    return done[0].stderr


def build_probe(incus: Incus, name: str) -> str:
    """The output of the probe, to which /root/one leads."""
    build = ["env", "-i", f"{BIN}/nix-build", "/etc/probe", "-o", "/root/one"]
    return incus.said(name, *build).strip()


def auto(incus: Incus, name: str) -> set[str]:
    """The paths that the instance has registered as roots on the host."""
    directory = f"/var/lib/inx/{incus.uuid(name)}/auto"
    return set(incus.host.sh(f"find {directory} -type l -printf '%l\\n'").stdout.split())


@pytest.mark.sid
def test_the_store_is_roots_and_every_mount_has_its_flags(incus: Incus) -> None:
    name = launch(incus)
    assert incus.said(name, "id").strip() == "uid=0(root) gid=0(root)"
    foreign = incus.sh(name, "find /nix ! -user 0; find /nix/store/* ! -group 0").stdout
    assert foreign == ""
    assert incus.sh(name, "find /dev/.inx -user 0 -o -group 0").stdout == ""
    table = incus.said(name, "cat", "/proc/self/mountinfo").splitlines()
    found = {
        fields[4]: (fields[5].split(","), fields) for line in table if (fields := line.split())
    }
    inx = {path for path in found if path.startswith(("/nix", "/dev/.inx"))}
    assert inx == set(MOUNTS)
    for path, access in MOUNTS.items():
        flags, fields = found[path]
        assert {access, "nosuid", "nodev"} <= set(flags), (path, flags)
        assert not any(word.startswith("master:") for word in fields), "the host's peer"


def test_a_setuid_program_in_the_store_gives_nothing(incus: Incus, host: Host) -> None:
    """Nix removes the bit. A program that got the bit by hand has no more rights than before.

    ldconfig is static, does not look at its own rights, and writes here where only root can.
    """
    name = launch(incus)
    store = f"/nix/store/{incus.prefix}-setuid"
    host.sh('cp /usr/sbin/ldconfig "$P"; chmod 4755 "$P"', env={"P": store})
    try:
        assert incus.said(name, "stat", "-c", "%a %u", store).strip() == "4755 0"
        incus.run(name, "cp", "-p", store, "/usual")
        for program, works in (("/usual", True), (store, False)):
            write = [program, "-C", "/etc/probe/cache", "-f", "/dev/null", "-X"]
            done = incus("exec", name, *PERSON, "--", *write, check=False)
            assert (done.returncode == 0) == works, (program, done)
            assert ("Permission denied" in done.stderr) == (not works)
    finally:
        host.run(["rm", store])


@pytest.mark.sid
def test_nix_works_with_no_environment(incus: Incus, host: Host) -> None:
    name = launch(incus)
    before = host.run(["ls", "/nix/var/nix/gcroots/auto"]).stdout
    assert "Store URL: daemon" in heard(incus, name, "nix", "store", "info")

    output = build_probe(incus, name)
    assert incus.said(name, "cat", output) == "inside\n"
    bare(incus, name, "nix", "build", "-f", "/etc/probe", "-o", "/root/two")
    bare(incus, name, "nix-store", "--add-root", "/root/three", "--realise", output)
    profile = "/nix/var/nix/profiles/mine"
    bare(incus, name, "nix-env", "--profile", profile, "--set", output)
    assert incus.said(name, "readlink", "-f", profile).strip() == output
    assert auto(incus, name) == {"/root/one", "/root/two", "/root/three", f"{profile}-1-link"}
    assert host.run(["ls", "/nix/var/nix/gcroots/auto"]).stdout == before

    # nix-shell runs bash with a file. This small system has no bash: a script reads the file.
    push(incus, name, "/root/shell", '#!/bin/sh\ngrep -o "echo for the shell" "$1"; echo $name\n')
    incus.run(name, "chmod", "+x", "/root/shell")
    shell = ["env", "-i", "NIX_BUILD_SHELL=/root/shell", f"{BIN}/nix-shell", "/etc/probe"]
    said = incus.said(name, *shell, "--run", "echo for the shell")
    assert said.splitlines() == ["echo for the shell", "probe-inside"]


def test_nix_works_for_users_and_for_services(incus: Incus) -> None:
    name = launch(incus)
    bare(incus, name, "nix-build", "/etc/probe", "-o", "/home/person/one", user=True)
    bare(incus, name, "nix", "build", "-f", "/etc/probe", "-o", "/home/person/two", user=True)
    bare(incus, name, "nix-env", "-p", "/home/person/p", "--set", "/home/person/one", user=True)
    assert "Store URL: daemon" in heard(incus, name, "nix", "store", "info", user=True)
    # Like a service of init: a session of its own, no terminal, no parent, no environment.
    incus.sh(
        name,
        f"env -i {BIN}/setsid {BIN}/sh -c 'env -i {BIN}/nix-build /etc/probe -o /root/service "
        ">/root/log 2>&1; echo $? >/root/status' </dev/null >/dev/null 2>&1 &",
    )
    incus.eventually(
        lambda: incus.run(name, "cat", "/root/status", check=False).stdout == "0\n",
        lambda: incus.sh(name, "cat /root/status /root/log", check=False).stdout,
    )
    home = "/home/person"
    assert auto(incus, name) == {f"{home}/one", f"{home}/two", f"{home}/p-1-link", "/root/service"}


def test_incus_exec_finds_programs_without_a_login_shell(incus: Incus) -> None:
    """Incus adds the directory of the system to PATH, because there is /etc/NIXOS."""
    name = launch(incus)
    assert BIN in incus.said(name, "sh", "-euc", "echo $PATH").strip().split(":")
    assert incus.said(name, "nix", "--version").startswith("nix (Nix) ")


def test_no_collection_can_be_started_inside(incus: Incus, host: Host) -> None:
    name = launch(incus)
    output = build_probe(incus, name)
    incus.run(name, "rm", "/root/one")
    garbage = host.sh("echo $RANDOM >/root/junk; nix-store --add /root/junk").stdout.strip()
    before = host.run(["find", "/nix/store", "-maxdepth", "1"]).stdout
    for tool, *args in (
        ["nix-collect-garbage"],
        ["nix-collect-garbage", "-d"],
        ["nix-store", "--gc"],
        ["nix", "store", "gc"],
        ["nix-store", "--delete", output],
    ):
        said = heard(incus, name, tool, *args, check=False)
        assert "cannot bind to socket at '/nix/var/nix/gc-socket/socket'" in said
    assert host.run(["find", "/nix/store", "-maxdepth", "1"]).stdout == before
    assert garbage in before and output in before


def test_without_a_daemon_nix_says_that_there_is_none(incus: Incus, host: Host) -> None:
    name = launch(incus, daemon="false")
    assert host.run(["ls", f"/run/inx/{incus.uuid(name)}"]).stdout.split().count("socket") == 0
    said: dict[str, str] = {}
    for user in False, True:
        text = heard(incus, name, "nix", "store", "info", check=False, user=user)
        said["person" if user else "root"] = text
    for text in said.values():
        assert "/nix/var/nix/daemon-socket/socket" in text, said


@pytest.mark.parametrize("daemon", ["true", "false"])
def test_nobody_gets_a_store_database_of_their_own(incus: Incus, daemon: str) -> None:
    name = launch(incus, daemon=daemon)
    for store in "local", "auto":
        bare(incus, name, "nix", "--store", store, "path-info", "--all", check=False)
    bare(incus, name, "nix-store", "--init", check=False)
    made = incus.sh(name, "mkdir /nix/var/nix/db || touch /nix/var/nix/db", check=False)
    assert "Read-only file system" in made.stderr
    listed = incus.said(name, "ls", "/nix/var/nix").split()
    assert set(listed) <= {"daemon-socket", "gcroots", "profiles"}


def test_every_way_to_restart_keeps_the_store_and_the_daemon(incus: Incus) -> None:
    name = launch(incus)
    bare(incus, name, "nix-build", "/etc/probe", "-o", "/root/one")

    def restarted(do: list[str], **options: Any) -> None:
        # /run is new after a restart, so that this file is gone.
        incus.run(name, "touch", "/run/before")
        incus(*do, check=False, **options)
        incus.eventually(
            lambda: (
                incus.sh(name, f"test ! -e /run/before; test -e {BIN}", check=False).returncode == 0
            ),
            lambda: f"{do}: {incus.story()}",
        )
        bare(incus, name, "nix-build", "/etc/probe", "-o", "/root/two")
        assert incus.said(name, "sh", "-euc", "cat /root/one /root/two") == "inside\ninside\n"
        table = incus.said(name, "cat", "/proc/self/mountinfo").split()
        assert [table.count(path) for path in MOUNTS] == [1] * len(MOUNTS)

    restarted(["exec", name, "--", "busybox", "reboot", "-f"])
    restarted(["exec", name, "--", "reboot"])
    restarted(["restart", name])
    restarted(["restart", "-f", name])
    incus("exec", name, "--", "kill", "-TERM", "1", check=False)
    incus.wait_state(name, "STOPPED")
    incus.eventually(lambda: incus.start(name, check=False).returncode == 0, lambda: incus.story())
    incus.wait_ready(name)
    assert auto(incus, name) == {"/root/one", "/root/two"}


def test_an_instance_sees_nothing_of_the_others(incus: Incus) -> None:
    names = [launch(incus), incus.launch(name=incus.name("b"), flake="/etc/nixos#second")]
    other = incus.uuid(names[1])
    look = """
        ls -A /dev/.inx/.. /nix/var/nix/daemon-socket/..
        find / -xdev
        cat /proc/self/mountinfo /proc/*/environ /proc/*/cmdline
    """
    seen = incus.sh(names[0], look, check=False).stdout
    assert incus.uuid(names[0]) in seen
    assert other not in seen and "sidecar.sock" not in seen
    files = incus.said(names[0], "ls", "-A", "/dev/.inx", "/nix/var/nix/daemon-socket").split(
        "\n\n"
    )
    assert [part.split()[1:] for part in files] == [["busybox", "init", "ready"], ["socket"]]


# Makes a derivation and its output in another store, and a binary cache of both.
AFAR = """
    nix="nix --extra-experimental-features nix-command" other="local?root=/srv/other"
    busybox=$(readlink /nix/var/nix/gcroots/inx-example/busybox)
    $nix copy --no-check-sigs --to "$other" "$busybox"
    drv=$(nix-instantiate --store "$other" -E "derivation {
        name = \\"$NAME\\"; system = \\"$(uname -m)-linux\\";
        builder = builtins.appendContext \\"$busybox/bin/sh\\" { \\"$busybox\\".path = true; };
        args = [ \\"-c\\" \\"echo afar >\\$out\\" ];
    }")
    out=$(nix-store --store "$other" --realise "$drv")
    $nix copy --from "$other" --to file:///srv/cache "$out"
    $nix copy --from "$other" --to file:///srv/cache --derivation "$drv"
    echo "$drv $out"
"""


def test_a_copied_path_needs_a_signature_and_a_built_path_none(incus: Incus, host: Host) -> None:
    """docs/secrets-and-deployment.md tells so, with and without `--build-host`."""
    name = launch(incus)
    drv, out = host.sh(AFAR, env={"NAME": f"{name}-afar"}).stdout.split()
    try:
        incus("file", "push", "-r", "-q", "/srv/cache", f"{name}/")
        nix = ["nix", "--extra-experimental-features", "nix-command"]
        refused = heard(incus, name, *nix, "copy", "--from", "file:///cache", out, check=False)
        assert "lacks a signature by a trusted key" in refused
        assert not exists(host, out)
        bare(incus, name, *nix, "copy", "--from", "file:///cache", "--derivation", drv)
        bare(incus, name, "nix-store", "--realise", "--add-root", "/root/result", drv)
        incus.sh(name, "[ $(cat /root/result) = afar ]")
    finally:
        host.sh("chmod -R u+w /srv/other; rm -rf /srv/other /srv/cache")


def test_allowed_users_of_the_host_do_not_limit_users_inside(incus: Incus, host: Host) -> None:
    """Users inside are not in any list of the host, and may use Nix nevertheless."""
    host.sh("cp /etc/nix/nix.conf /root/nix.conf; echo allowed-users = root >>/etc/nix/nix.conf")
    try:
        name = launch(incus)
        bare(incus, name, "nix-build", "/etc/probe", "-o", "/home/person/result", user=True)
        bare(incus, name, "nix-build", "/etc/probe", "-o", "/root/result")
    finally:
        host.sh("mv /root/nix.conf /etc/nix/nix.conf")
