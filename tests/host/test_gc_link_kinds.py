"""What Nix registers inside holds on the host exactly as long as its link exists.

KINDS has every way to make a link that a Nix user knows, and every place where a link can lie.
"""

import json
import platform
from dataclasses import dataclass

import pytest
from support.disposable import Host
from support.gc import build_by, collect_when_idle, left, root_directory, run_inside
from support.incus import Incus

pytestmark = pytest.mark.gc

COLLECT_ALL = ["nix-collect-garbage", "-d"]
PER_USER = "/nix/var/nix/profiles/per-user/root"
STAY = "'echo $$ >/run/up; exec sleep 86400'"


@dataclass(frozen=True)
class Kind:
    """Scripts that run inside, with the functions of PRELUDE.

    `make` builds $NAME, links it, and prints its store path last. Run again, it replaces the link.
    `let_go` then deletes the older generation, where there is one. `remove` removes the link.
    """

    make: str
    remove: str
    let_go: str = ""
    system: str = "web"
    disk: bool = False  # the instance has a disk device at /data
    lasts: bool = True  # the link is still there after a restart
    # The root is still there after a restart. This holds for a lost link, too, as long as no other
    # file system is mounted over its place.
    stays: bool = True


KINDS = {
    "nix-build": Kind("build", "rm result"),
    "nix-build -o": Kind("build -o out", "rm out"),
    "nix-instantiate --add-root": Kind(
        'nix-instantiate --expr "$EXPR" --add-root root.drv; readlink root.drv', "rm root.drv"
    ),
    "nix-store -r --add-root": Kind(
        'nix-store -r "$(build --no-out-link)" --add-root out; readlink out', "rm out"
    ),
    "nix-store -r --add-root --indirect": Kind(
        'nix-store -r "$(build --no-out-link)" --add-root out --indirect; readlink out', "rm out"
    ),
    "nix build": Kind('nix build --expr "$EXPR"; readlink result', "rm result"),
    "nix build -o": Kind('nix build --expr "$EXPR" -o out; readlink out', "rm out"),
    "nix build of a flake": Kind("flake; nix build ./flake; readlink result", "rm result"),
    "nix build --profile": Kind(
        'nix build --expr "$EXPR" --no-link --profile /root/profile --print-out-paths',
        "rm profile profile-*-link",
        let_go="nix-env -p profile --delete-generations old",
    ),
    "nix profile install of a store path": Kind(
        "path=$(build --no-out-link); nix profile remove --all; nix profile install $path;"
        "echo $path",
        "nix profile remove --all; nix profile wipe-history",
        let_go="nix profile wipe-history",
    ),
    "nix profile install of a flake": Kind(
        "flake; nix profile remove --all; nix profile install ./flake;"
        "nix build ./flake --no-link --print-out-paths",
        "nix profile remove --all; nix profile wipe-history",
        let_go="nix profile wipe-history",
    ),
    "nix-env -i": Kind(
        "path=$(build --no-out-link); nix-env -ri $path; echo $path",
        "nix-env -e '.*'; nix-env --delete-generations old",
        let_go="nix-env --delete-generations old",
    ),
    "nix-env -p -i": Kind(
        "path=$(build --no-out-link); nix-env -p tools -ri $path; echo $path",
        "nix-env -p tools -e '.*'; nix-env -p tools --delete-generations old",
        let_go="nix-env -p tools --delete-generations old",
    ),
    "nix-channel": Kind(
        "mkdir -p channel; echo \"$NAME\" >channel/default.nix; tar -czf $NAME.tar.gz channel;"
        "nix-channel --add file:///root/$NAME.tar.gz channel; nix-channel --update;"
        f"readlink -f {PER_USER}/channels/channel | cut -d/ -f1-4",
        f"nix-channel --remove channel; nix-env -p {PER_USER}/channels --delete-generations old",
        let_go=f"nix-env -p {PER_USER}/channels --delete-generations old",
    ),
    "direnv's profile": Kind(
        "mkdir -p project/.direnv; cd project; path=$(build --no-out-link);"
        "nix-env -p .direnv/flake-profile --set $path; echo $path",
        "rm -r project",
        let_go="cd project; nix-env -p .direnv/flake-profile --delete-generations old",
    ),
    "direnv's flake inputs": Kind(
        "mkdir -p project; cd project; path=$(build --no-out-link);"
        "nix-store --add-root .direnv/flake-inputs/source -r $path >&2; echo $path",
        "rm -r project/.direnv",
    ),
    "a link changed by hand": Kind(
        "path=$(build --no-out-link);"
        "if [ -h out ]; then ln -sfn $path out; else nix-store -r $path --add-root out; fi;"
        "echo $path",
        "rm out",
    ),
    "a link to below a store path": Kind(
        "path=$(build --no-out-link);"
        "[ -h out ] || nix-store -r $path --add-root out; ln -sfn $path/bin/tool out; echo $path",
        "rm out",
    ),
    "a directory that is a link": Kind(
        "mkdir -p real; ln -sfn /root/real link; build -o link/out", "rm real/out"
    ),
    "somebody's home": Kind("person 'nix-build --expr \"$EXPR\"'", "person 'rm result'"),
    "somebody's profile": Kind(
        "path=$(build --no-out-link);"
        "person \"nix profile remove --all; nix profile install $path\"; echo $path",
        "person 'nix profile remove --all; nix profile wipe-history'",
        let_go="person 'nix profile wipe-history'",
    ),
    "a tmpfs on /run": Kind("build -o /run/out", "rm /run/out", lasts=False, stays=False),
    "a tmpfs on /tmp": Kind("tmpfs /tmp; build -o /tmp/out", "rm /tmp/out", lasts=False),
    "a disk device": Kind("build -o /data/out", "rm /data/out", disk=True),
    "a mount namespace": Kind(
        "mkdir -p private;"
        f"hold unshare -m sh -c 'mount --make-rprivate /; mount -t tmpfs tmpfs private; '{STAY};"
        'nsenter -t "$(cat /run/holder)" -m nix-build --expr "$EXPR" -o /root/private/out',
        'nsenter -t "$(cat /run/holder)" -m rm /root/private/out',
        lasts=False,
    ),
    "a private /tmp of systemd": Kind(
        "systemctl is-active -q stays ||"
        "systemd-run -u stays -p PrivateTmp=yes -p Type=exec sleep 1d;"
        'nsenter -t "$(systemctl show -P MainPID stays)" -m nix-build --expr "$EXPR" -o /tmp/out',
        'nsenter -t "$(systemctl show -P MainPID stays)" -m rm /tmp/out',
        system="systemd",
        lasts=False,
    ),
    "a chroot": Kind(
        "mkdir -p /cell/nix /cell/run /cell/root /cell/tmp;"
        "[ -e /cell/nix/store ] || mount --rbind /nix /cell/nix;"
        "mountpoint -q /cell/run || mount --bind /run /cell/run;"
        f"hold chroot /cell /run/current-system/sw/bin/sh -c {STAY};"
        'chroot /cell /run/current-system/sw/bin/nix-build --expr "$EXPR" -o /root/out',
        "rm /cell/root/out",
        lasts=False,
    ),
}  # fmt: skip


