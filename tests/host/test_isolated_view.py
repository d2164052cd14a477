"""An isolated instance sees the closure of its system alone, after every operation of Incus."""

import re

import pytest
from support.disposable import Host
from support.incus import Incus
from support.isolated import (
    LOOK_INSIDE,
    boots_again,
    entries,
    entries_inside,
    init_of,
    is_collected,
    isolated,
    made,
    ready_made,
    restart,
    sees_its_closure_alone,
    things,
    wait_other_init,
)
from support.services import stopped_nix_daemon, sync
from support.store import collect, exists

pytestmark = pytest.mark.isolated


@pytest.mark.sid
@pytest.mark.parametrize("kind", ["busybox", "systemd"])
def test_a_system_boots_and_reboots_with_its_closure_alone(incus: Incus, kind: str) -> None:
    name = isolated(incus, file=things(incus), attr=kind)
    types = {f"{status[0]:o}"[:-4] for status in entries_inside(incus, name).values()}
    assert types == {"4", "10", "12"}, "a directory, a file and a link"
    first = sees_its_closure_alone(incus, name)
    program = incus.host.run(["readlink", f"/proc/{init_of(incus, name)}/exe"]).stdout.strip()
    assert re.fullmatch(f"/nix/store/.*/{kind}", program)
    works = """
        read -r plain program link </run/current-system/etc/things || :
        [ "$(cat "$plain")" = "plain text" ] || exit 2
        [ "$(cat "$link")" = needed ] || exit 3
        status=0; "$program" || status=$?
        [ "$status" = 42 ] || exit 4
    """
    assert incus.sh(name, works, check=False).returncode == 0
    if kind == "systemd":
        check_a_service(incus, name)
    before = init_of(incus, name)
    reboot = {"busybox": ["reboot"], "systemd": ["systemctl", "reboot"]}[kind]
    incus.run(name, *reboot, check=False)
    wait_other_init(incus, name, before)
    assert sees_its_closure_alone(incus, name) == first
    restart(incus, name)
    assert sees_its_closure_alone(incus, name) == first
    assert incus.sh(name, works, check=False).returncode == 0
    mounts = incus.host.run(["cat", f"/proc/{init_of(incus, name)}/mounts"]).stdout
    assert mounts.count(" /nix/store ") == 1
    assert incus.get(name, "user.inx.status.generation") == "1"


def check_a_service(incus: Incus, name: str) -> None:
    """A service with a mount namespace of its own sees the closure of the system, too."""
    state = ["systemctl", "is-system-running", "--wait"]
    incus.eventually(
        lambda: incus.run(name, *state, check=False).returncode == 0,
        lambda: incus.run(name, "systemctl", "--failed", check=False).stdout,
    )
    init = init_of(incus, name)
    own = incus.host.run(["readlink", f"/proc/{init}/ns/mnt"]).stdout.strip()
    script = f"""
        [ "$(readlink /proc/self/ns/mnt)" != "{own}" ] || exit 2
        [ "$(ls /nix/store | wc -l)" = {len(entries_inside(incus, name))} ] || exit 3
        {LOOK_INSIDE}
    """
    shell = ["/run/current-system/sw/bin/sh", "-uc", f"PATH=/run/current-system/sw/bin; {script}"]
    options = ["-p", "PrivateTmp=yes", "-p", "ProtectSystem=strict"]
    unit = ["systemd-run", "--wait", "--quiet", "--pipe", *options]
    done = incus.run(name, *unit, *(word.replace("$", "$$") for word in shell), check=False)
    assert done.returncode == 0, done


@pytest.mark.parametrize("key", ["idmap.isolated", "privileged", "nesting"])
def test_every_kind_of_instance_sees_its_closure_alone(incus: Incus, key: str) -> None:
    name = isolated(incus, "-c", f"security.{key}=true")
    sees_its_closure_alone(incus, name)
    rows = incus.host.run(["cat", f"/proc/{init_of(incus, name)}/uid_map"]).stdout.split()
    assert (rows == ["0", "0", "4294967295"]) == (key == "privileged")
    restart(incus, name)
    sees_its_closure_alone(incus, name)


