"""Mistakes that are likely: the status names what is wrong, and what to do about it."""

import contextlib
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.hostile_sources import git_repository
from support.incus import Incus
from support.services import UNITS, check, restart_sidecar, sync
from support.sources import broken, derivation, offer, source

pytestmark = pytest.mark.main

ALICE = "inx-alice"
STATE = "/var/lib/inx"
# More names than are shown, some of them as an attacker chooses them.
MANY = r"""nixosConfigurations = let
    big = builtins.concatStringsSep "" (builtins.genList (_: "0123456789") 300000);
    red = builtins.fromJSON "\"\\u001b[31mred\"";
  in builtins.listToAttrs (map (name: { inherit name; value = 1; })
    (["web" "a\nfailed: b" red "x y"]
     ++ builtins.genList (n: "host${toString n}" + (if n == 7 then big else "")) 500));"""


@pytest.fixture
def alice(host: Host) -> Iterator[str]:
    """A user of the host that may not use the Nix daemon: it is not in the group of the socket."""
    host.run(["useradd", "--create-home", ALICE])
    yield ALICE
    host.run(["userdel", "--remove", ALICE], check=False)


def failures(incus: Incus, sources: dict[str, dict[str, str]]) -> dict[str, str]:
    """The reasons, by name of the instance, of builds of these sources that fail."""
    for name, keys in sources.items():
        incus.init(name=name, **keys)
    incus("start", *sources)
    return {
        name: incus.wait_status(name, "failed: ").partition(f"system of {name!r} from ")[2]
        for name in sources
    }


def test_a_missing_attribute_is_answered_by_the_names_that_are_there(
    incus: Incus, host: Host
) -> None:
    flake = incus.flake("web", "second", "systemd")
    many = incus.flake_text(MANY, f"/srv/{incus.prefix}-many")
    none = incus.flake_text("packages = { };", f"/srv/{incus.prefix}-none")
    empty = incus.flake_text(
        "nixosConfigurations.web = { };", directory=f"/srv/{incus.prefix}-empty"
    )
    file = f"/srv/{incus.prefix}.nix"
    host.sh('cat >"$F"', env={"F": file}, input="{ x ? 1 }: { hosts = { web = x; db = x; }; }")
    bare = incus.flake_text("nixosConfigurations = { };", f"/srv/{incus.prefix}-bare")
    b, c, d, e, f, g = (incus.name(each) for each in "bcdefg")
    found = failures(
        incus,
        {
            incus.name("wbe"): {"flake": f"{flake}#wbe"},
            b: {"flake": f"{many}#wbe"},
            c: {"flake": f"{none}#web"},
            d: {"flake": f"{empty}#web"},
            e: {"file": file, "attr": "hosts.wbe"},
            f: {"file": file},
            g: {"flake": f"{bare}#web"},
        },
    )
    assert found == {
        incus.name("wbe"): f"{flake}#wbe: {flake} has no nixosConfigurations.wbe; it has web, "
        f"second, systemd; set user.inx.flake={flake}#web",
        b: f"{many}#wbe: {many} has no nixosConfigurations.wbe; it has web, host0, host1, "
        f"host10, host100, host101 and 498 more; set user.inx.flake={many}#web",
        c: f"{none}#web: {none} has no nixosConfigurations: define nixosConfigurations.web in its "
        "outputs, or name another flake",
        d: f"{empty}#web: nixosConfigurations.web of {empty} has no config.system.build.toplevel: "
        "make it by nixpkgs.lib.nixosSystem { modules = [ ... ]; }",
        g: f"{bare}#web: {bare} has no nixosConfigurations.web, and no other one: define "
        "nixosConfigurations.web in its outputs, or name another flake",
        e: f"{file} -A hosts.wbe: {file} has no hosts.wbe; it has hosts.web, hosts.db; set "
        "user.inx.attr=hosts.web",
        f: f"{file} -A {f}: {file} has no {f}; it has hosts; set user.inx.attr=NAME",
    }


def test_the_position_and_the_builders_last_words_are_in_the_status(
    incus: Incus, host: Host
) -> None:
    """Of a start, and of an update that fails; an isolated instance reads no names of the store,
    but learns how the host shows them."""
    syntax = incus.flake_text("nixosConfigurations.web = ; ", f"/srv/{incus.prefix}-syntax")
    script = "echo one; echo 'x.c:3: error: no such type'; echo 'make: Error 1'; exit 3"
    fails = offer(incus, derivation("thing", script), f"/srv/{incus.prefix}-fails")
    name, isolated = incus.name("a"), incus.name("b")
    found = failures(
        incus,
        {
            name: {"flake": f"{syntax}#web"},
            isolated: {"flake": f"{fails}#web", "store": "isolated"},
        },
    )
    log = f"/var/log/inx/{incus.uuid(name)}.build.log"
    assert found[name] == (
        f"{syntax}#web: syntax error, unexpected ';' at flake.nix:6:42; {log} has the rest"
    )
    assert "^" in host.run(["cat", log]).stdout
    log = f"/var/log/inx/{incus.uuid(isolated)}.build.log"
    end = (
        f"its log says: x.c:3: error: no such type; {log} has the rest; 'journalctl "
        f"INX_INSTANCE={isolated}' has the names"
    )
    assert found[isolated].endswith(end) and "thing" not in found[isolated]
    shown = host.run(["journalctl", "-o", "cat", f"INX_INSTANCE={isolated}"]).stdout
    assert "-thing.drv" in shown
    incus.wait_state(name, "STOPPED")
    incus.eventually(lambda: "flake.nix:6:42" in incus.log(name), incus.story)
    incus.set(name, f"user.inx.flake={incus.flake()}#web")
    incus.start(name)
    incus.wait_ready(name)
    incus.set(name, f"user.inx.flake={fails}#web")
    log = f"/var/log/inx/{incus.uuid(name)}.build.log"
    ending = f"error: no such type; {log} has the rest; generation 1 runs on"
    assert incus.wait_status(name, "failed: ").endswith(ending)


