"""What Nix registers inside a container holds on the host, exactly as long as the link is there."""

import json
import platform
import re
import shlex
from dataclasses import dataclass

import pytest
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.gc

COLLECT = ["nix-store", "--gc"]
COLLECT_ALL = ["nix-collect-garbage", "-d"]

PER_USER = "/nix/var/nix/profiles/per-user/root"
# Before each script: what NAME is built from, without nixpkgs and network, and how to hold on.
PRELUDE = """
export NAME EXPR NIX_BIN_DIR=/run/current-system/sw/bin
cd /root

build() {
  nix-build --expr "$EXPR" "$@"
}

flake() {
  mkdir -p /root/flake
  echo "{ outputs = _: { packages.$(uname -m)-linux.default = $EXPR; }; }" >/root/flake/flake.nix
}

# Start a program that lives on and writes its process id to /run/up.
hold() {
  [ ! -e /run/holder ] || return 0
  mkfifo /run/up
  setsid "$@" </dev/null >/dev/null 2>&1 &
  read -r pid </run/up
  echo "$pid" >/run/holder
}

tmpfs() {
  mkdir -p "$1"
  mountpoint -q "$1" || mount -t tmpfs tmpfs "$1"
}

person() {
  grep -q person /etc/passwd || {
    cp -L /etc/passwd /etc/passwd.new
    echo person:x:1000:1000::/home/person:/bin/sh >>/etc/passwd.new
    mv /etc/passwd.new /etc/passwd
    mkdir -pm 700 /home/person
    chown 1000:1000 /home/person
  }
  su person -c "cd; $1"
}
"""
STAY = "'echo $$ >/run/up; exec sleep 86400'"


@dataclass(frozen=True)
class Kind:
    """Scripts for inside: `make` builds NAME, links it and prints the store path last; a second one
    replaces the first, once `let_go` has run; `remove` removes the link."""

    make: str
    remove: str
    let_go: str = ""
    system: str = "web"
    disk: bool = False
    # Whether a restart leaves the link; and else the root, if nothing covers the place of the link.
    lasts: bool = True
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
    "somebody's home": Kind(
        "person 'nix-build --expr \"$EXPR\"'", "person 'rm result'"
    ),
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


def inside(incus: Incus, name: str, script: str, built: str = "nothing") -> str:
    """Run a script with the PRELUDE; the last line that it prints."""
    fields = f'name = "{built}"; builder = "/bin/sh"; args = [ "-c" "echo {built} >$out" ];'
    expr = f'derivation {{ {fields} system = "{platform.machine()}-linux"; }}'
    settings = f"NAME={built}\nEXPR={shlex.quote(expr)}\n"
    return incus.sh(name, settings + PRELUDE + script).stdout.rstrip().rpartition("\n")[2]


def make(incus: Incus, name: str, script: str, number: int | str) -> str:
    path = inside(incus, name, script, f"{incus.prefix}-{number}")
    assert path.startswith("/nix/store/") and path.count("/") == 3, path
    return path


def collect(incus: Incus, command: list[str] = COLLECT) -> None:
    """As the host's root, while Incus does nothing: it would put off what is to be dropped."""

    def idle() -> bool:
        found = incus.json("query", "/1.0/operations?recursion=1&all-projects=true")
        return not any(
            operation["class"] == "task"
            for state in ("pending", "running", "cancelling")
            for operation in found.get(state, [])
        )

    incus.eventually(idle, incus.story)
    incus.host.run(command)


def start(incus: Incus, name: str, system: str) -> None:
    incus.start(name)
    incus.wait_ready(name)
    if system == "systemd":
        incus.eventually(
            lambda: (
                incus.run(name, "systemctl", "is-system-running", check=False).stdout == "running\n"
            ),
            incus.story,
        )