def start(incus: Incus, name: str, system: str) -> None:
    """Start the instance, and wait until its services run."""
    incus.start(name)
    incus.wait_ready(name)
    if system == "systemd":
        running = ["systemctl", "is-system-running"]
        incus.eventually(
            lambda: incus.run(name, *running, check=False).stdout == "running\n", incus.story
        )


def make_disk(incus: Incus) -> str:
    """A directory of the host where root of every container may write."""
    source = f"/srv/{incus.prefix}-data"
    incus.host.run(["install", "-d", "-m", "777", source])
    return source


def attach_disk(incus: Incus, name: str, source: str) -> None:
    incus("config", "device", "add", name, "data", "disk", f"source={source}", "path=/data")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_root_exists_as_long_as_its_link(incus: Incus, host: Host, kind: Kind) -> None:
    name = incus.init(flake=f"/etc/nixos#{kind.system}")
    if kind.disk:
        attach_disk(incus, name, make_disk(incus))
    start(incus, name, kind.system)

    # The instance runs.
    first = build_by(incus, name, kind.make, "1")
    collect_when_idle(incus)
    assert left(host, first) == {first}

    # The link leads to another path.
    second = build_by(incus, name, kind.make, "2")
    assert second != first
    if kind.let_go:
        collect_when_idle(incus, COLLECT_ALL)
        assert left(host, first, second) == {first, second}, "older generations inside are roots"
        run_inside(incus, name, kind.let_go)
    collect_when_idle(incus, COLLECT_ALL)
    assert left(host, first, second) == {second}

    # The instance stops, and starts again.
    incus("stop", "-f", name)
    collect_when_idle(incus, COLLECT_ALL)
    assert left(host, second) == {second}
    start(incus, name, kind.system)
    collect_when_idle(incus)
    assert left(host, second) == ({second} if kind.stays else set())

    # The link is removed.
    paths = [second] if kind.lasts else [second, build_by(incus, name, kind.make, "3")]
    run_inside(incus, name, kind.remove)
    collect_when_idle(incus)
    assert left(host, *paths) == set()


