"""Every kind of instance that Incus can make boots, and sees the store of the host."""

from typing import Any

import pytest
from support.disposable import Host
from support.incus import Incus
from support.services import stopped_nix_daemon, sync

pytestmark = pytest.mark.main

# Exit statuses: 2 a store path does not belong to root, 3 the store can be written.
LOOK = """
    [ -z "$(find /nix/store -maxdepth 2 ! -user 0)" ] || exit 2
    mkdir -p /tmp/again && mount --bind /nix/store /tmp/again
    mount -o remount,bind,rw /nix/store && exit 3
    mount -o remount,bind,rw /tmp/again && exit 3
    for place in /nix/store /tmp/again; do
        touch "$place/planted" && exit 3
    done
    umount /tmp/again
"""
BUILD = """
    tool=$(readlink -f /bin/sh)
    out=$(nix build --impure --no-link --print-out-paths --expr "derivation {
        name = \\"probe-$1\\";
        system = \\"$(cat /run/current-system/system)\\";
        builder = builtins.storePath \\"$tool\\";
        args = [ \\"sh\\" \\"-c\\" \\"echo $1 >\\$out\\" ];
    }")
    [ "$(cat "$out")" = "$1" ]
"""


def see(incus: Incus, name: str, *, daemon: bool = True, project: str = "default") -> None:
    """The store is root's and read-only; with a daemon, `nix build` works."""
    where: dict[str, Any] = {"project": project, "check": False}
    looked = incus.sh(name, LOOK, **where)
    assert looked.returncode == 0, f"{name}: {looked}"
    built = incus.run(name, "sh", "-euc", BUILD, "sh", name, **where)
    assert (built.returncode == 0) == daemon, f"{name}: {built}"


def system(incus: Incus, name: str) -> str:
    return incus.said(name, "readlink", "/run/current-system").strip()


@pytest.mark.parametrize(
    ("options", "daemon"),
    [
        ([], True),
        (["-c", "security.nesting=true"], True),
        (["-c", "user.inx.daemon=false"], False),
    ],
    ids=["unprivileged", "nesting", "without a daemon"],
)
def test_an_instance_sees_the_store(incus: Incus, options: list[str], daemon: bool) -> None:
    see(incus, incus.launch(*options, flake="/etc/nixos#web"), daemon=daemon)


def test_idmap_of_its_own(incus: Incus) -> None:
    isolated = ["-c", "security.idmap.isolated=true"]
    names = [incus.launch(*isolated, name=incus.name(s), flake="/etc/nixos#web") for s in "ab"]
    maps = [incus.said(name, "cat", "/proc/self/uid_map") for name in names]
    assert maps[0] != maps[1]
    for name in names:
        see(incus, name)


def test_idmap_with_a_hole(incus: Incus, host: Host) -> None:
    name = incus.launch("-c", "raw.idmap=both 1000 1000", flake="/etc/nixos#web")
    rows = host.run(["cat", f"/proc/{incus.pid(name)}/uid_map"]).stdout.splitlines()
    assert [row.split() for row in rows][1] == ["1000", "1000", "1"]
    see(incus, name)


def test_privileged_gets_a_daemon_only_on_request(incus: Incus) -> None:
    name = incus.launch("-c", "security.privileged=true", flake="/etc/nixos#web")
    assert incus.said(name, "cat", "/proc/self/uid_map").split() == ["0", "0", "4294967295"]
    see(incus, name, daemon=False)
    inside = incus.said(name, "sh", "-euc", "ls -A /nix/var/nix").split()
    assert inside == ["daemon-socket", "gcroots", "profiles"]
    incus.set(name, "user.inx.daemon=true")
    incus.restart_into(name, generation=1)
    see(incus, name)


def test_an_instance_that_becomes_privileged_and_back_keeps_its_system(incus: Incus) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    for privileged in "true", "false":
        incus("stop", name)
        incus.set(name, f"security.privileged={privileged}")
        incus.start(name)
        incus.wait_ready(name)
        assert incus.get(name, "user.inx.status.generation") == "1"
        see(incus, name, daemon=privileged == "false")