def test_files_that_the_user_of_a_build_may_not_read_or_write_are_named(
    incus: Incus, host: Host, alice: str
) -> None:
    closed, locked, group = (f"/srv/{incus.prefix}-{each}/f" for each in ("x", "y", "z"))
    for directory in (closed, locked, group):
        incus.flake(directory=directory)
    host.sh(
        r"""
        usermod -aG nix-users "$U"
        mkdir "$Y/../dep"; echo '{ outputs = _: { }; }' >"$Y/../dep/flake.nix"
        sed -i "s|outputs =|inputs.dep.url = "path:$(realpath "$Y/../dep")"; outputs =|
            s|{ self }|{ self, dep }|" "$Y/flake.nix"
        chown -R "$U:" "$X" "$Y"/*; chmod 700 "$X/.."
        cd "$Z"; git init -q; git add flake.nix deps.json; chown -R "$U:" .; chmod g+w .
        """,
        env={"U": alice, "X": closed, "Y": locked, "Z": group},
    )
    a, b, c = (incus.name(each) for each in "abc")
    found = failures(
        incus,
        {
            a: {"flake": f"{closed}#web"},
            b: {"flake": f"{locked}#web"},
            c: {"flake": f"{group}#web"},
        },
    )
    assert found[a] == (
        f"{closed}#web as {alice}: {alice} may not read {closed}: let {alice} enter each directory "
        f"on the way and read the files; 'namei -l {closed}' shows who may"
    )
    flags = "--extra-experimental-features 'nix-command flakes'"
    lock = f"nix {flags} flake lock {locked}"
    assert found[b] == (
        f"{locked}#web as {alice}: {locked}/flake.lock lacks inputs, and {alice} cannot write it "
        f"(Permission denied): let {alice} own it and its directory, or run "
        f'"{lock}" as root'
    )
    assert (
        f"git does not know system.nix in {group}, so Nix does not see it: if it is there, let "
        f"{alice}, who owns it, add it to git (evaluated by "
    ) in found[c]
    host.sh(f"chmod 711 {closed}/..; {lock}; cd {group}; chmod g-w .; runuser -u {alice} git add .")
    for name in (a, b, c):
        incus.wait_state(name, "STOPPED")
    incus("start", a, b, c)
    for name in (a, b, c):
        incus.wait_ready(name)


def test_what_the_user_of_a_build_lacks_is_said_with_the_user(
    incus: Incus, host: Host, alice: str
) -> None:
    own = incus.flake(directory=f"/srv/{incus.prefix}-own")
    shared = incus.flake(directory=f"/srv/{incus.prefix}-shared")
    host.sh(
        'cd "$S"; git init -q; git add .; chown -R "$U:" "$D" "$S"; chown root .',
        env={"U": alice, "D": own, "S": shared},
    )
    b = incus.name("b")
    name = incus.name("a")
    [(_, refused)] = failures(incus, {name: {"flake": f"{own}#web"}}).items()
    assert refused == (
        f"{own}#web as {alice}: {alice} may not use the Nix daemon: run "
        f"'usermod -aG nix-users {alice}'"
    )
    host.sh(f"usermod -aG nix-users {alice}")  # the command of the message
    incus.wait_state(name, "STOPPED")
    incus.start(name)
    incus.wait_ready(name)
    [(_, refused)] = failures(incus, {b: {"flake": f"{shared}#web"}}).items()
    assert refused == (
        f"{shared}#web as {alice}: git refuses {shared}, which does not belong to {alice}: let "
        f"{alice} own it, or run 'git config --global --add safe.directory {shared}' as {alice}"
    )
    host.run(["runuser", "-u", alice, "--", "git", "config", "--global", "--add",
              "safe.directory", shared])  # fmt: skip
    incus.wait_state(b, "STOPPED")
    incus.start(b)
    incus.wait_ready(b)