@pytest.mark.parametrize("system", ["web", "systemd"])
def test_a_disk_that_is_detached_keeps_its_roots(incus: Incus, host: Host, system: str) -> None:
    """Under systemd, the mount namespaces of services show the disk as well."""
    name = incus.init(flake=f"/etc/nixos#{system}")
    source = make_disk(incus)
    attach_disk(incus, name, source)
    start(incus, name, system)
    path = build_by(incus, name, "build -o /data/out", "1")
    collect_when_idle(incus)
    assert left(host, path) == {path}
    incus("config", "device", "remove", name, "data")
    collect_when_idle(incus)
    assert left(host, path) == {path}, "detached"
    incus("stop", "-f", name)
    start(incus, name, system)
    collect_when_idle(incus)
    assert left(host, path) == {path}, "started without it"
    attach_disk(incus, name, source)
    collect_when_idle(incus)
    assert left(host, path) == {path}, "attached again"
    incus.run(name, "rm", "/data/out")
    collect_when_idle(incus)
    assert left(host, path) == set()


def test_a_system_made_inside_is_kept_until_its_generation_is_deleted(
    incus: Incus, host: Host
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    base = incus.get(name, "user.inx.status.system")
    deps = incus.host.run(["cat", "/etc/nixos/deps.json"]).stdout
    busybox = f'${{builtins.storePath "{json.loads(deps)["busybox"]}"}}/bin'
    profile = "/nix/var/nix/profiles/system"
    script = f"""
        path=$(nix-build --no-out-link --argstr name "$NAME" --expr '{{ name }}: derivation {{
            inherit name;
            system = "{platform.machine()}-linux";
            builder = "{busybox}/sh";
            PATH = "{busybox}";
            args = [ "-c" "mkdir $out; ln -s ${{builtins.storePath "{base}"}}/* $out" ];
        }}')
        nix-env -p {profile} --set $path
        echo $path
    """

    def restart() -> None:
        incus("stop", "-f", name)
        collect_when_idle(incus, COLLECT_ALL)
        assert left(host, base, third) == {base, third}
        incus.start(name)
        incus.wait_inside(name)

    second = build_by(incus, name, script, "2")
    third = build_by(incus, name, script, "3")
    collect_when_idle(incus, COLLECT_ALL)
    assert left(host, base, second, third) == {base, second, third}
    run_inside(incus, name, f"nix-env -p {profile} --delete-generations 2")
    collect_when_idle(incus, COLLECT_ALL)
    assert left(host, base, second, third) == {base, third}
    restart()
    booted = f"{root_directory(incus, name)}/booted-system"
    assert host.run(["readlink", booted]).stdout.strip() == third
    # The third system runs: that holds it, too.
    run_inside(incus, name, f"nix-env -p {profile} --switch-generation 1")
    run_inside(incus, name, f"nix-env -p {profile} --delete-generations 3")
    collect_when_idle(incus, COLLECT_ALL)
    restart()
    incus.eventually(lambda: incus.get(name, "user.inx.status.system") == base, incus.story)
    collect_when_idle(incus)
    assert left(host, base, third) == {base}