def test_instances_of_another_project_see_their_closure_alone(incus: Incus) -> None:
    project = incus.name("project")
    incus("project", "create", project, "-c", "features.profiles=false")
    path = made(incus, "directory")[0]
    name = isolated(incus)
    other = isolated(incus, name=incus.name("b"), project=project, store_include=path)
    sees_its_closure_alone(incus, name)
    sees_its_closure_alone(incus, other, path, project=project)
    incus("delete", "-f", other, "--project", project)
    incus("project", "delete", project)  # --force would empty the default profile of all
    sees_its_closure_alone(incus, name)


def test_a_rebuilt_instance_is_isolated_again(incus: Incus) -> None:
    name = isolated(incus)
    first = sees_its_closure_alone(incus, name)
    incus("stop", name)
    incus("rebuild", "--empty", name)
    assert boots_again(incus, name) == first
    assert incus.get(name, "user.inx.status.generation") == "1"


def test_copied_renamed_and_imported_ones_start_the_same_system_without_evaluation(
    incus: Incus, host: Host
) -> None:
    name = incus.name()
    flake = incus.flake(name)
    path = made(incus, "directory")[0]
    isolated(incus, name=name, flake=flake, store_include=path)
    first = sees_its_closure_alone(incus, name, path)
    incus("stop", name)
    incus("export", name, f"/srv/{name}.tar.gz")
    host.run(["rm", "-r", flake])
    copied, renamed, imported = (incus.adopt(incus.name(s)) for s in ("copy", "new", "import"))
    incus("copy", name, copied)
    incus("rename", name, renamed)
    incus("import", f"/srv/{name}.tar.gz", imported)
    incus("config", "unset", imported, "volatile.eth0.hwaddr")
    uuid = host.run(["cat", "/proc/sys/kernel/random/uuid"]).stdout.strip()
    incus.set(imported, f"volatile.uuid={uuid}")
    with stopped_nix_daemon(host):
        for other in copied, renamed, imported:
            assert boots_again(incus, other, path) == first
            incus.wait_status(other, "ready$")
            assert incus.get(other, "user.inx.status.generation") == "1"
    assert len({incus.uuid(other) for other in (copied, renamed, imported)}) == 3


@pytest.mark.parametrize("restored", ["stopped", "running"])
def test_a_restored_snapshot_shows_its_own_generation(
    incus: Incus, host: Host, restored: str
) -> None:
    flake = incus.flake(greeting="one")
    name = isolated(incus, flake=f"{flake}#web")
    first = sees_its_closure_alone(incus, name)
    incus("snapshot", "create", name, "before")
    incus.flake(greeting="two")
    incus.set(name, "user.inx.update=2")
    incus.restart_into(name, generation=2)
    second = sees_its_closure_alone(incus, name)
    assert first != second
    host.run(["rm", "-r", flake])
    if restored == "stopped":
        incus("stop", name)
    before = incus.pid(name)
    incus("snapshot", "restore", name, "before")
    if restored == "stopped":
        incus.start(name)
    wait_other_init(incus, name, before)
    assert sees_its_closure_alone(incus, name) == first


def test_changed_from_shared_to_isolated_and_back(incus: Incus, host: Host) -> None:
    name = incus.launch(system=ready_made(incus.host))
    built = f"shared-{incus.prefix}"
    text = 'derivation { name = "%s"; system = builtins.currentSystem; builder = "/bin/sh"; '
    text += 'args = [ "-c" "echo kept >$out" ]; }'
    script = "cat >/root/thing.nix; nix-build /root/thing.nix -o /root/link"
    incus.sh(name, script, input=text % built)
    paths = [path for path in entries(host) if path.endswith(f"-{built}")]
    assert len(paths) == 1
    assert entries_inside(incus, name).keys() == entries(host).keys()

    incus.set(name, "user.inx.store=isolated")
    assert entries_inside(incus, name).keys() == entries(host).keys(), "at the next start"
    restart(incus, name)
    sees_its_closure_alone(incus, name)
    assert incus.run(name, "nix", "store", "info", check=False).returncode != 0
    for _ in range(2):
        sync(host)
        collect(host)
    assert exists(host, f"/nix/store/{paths[0]}")
    sees_its_closure_alone(incus, name)

    incus.set(name, "user.inx.store=shared")
    restart(incus, name)
    assert entries_inside(incus, name).keys() == entries(host).keys()
    incus.run(name, "grep", "-qx", "kept", "/root/link")
    incus.run(name, "nix", "store", "info")
    incus.run(name, "rm", "/root/link")
    is_collected(incus, f"/nix/store/{paths[0]}")