def left(host: Host, *paths: str) -> set[str]:
    """Those of `paths` that are whole: known to Nix, and on the disk."""
    script = """
        for path; do
            ! nix-store --check-validity "$path" 2>/dev/null || echo "$path"
            [ ! -e "$path" ] || echo "$path"
        done
    """
    found = host.run(["bash", "-uc", script, "left", *paths]).stdout.split()
    assert all(found.count(path) in (0, 2) for path in paths), found
    return set(found)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_root_lives_as_long_as_its_link(incus: Incus, host: Host, kind: Kind) -> None:
    name = incus.init(flake=f"/etc/nixos#{kind.system}")
    if kind.disk:
        source = disk(incus)
        attach(incus, name, source)
    start(incus, name, kind.system)

    # It runs.
    first = make(incus, name, kind.make, 1)
    collect(incus)
    assert left(host, first) == {first}

    # The link leads elsewhere.
    second = make(incus, name, kind.make, 2)
    assert second != first
    if kind.let_go:
        collect(incus, COLLECT_ALL)
        assert left(host, first, second) == {first, second}, "older generations inside are roots"
        inside(incus, name, kind.let_go)
    collect(incus, COLLECT_ALL)
    assert left(host, first, second) == {second}

    # It is stopped, and starts again.
    incus("stop", "-f", name)
    collect(incus, COLLECT_ALL)
    assert left(host, second) == {second}
    start(incus, name, kind.system)
    collect(incus)
    assert left(host, second) == ({second} if kind.stays else set())

    # The link is removed.
    paths = [second] if kind.lasts else [second, make(incus, name, kind.make, 3)]
    inside(incus, name, kind.remove)
    collect(incus)
    assert left(host, *paths) == set()


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
        collect(incus, COLLECT_ALL)
        assert left(host, base, third) == {base, third}
        incus.start(name)
        incus.wait_inside(name)

    second = make(incus, name, script, 2)
    third = make(incus, name, script, 3)
    collect(incus, COLLECT_ALL)
    assert left(host, base, second, third) == {base, second, third}
    inside(incus, name, f"nix-env -p {profile} --delete-generations 2")
    collect(incus, COLLECT_ALL)
    assert left(host, base, second, third) == {base, third}
    restart()
    incus.eventually(lambda: incus.get(name, "user.inx.status.system") == third, incus.story)
    # It runs: that holds it, too.
    inside(incus, name, f"nix-env -p {profile} --switch-generation 1")
    inside(incus, name, f"nix-env -p {profile} --delete-generations 3")
    collect(incus, COLLECT_ALL)
    restart()
    incus.eventually(lambda: incus.get(name, "user.inx.status.system") == base, incus.story)
    collect(incus)
    assert left(host, base, third) == {base}


@pytest.mark.parametrize("system", ["web", "systemd"])
def test_a_disk_that_is_detached_keeps_its_roots(incus: Incus, host: Host, system: str) -> None:
    """Services of systemd have mount namespaces of their own, where the disk is seen as well."""
    name = incus.init(flake=f"/etc/nixos#{system}")
    source = disk(incus)
    attach(incus, name, source)
    start(incus, name, system)
    path = make(incus, name, "build -o /data/out", 1)
    collect(incus)
    assert left(host, path) == {path}
    incus("config", "device", "remove", name, "data")
    collect(incus)
    assert left(host, path) == {path}, "detached"
    incus("stop", "-f", name)
    start(incus, name, system)
    collect(incus)
    assert left(host, path) == {path}, "started without it"
    attach(incus, name, source)
    collect(incus)
    assert left(host, path) == {path}, "attached again"
    incus.run(name, "rm", "/data/out")
    collect(incus)
    assert left(host, path) == set()


@pytest.mark.parametrize("place", ["/root/private", "/run"])
def test_a_link_in_a_mount_namespace_that_ended_still_holds(
    incus: Incus, host: Host, place: str
) -> None:
    """Also if init, too, has another file system mounted there, which never had the link."""
    name = incus.launch(flake="/etc/nixos#web")
    path = make_apart(incus, name, place, 1)
    end_namespace(incus, name)
    collect(incus)
    assert left(host, path) == {path}