@pytest.mark.parametrize("own_profiles", ["true", "false"])
def test_other_project(incus: Incus, host: Host, own_profiles: str) -> None:
    project = incus.name("project")
    incus("project", "create", project, "-c", f"features.profiles={own_profiles}")
    if own_profiles == "true":
        copied = "incus profile create inx --project $P </etc/inx/profile.yaml"
        host.sh(copied, env={"P": project})
    # Two instances of one name have a status and roots of their own.
    name = incus.launch(flake="/etc/nixos#web")
    incus.init(name=name, project=project, flake="/etc/nixos#second")
    # Incus allows no two instances of one name on one network.
    incus("config", "device", "add", name, "eth0", "none", "--project", project)
    incus.start(name, project)
    incus.wait_ready(name, project)
    assert incus.uuid(name) != incus.uuid(name, project)
    see(incus, name, project=project)
    greeting = incus.said(name, "cat", "/etc/greeting", project=project)
    assert greeting == "hello from the second system\n"
    roots = host.run(["nix-store", "--gc", "--print-roots"]).stdout
    assert f"/{project}_{name}." in roots and f"/{name}." in roots
    incus("stop", name, "--project", project)
    incus.start(name, project)
    incus.wait_ready(name, project)
    incus("delete", "-f", name, "--project", project)
    assert incus.status(name) == "ready"
    # With --force, Incus 6.0 also empties the default profile, here that of the project `default`.
    force = ["--force"] if own_profiles == "true" else []
    incus("project", "delete", project, *force, input="yes\n")
    assert "root" in incus("profile", "device", "list", "default").stdout


def test_name_of_63_characters(incus: Incus) -> None:
    name = f"{incus.name()}-".ljust(63, "n")
    assert incus.launch(name=name, flake=incus.flake(name)) == name
    see(incus, name)


@pytest.mark.parametrize("key", ["flake", "file"])
def test_name_with_dashes_and_digits(incus: Incus, key: str) -> None:
    name = f"{incus.name()}--0--7-x"
    directory = incus.flake(name)
    text = """
        let
            gathered = builtins.fromJSON (builtins.readFile ./deps.json);
            deps = builtins.mapAttrs
                (n: v: if n == "system" then v else builtins.storePath v) gathered;
        in { "%s" = import ./system.nix { name = "by-file"; inherit deps; }; }
    """
    incus.host.sh('cat >"$P"', env={"P": f"{directory}/systems.nix"}, input=text % name)
    source = directory if key == "flake" else f"{directory}/systems.nix"
    incus.launch(name=name, **{key: source})
    see(incus, name)


def test_two_at_once(incus: Incus, host: Host) -> None:
    names = [incus.adopt(incus.name(suffix)) for suffix in "ab"]
    flake = incus.flake(*names)
    host.sh(
        'for i in $NAMES; do incus launch --empty $i -p inx -c "user.inx.flake=$F" </dev/null & '
        "done; wait",
        env={"NAMES": " ".join(names), "F": flake},
    )
    for name in names:
        incus.wait_ready(name)
        assert f"-nixos-system-{name}-" in system(incus, name)
        see(incus, name)


def test_twenty_at_once_leave_nothing(incus: Incus, host: Host) -> None:
    names = [incus.adopt(incus.name(f"n{number}")) for number in range(20)]
    mounts = host.run(["cat", "/proc/mounts"]).stdout
    env = {"NAMES": " ".join(names), "F": incus.flake(greeting="one of many")}

    def each(command: str) -> None:
        host.sh(f"jobs=; for i in $NAMES; do {command} </dev/null & jobs+=\" $!\"; done; "
                "for job in $jobs; do wait $job; done", env=env)  # fmt: skip

    each('incus launch --quiet --empty $i -p inx -c "user.inx.flake=$F#web"')
    incus.eventually(
        lambda: set(incus.states(names)) == {"RUNNING,ready"},
        lambda: f"not ready: {incus.states(names)}",
    )
    for name in names:
        incus.wait_inside(name)
    # An exit status tells: with twenty at once, incus exec now and then loses the output.
    each("incus exec $i -- grep -q 'one of many' /etc/greeting")
    each("incus exec $i -- nix store ping")
    uuids = [incus.uuid(name) for name in names]
    each("incus stop $i")
    assert set(incus.states(names)) == {"STOPPED,ready"}

    def left() -> list[str]:
        """Directories and units; sockets and daemons end after the stop."""
        units = ["systemctl", "list-units", "--plain", "--no-legend", "inx-*@*"]
        found = f"{host.run(['ls', '/run/inx']).stdout}{host.run(units).stdout}"
        return [line for line in found.splitlines() if any(uuid in line for uuid in uuids)]

    incus.eventually(lambda: left() == [], lambda: f"left: {left()}")
    each("incus delete $i")
    incus.eventually(
        lambda: host.run(["cat", "/proc/mounts"]).stdout == mounts,
        lambda: f"before: {mounts}\nafter: {host.run(['cat', '/proc/mounts']).stdout}",
    )


def test_ephemeral_is_gone_after_a_stop(incus: Incus, host: Host) -> None:
    name = incus.launch("--ephemeral", flake="/etc/nixos#web")
    uuid = incus.uuid(name)
    see(incus, name)
    incus("stop", name)
    wait_gone(incus, name)
    assert uuid not in host.run(["ls", "/run/inx"]).stdout