def test_the_first_cause_of_a_git_source_that_cannot_be_read_is_the_reason(
    incus: Incus, host: Host
) -> None:
    directory = git_repository(host, incus.flake(), "", "git rm -q --cached system.nix")
    reads = incus.flake_text(
        "nixosConfigurations.web = builtins.readDir ./hosts;", f"/srv/{incus.prefix}-reads"
    )
    git_repository(host, reads, "", "mkdir hosts; touch hosts/a.nix")
    ssh, https = incus.name("ssh"), incus.name("https")
    name = incus.name("untracked")
    host.sh("mv /usr/bin/ssh /usr/bin/ssh.away")
    try:
        found = failures(
            incus,
            {
                name: {"flake": f"{directory}#web"},
                incus.name("reads"): {"flake": f"{reads}#web"},
                ssh: {"flake": "git+ssh://git@127.0.0.1/x#web"},
                https: {"flake": "git+http://127.0.0.1:9/x#web"},
            },
        )
    finally:
        host.sh("mv /usr/bin/ssh.away /usr/bin/ssh")
    assert found[name] == (
        f"{directory}#web: git does not know system.nix in {directory}, so Nix does not see it: "
        f"if it is there, run 'git -C {directory} add system.nix'"
    )
    assert found[incus.name("reads")] == (
        f"{reads}#web: git does not know hosts in {reads}, so Nix does not see it: if it is there, "
        f"run 'git -C {reads} add hosts'"
    )
    assert found[ssh].endswith(
        "#web as inx-build: git cannot run ssh (No such file or directory): install ssh, on "
        "Debian openssh-client"
    )
    assert "as inx-build: unable to access 'http://127.0.0.1:9/x/'" in found[https]
    [refused] = failures(
        incus, {incus.name("port"): {"flake": "git+ssh://git@127.0.0.1:9/x#web"}}
    ).values()
    assert "ssh: connect to host 127.0.0.1 port 9: Connection refused; look at" in refused
    host.run(["git", "-C", directory, "add", "system.nix"])
    incus.wait_state(name, "STOPPED")
    incus.start(name)
    incus.wait_ready(name)


def test_a_file_system_that_takes_no_files_is_named_without_a_traceback(
    incus: Incus, host: Host
) -> None:
    runs = incus.launch(name=incus.name("a"), flake=f"{incus.flake()}#web")
    fails = incus.init(name=incus.name("b"), flake="/etc/nixos#second")
    with small_state(host):
        host.sh(f"dd if=/dev/zero of={STATE}/fill bs=1k 2>/dev/null || :")
        why = (
            rf"cannot write {STATE}.* \(No space left on device\): make space there, and try again"
        )
        incus.start(fails)
        incus.wait_status(fails, f"failed: {why}$")
        incus.set(runs, "user.inx.update=2")
        incus.wait_status(runs, f"failed: {why}; generation 1 runs on$")
        incus("restart", "-f", runs)
        incus.wait_status(runs, f"failed: {why}; started generation 1$")
        incus.wait_inside(runs)
        host.sh(f"rm {STATE}/fill; mount -o remount,ro {STATE}")
        restart_sidecar(host)
        incus.start(fails)
        why = rf"cannot write {STATE}.* \(Read-only file system\): mount it writable, and try again"
        incus.wait_status(fails, f"failed: {why}$")
        status, findings = check(host)
        assert status == 1 and all(STATE in line and "writable" in line for line in findings)
        sync(host)
        incus("stop", "-f", runs)
    incus.start(fails)
    incus.wait_ready(fails)


@contextlib.contextmanager
def small_state(host: Host) -> Iterator[None]:
    """The state of the sidecar is on a small file system of its own, which a test can fill."""
    units = " ".join(UNITS)
    host.sh(
        f"""
        systemctl stop {units}
        cp -a {STATE} /root/kept; mount -t tmpfs -o size=200k,mode=711 none {STATE}
        cp -a /root/kept/. {STATE}; rm -r /root/kept
        systemctl start {units}
        """
    )
    try:
        yield
    finally:
        host.sh(
            f"""
            systemctl stop {units}
            cp -a {STATE} /root/kept; umount -l {STATE}; cp -a /root/kept/. {STATE}
            rm -r /root/kept {STATE}/fill || :
            systemctl start {units}
            """
        )


def test_a_source_that_fails_is_not_built_again_and_again(incus: Incus, host: Host) -> None:
    """As with boot.autorestart, which newer Incus has: it starts what has ended."""
    name = incus.init(flake=f"{broken(incus)}#web")
    begun = ["journalctl", "-q", "-o", "cat", "-u", f"inx-build-{incus.uuid(name)}", "--grep",
             "^Started "]  # fmt: skip

    def builds_so_far() -> int:
        host.run(["journalctl", "--sync"])
        return len(host.run(begun, check=False).stdout.splitlines())

    host.sh(
        """
        systemd-run -q --unit=inx-autorestart bash -c \
            'while :; do incus start "$0" 2>/dev/null; sleep 0.2; done' "$N"
        """,
        env={"N": name},
    )
    try:
        incus.wait_status(
            name, r"failed: .*no such luck.*; it is built again in 4 s, or at once if "
        )
        assert builds_so_far() == 3
        assert "this build has just failed; it is built again in 4 s" in incus.console(name)
        # A new wish does not wait.
        source(incus, "mended")
        incus.set(name, "user.inx.update=2")
        incus.wait_ready(name)
        assert builds_so_far() == 4
    finally:
        host.run(["systemctl", "stop", "inx-autorestart"])