def test_a_mount_namespace_with_the_number_of_an_earlier_one_is_another(
    incus: Incus, host: Host
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    again = """
        for try in $(seq 60); do
            rm -f /run/holder /run/up
            hold unshare -m sh -c 'echo $$ >/run/up; exec sleep 86400'
            number=$(readlink "/proc/$(cat /run/holder)/ns/mnt")
            [ "$number" != "$NUMBER" ] || break
        done
        echo "$number"
    """
    for number in range(5):
        path = make_apart(incus, name, "/root/private", number)
        before = end_namespace(incus, name)
        if inside(incus, name, f"NUMBER='{before}'\n{again}") == before:
            break
        # Something else on this machine has got the number.
        incus.sh(name, "killall sleep; rm /run/holder /run/up")
    else:
        raise AssertionError("the kernel numbers namespaces otherwise than it did")
    collect(incus)
    assert left(host, path) == {path}


def make_apart(incus: Incus, name: str, place: str, number: int) -> str:
    """Build something with a link in a file system that only one mount namespace has."""
    mount = f"mount --make-rprivate /; mount -t tmpfs tmpfs {place}/apart"
    enter = 'nsenter -t "$(cat /run/holder)" -m'
    script = f"""
        mkdir -p {place}/apart
        hold unshare -m sh -c 'echo $$ >/run/up; exec sleep 86400'
        {enter} sh -c '{mount}'
        {enter} nix-build --expr "$EXPR" -o {place}/apart/out
    """
    return make(incus, name, script, number)


def end_namespace(incus: Incus, name: str) -> str:
    """The namespace's number; the collection before has seen the link."""
    collect(incus)
    pid = incus.said(name, "cat", "/run/holder").strip()
    number = incus.said(name, "readlink", f"/proc/{pid}/ns/mnt").strip()
    incus.run(name, "kill", "-9", pid)
    gone = ["test", "!", "-e", f"/proc/{pid}/ns/mnt"]
    incus.eventually(lambda: incus.run(name, *gone, check=False).returncode == 0, incus.story)
    return number


def disk(incus: Incus) -> str:
    """A directory of the host where root of every container may write."""
    source = f"/srv/{incus.prefix}-data"
    incus.host.run(["install", "-d", "-m", "777", source])
    return source


def attach(incus: Incus, name: str, source: str) -> None:
    incus("config", "device", "add", name, "data", "disk", f"source={source}", "path=/data")


# What can happen to dir/out -> $path, and whether it counts afterwards, as for Nix without inx.
CHANGES = {
    "removed": ("rm dir/out", False),
    "renamed": ("mv dir/out dir/other", False),
    "a file": ("rm dir/out; echo $path >dir/out", False),
    "a directory": ("rm dir/out; mkdir dir/out", False),
    "led elsewhere": ("ln -sfn /etc/passwd dir/out", False),
    "led to the store": ("ln -sfn /nix/store dir/out", False),
    "relative": ("ln -sfn ../../..$path dir/out", False),
    "led to a link": ("ln -s $path dir/other; ln -sfn dir/other dir/out", False),
    "moved along": ("mv dir other", False),
    "in a loop": ("rm -r dir; ln -s dir dir", False),
    "covered": ("mount -t tmpfs tmpfs dir", False),
    "below": ("ln -sfn $path/bin/tool dir/out", True),
    "made again": ("rm dir/out; ln -s $path dir/out", True),
    "led through a link": ("mv dir other; ln -s other dir", True),
    "unreadable": ("chown -R 1000:1000 dir; chmod 0 dir", True),
    "on a disk that is read-only": ("mount --bind dir dir; mount -o remount,bind,ro dir", True),
}


def test_a_link_that_leads_nowhere_any_more_holds_nothing(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    paths: dict[str, str] = {}
    for number, what in enumerate(CHANGES):
        script = f"mkdir -p {number}/dir; cd {number}; build -o dir/out"
        paths[what] = make(incus, name, script, number)
    collect(incus)
    assert left(host, *paths.values()) == set(paths.values())
    scripts = [
        f"(cd {number}; path={paths[what]}; {change})\n"
        for number, (what, (change, _)) in enumerate(CHANGES.items())
    ]
    inside(incus, name, "".join(scripts))
    collect(incus)
    kept = left(host, *paths.values())
    assert {what for what, path in paths.items() if path in kept} == {
        what for what, (_, holds) in CHANGES.items() if holds
    }


def test_a_link_removed_right_before_the_stop_goes_at_the_next_start(
    incus: Incus, host: Host
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    kept, path = make(incus, name, "build -o kept", 1), make(incus, name, "build -o out", 2)
    incus.run(name, "rm", "/root/out")
    incus("stop", "-f", name)
    collect(incus)
    assert left(host, kept, path) >= {kept}
    incus.start(name)
    incus.wait_inside(name)
    collect(incus)
    assert left(host, kept, path) == {kept}


def test_roots_can_be_read_by_instance_link_and_path(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    script = "nix-store -r $(build -o one) --add-root 'a \t b' >&2; readlink one"
    path = make(incus, name, script, 1)
    directory = f"/nix/var/nix/gcroots/inx/{name}.{incus.uuid(name)}/links/"
    size = host.run(["nix-store", "--query", "--size", path]).stdout.strip()

    def printed() -> int:
        lines = host.run(["nix-store", "--gc", "--print-roots"]).stdout.splitlines()
        return sum(line.startswith(directory) and line.endswith(f" -> {path}") for line in lines)

    def listed(*instance: str) -> list[str]:
        done = host.run(["/opt/inx/bin/inx-sidecar", "roots", *instance])
        row = re.compile(rf"{name} +\d+[smh] +{size} B  {path}  (.*)")
        return sorted(found[1] for line in done.stdout.splitlines() if (found := row.match(line)))

    def said(what: str) -> list[str]:
        lines = host.sh("journalctl --sync; journalctl -u inx-sidecar -o cat").stdout.splitlines()
        row = re.compile(rf"(?:<\d>)?{name}: root {what}: (.*) -> {path}")
        return sorted(found[1] for line in lines if (found := row.fullmatch(line)))

    # By print-roots, which also waits for what was registered.
    assert printed() == 2
    assert listed(name) == listed() == [r"/root/a \t b", "/root/one"]
    assert said("added") == [r"'/root/a \t b'", "'/root/one'"]
    assert said("dropped") == []
    other = host.run(["/opt/inx/bin/inx-sidecar", "roots", f"{name}-x"], check=False)
    assert other.returncode != 0 and f"{name}-x" in other.stderr

    # Each link counts by itself.
    incus.run(name, "rm", "/root/one")
    collect(incus)
    assert left(host, path) == {path}
    assert printed() == 1
    assert listed(name) == [r"/root/a \t b"]
    assert said("dropped") == ["'/root/one'"]
    incus.sh(name, "rm /root/a*b")
    collect(incus)
    assert left(host, path) == set()
    assert printed() == 0 and listed(name) == []
    assert said("dropped") == [r"'/root/a \t b'", "'/root/one'"]