def test_ephemeral_that_fails_leaves_its_reason_in_our_log(incus: Incus, host: Host) -> None:
    reason = f"no kittens for {incus.name()}"
    flake = incus.flake_text(
        f'nixosConfigurations.web = throw "{reason}";', f"/srv/{incus.prefix}-fails"
    )
    name = incus.init("--ephemeral", flake=f"{flake}#web")
    log = f"/var/log/inx/{incus.uuid(name)}.build.log"
    incus.start(name, check=False)
    wait_gone(incus, name)
    sync(host)
    assert reason in host.run(["cat", log]).stdout, "the log outlives all else of the instance"

    name = incus.init("--ephemeral", name=incus.name("b"), flake="/etc/nixos#web", keep="none")
    assert incus.start(name, check=False).returncode != 0
    wait_gone(incus, name)
    log = host.run(["cat", "/var/log/inx/hooks.log"]).stdout
    assert f"lxc {name} " in log and "user.inx.keep is 'none'" in log


def wait_gone(incus: Incus, name: str) -> None:
    incus.eventually(
        lambda: name not in incus("list", "-c", "n", "-f", "csv").stdout.split(),
        lambda: f"{name} is still there: {incus.log(name)}",
    )


def test_second_storage_pool(incus: Incus) -> None:
    pool = incus.name("pool")
    incus("storage", "create", pool, "dir")
    name = incus.launch("--storage", pool, flake="/etc/nixos#web")
    see(incus, name)
    incus("stop", name)
    incus("move", name, "--storage", "default")
    incus.start(name)
    incus.wait_ready(name)
    assert incus.get(name, "user.inx.status.generation") == "1"
    incus("storage", "delete", pool)


def test_rebuild_makes_a_first_generation_again(incus: Incus) -> None:
    flake = incus.flake(greeting="one")
    name = incus.launch(flake=f"{flake}#web")
    uuid = incus.uuid(name)
    incus.flake(greeting="two")
    incus.set(name, "user.inx.update=2")
    incus.restart_into(name, generation=2)
    for image in "--empty", "inx":
        incus("stop", name)
        incus("rebuild", image, name)
        incus.start(name)
        incus.wait_inside(name)
        incus.wait_told(name, 1)
        assert incus.said(name, "cat", "/etc/greeting") == "two"
        assert incus.uuid(name) == uuid


def test_copies_and_renamed_ones_start_the_same_system_without_evaluation(
    incus: Incus, host: Host
) -> None:
    name = incus.name()
    flake = incus.flake(name)
    incus.launch(name=name, flake=flake)
    first = system(incus, name)
    incus("stop", name)
    host.run(["rm", "-r", flake])
    copied, renamed = (incus.adopt(incus.name(suffix)) for suffix in ("copy", "new"))
    incus("copy", name, copied)
    incus("rename", name, renamed)
    with stopped_nix_daemon(host):
        for other in copied, renamed:
            incus.start(other)
            incus.wait_ready(other)
            assert system(incus, other) == first
            assert incus.get(other, "user.inx.status.generation") == "1"
    assert incus.uuid(copied) != incus.uuid(renamed)
    for other in copied, renamed:
        see(incus, other)


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_a_restored_snapshot_starts_its_own_generation(
    incus: Incus, host: Host, running: bool
) -> None:
    flake = incus.flake(greeting="one")
    name = incus.launch(flake=f"{flake}#web")
    incus("snapshot", "create", name, "before")
    incus.flake(greeting="two")
    incus.set(name, "user.inx.update=2")
    incus.restart_into(name, generation=2)
    host.run(["rm", "-r", flake])
    if not running:
        incus("stop", name)
    incus("snapshot", "restore", name, "before")
    if not running:
        incus.start(name)
    incus.wait_inside(name)
    incus.wait_told(name, 1)
    assert incus.said(name, "cat", "/etc/greeting") == "one"
    assert system(incus, name) == incus.get(name, "user.inx.status.system")


def test_disk_device_for_data(incus: Incus) -> None:
    volume = incus.name("volume")
    incus("storage", "volume", "create", "default", volume)
    name = incus.init(flake="/etc/nixos#web")
    disk = ["disk", "pool=default", f"source={volume}", "path=/data"]
    incus("config", "device", "add", name, "data", *disk)
    incus.start(name)
    incus.wait_ready(name)
    incus.sh(name, "echo kept >/data/file")
    incus("rebuild", "--empty", "--force", name)
    incus.wait_ready(name)
    assert incus.said(name, "cat", "/data/file") == "kept\n"
    see(incus, name)
    incus("delete", "-f", name)
    incus("storage", "volume", "delete", "default", volume)


def test_empty_image(incus: Incus) -> None:
    name = incus.adopt(incus.name())
    incus("launch", "inx", name, "--profile", "inx", "-c", "user.inx.flake=/etc/nixos#web")
    incus.wait_ready(name)
    see(incus, name)
