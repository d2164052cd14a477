"""An isolated instance sees the closure of its system and what it includes, whatever Incus does."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.isolated

SYSTEM = "/srv/isolated-system"
SIDECAR = "inx-sidecar.service"
KEY = "/var/lib/inx/seal.key"
GCROOTS = "/nix/var/nix/gcroots/inx"
ABSENT = "/nix/store/00000000000000000000000000000000-absent"

# Store paths of every type, and systems that need them; `token` makes them new.
THINGS = """
let
  token = "%s";
  gathered = builtins.fromJSON (builtins.readFile /etc/nixos/deps.json);
  deps = builtins.mapAttrs (n: v: if n == "system" then v else builtins.storePath v) gathered;
  make = name: script: derivation {
    name = "${name}-${token}";
    inherit (deps) system;
    PATH = "${deps.busybox}/bin";
    builder = "${deps.busybox}/bin/sh";
    args = [ "-euc" script ];
  };
  system = name: file: more: import file {
    inherit deps name;
    extra.things = "${all.plain} ${all.program} ${all.link}${more}";
  };
  all = rec {
    plain = builtins.toFile "plain-${token}" "plain text";
    needed = make "needed" "mkdir $out; echo needed >$out/text";
    directory = make "directory" "mkdir $out; ln -s ${needed}/text $out/text";
    program = make "program" "printf '#!${deps.busybox}/bin/sh\\nexit 42\\n' >$out; chmod +x $out";
    link = make "link" "ln -s ${directory}/text $out";
    slow = make "slow" "echo 'step one of the slow build' >&2; sleep 4; echo slow >$out";
    busybox = system "busybox" /etc/nixos/system.nix "";
    systemd = system "systemd" /etc/nixos/systemd.nix "";
    late = system "late" /etc/nixos/system.nix " ${slow}";
  };
in all
"""
# What stat(2) tells of each entry, but for owners and the size of directories.
LIST = """
import json, os, stat, sys
found = {}
with os.scandir(sys.argv[1]) as entries:
    for entry in entries:
        status = entry.stat(follow_symlinks=False)
        size = None if entry.is_dir(follow_symlinks=False) else status.st_size
        target = os.readlink(entry.path) if entry.is_symlink() else None
        found[entry.name] = [status.st_mode, status.st_mtime_ns, size, target]
json.dump(found, sys.stdout)
"""
# Exit statuses: 2 some path in the store is not root's, 3 a program does not run, 4 it was written.
INSIDE = """
    [ -z "$(find /nix/store -maxdepth 2 '(' ! -user 0 -o ! -group 0 ')')" ] || exit 2
    nix --version >/dev/null || exit 3
    touch /nix/store/planted && exit 4
    exit 0
"""
# A process for each root directory that argv names maps argv[1] below it and touches every page;
# prints the sum of their proportional shares of it in kB.
MAP = """
import mmap, os, sys
path, *roots = sys.argv[1:]
touched, finish = os.pipe(), os.pipe()
children = []
for root in roots:
    children.append(os.fork())
    if children[-1] == 0:
        os.close(finish[1])
        with open(root + path, "rb") as file:
            view = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        for offset in range(0, len(view), mmap.PAGESIZE):
            view[offset]
        os.write(touched[1], b".")
        os.read(finish[0], 1)
        os._exit(0)
os.close(touched[1])
for _ in children:
    assert os.read(touched[0], 1) == b"."
total = 0
for child in children:
    with open(f"/proc/{child}/smaps") as file:
        within = False
        for line in file:
            words = line.split()
            if "-" in words[0]:
                within = words[-1].endswith(path)
            elif within and words[0] == "Pss:":
                total += int(words[1])
os.close(finish[1])
for child in children:
    os.waitpid(child, 0)
print(total)
"""


@pytest.fixture(scope="module", autouse=True)
def system(host: Host) -> None:
    """What most instances here start, so that nothing is built for them."""
    host.run(["nix-build", "/etc/nixos", "-A", "web", "-o", SYSTEM])


@contextmanager
def no_nix_daemon(host: Host) -> Iterator[None]:
    host.run(["systemctl", "stop", "nix-daemon.socket", "nix-daemon.service"])
    try:
        yield
    finally:
        host.run(["systemctl", "start", "nix-daemon.socket"])


def isolated(incus: Incus, *args: str, name: str = "", **keys: str) -> str:
    keys = {"store": "isolated"} | keys
    if not {"flake", "file", "system"} & keys.keys():
        keys["system"] = SYSTEM
    return incus.launch(*args, name=name, **keys)


def things(incus: Incus) -> str:
    """A Nix file on the host, with attributes that no other test has."""
    path = f"/srv/{incus.prefix}-things.nix"
    incus.host.sh('cat >"$P"', env={"P": path}, input=THINGS % incus.prefix)
    return path


def made(incus: Incus, *attributes: str) -> list[str]:
    """Store paths that nothing roots."""
    options = [word for attribute in attributes for word in ("-A", attribute)]
    done = incus.host.run(["nix-build", "--no-out-link", things(incus), *options])
    return done.stdout.split()


def init_of(incus: Incus, name: str, project: str = "default") -> int:
    state = incus.json("query", f"/1.0/instances/{name}/state?project={project}")
    return int(state["pid"])


def listed(host: Host, directory: str) -> dict[str, Any]:
    return dict(json.loads(host.run(["python3", "-I", "-c", LIST, directory]).stdout))


def visible(incus: Incus, name: str, project: str = "default") -> dict[str, Any]:
    """The entries of the store that a process of the instance sees."""
    return listed(incus.host, f"/proc/{init_of(incus, name, project)}/root/nix/store")


def running(incus: Incus, name: str, project: str = "default") -> str:
    pid = init_of(incus, name, project)
    return incus.host.run(["readlink", f"/proc/{pid}/root/run/current-system"]).stdout.strip()


def sees(incus: Incus, name: str, *include: str, project: str = "default") -> str:
    """The system that runs: its closure and that of `include` are seen as they are on the host,
    belong to root and work, and nothing else is seen."""
    system = running(incus, name, project)
    shown = visible(incus, name, project)
    closure = incus.host.run(["nix-store", "-qR", system, *include]).stdout.split()
    everything = listed(incus.host, "/nix/store")
    wanted = {path.removeprefix("/nix/store/") for path in closure}
    assert shown.keys() == wanted, incus.story()
    assert shown == {name: everything[name] for name in wanted}
    assert everything.keys() - wanted, "the host has more"
    done = incus.sh(name, INSIDE, project=project, check=False)
    assert done.returncode == 0, f"{name}: {done}"
    incus.eventually(
        lambda: incus.get(name, "user.inx.status.system", project) == system, incus.story
    )
    return system


def restart(incus: Incus, name: str) -> None:
    """Orderly, until the system has come up again."""
    before = init_of(incus, name)
    incus("restart", name)
    wait_other_init(incus, name, before)


def wait_other_init(incus: Incus, name: str, before: int) -> None:
    incus.eventually(lambda: incus.pid(name) not in (0, before), incus.story)
    incus.wait_inside(name)


def boots_again(incus: Incus, name: str, *include: str) -> str:
    incus.start(name)
    incus.wait_inside(name)
    return sees(incus, name, *include)


def there(host: Host, path: str) -> bool:
    return host.run(["test", "-e", path], check=False).returncode == 0


def collect(host: Host) -> None:
    host.run(["nix-collect-garbage"])


def sync(host: Host) -> None:
    host.run(["/opt/inx/bin/inx-sidecar", "sync"])


def gone(incus: Incus, path: str) -> None:
    """It was there, and is collected once Incus is idle and the sidecar has compared."""
    assert there(incus.host, path)

    def collected() -> bool:
        sync(incus.host)
        collect(incus.host)
        return not there(incus.host, path)

    incus.eventually(
        collected,
        lambda: (
            incus.host.run(["nix-store", "--query", "--roots", path]).stdout
            + incus("config", "show", incus.name(), check=False).stdout
        ),
    )


# --- Systems ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["busybox", "systemd"])
def test_a_system_boots_and_reboots_with_its_closure_alone(incus: Incus, kind: str) -> None:
    name = isolated(incus, file=things(incus), attr=kind)
    types = {f"{status[0]:o}"[:-4] for status in visible(incus, name).values()}
    assert types == {"4", "10", "12"}, "a directory, a file and a link"
    first = sees(incus, name)
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
        services_see_it(incus, name)
    before = init_of(incus, name)
    reboot = {"busybox": ["reboot"], "systemd": ["systemctl", "reboot"]}[kind]
    incus.run(name, *reboot, check=False)
    wait_other_init(incus, name, before)
    assert sees(incus, name) == first
    restart(incus, name)
    assert sees(incus, name) == first
    assert incus.sh(name, works, check=False).returncode == 0
    mounts = incus.host.run(["cat", f"/proc/{init_of(incus, name)}/mounts"]).stdout
    assert mounts.count(" /nix/store ") == 1
    assert incus.get(name, "user.inx.status.generation") == "1"


def services_see_it(incus: Incus, name: str) -> None:
    """In a mount namespace of their own."""
    state = ["systemctl", "is-system-running", "--wait"]
    incus.eventually(
        lambda: incus.run(name, *state, check=False).returncode == 0,
        lambda: incus.run(name, "systemctl", "--failed", check=False).stdout,
    )
    init = init_of(incus, name)
    own = incus.host.run(["readlink", f"/proc/{init}/ns/mnt"]).stdout.strip()
    script = f"""
        [ "$(readlink /proc/self/ns/mnt)" != "{own}" ] || exit 2
        [ "$(ls /nix/store | wc -l)" = {len(visible(incus, name))} ] || exit 3
        {INSIDE}
    """
    shell = ["/run/current-system/sw/bin/sh", "-uc", f"PATH=/run/current-system/sw/bin; {script}"]
    options = ["-p", "PrivateTmp=yes", "-p", "ProtectSystem=strict"]
    unit = ["systemd-run", "--wait", "--quiet", "--pipe", *options]
    done = incus.run(name, *unit, *(word.replace("$", "$$") for word in shell), check=False)
    assert done.returncode == 0, done


# --- Kinds of instances -----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["idmap.isolated", "privileged", "nesting"])
def test_every_kind_of_instance_sees_its_closure_alone(incus: Incus, key: str) -> None:
    name = isolated(incus, "-c", f"security.{key}=true")
    sees(incus, name)
    rows = incus.host.run(["cat", f"/proc/{init_of(incus, name)}/uid_map"]).stdout.split()
    assert (rows == ["0", "0", "4294967295"]) == (key == "privileged")
    restart(incus, name)
    sees(incus, name)


def test_instances_of_another_project_see_their_closure_alone(incus: Incus) -> None:
    project = incus.name("project")
    incus("project", "create", project, "-c", "features.profiles=false")
    path = made(incus, "directory")[0]
    name = isolated(incus)
    other = isolated(incus, name=incus.name("b"), project=project, store_include=path)
    sees(incus, name)
    sees(incus, other, path, project=project)
    incus("delete", "-f", other, "--project", project)
    incus("project", "delete", project, "--force", input="yes\n")
    sees(incus, name)


def test_a_rebuilt_instance_is_isolated_again(incus: Incus) -> None:
    name = isolated(incus)
    first = sees(incus, name)
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
    first = sees(incus, name, path)
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
    with no_nix_daemon(host):
        for other in copied, renamed, imported:
            assert boots_again(incus, other, path) == first
            assert incus.status(other) == "ready"
            assert incus.get(other, "user.inx.status.generation") == "1"
    assert len({incus.uuid(other) for other in (copied, renamed, imported)}) == 3


@pytest.mark.parametrize("restored", ["stopped", "running"])
def test_a_restored_snapshot_shows_its_own_generation(
    incus: Incus, host: Host, restored: str
) -> None:
    flake = incus.flake(greeting="one")
    name = isolated(incus, flake=f"{flake}#web")
    first = sees(incus, name)
    incus("snapshot", "create", name, "before")
    incus.flake(greeting="two")
    incus.set(name, "user.inx.update=2")
    incus.restart_into(name, generation=2)
    second = sees(incus, name)
    assert first != second
    host.run(["rm", "-r", flake])
    if restored == "stopped":
        incus("stop", name)
    before = incus.pid(name)
    incus("snapshot", "restore", name, "before")
    if restored == "stopped":
        incus.start(name)
    wait_other_init(incus, name, before)
    assert sees(incus, name) == first


def test_changed_from_shared_to_isolated_and_back(incus: Incus, host: Host) -> None:
    name = incus.launch(system=SYSTEM)
    built = f"shared-{incus.prefix}"
    text = 'derivation { name = "%s"; system = builtins.currentSystem; builder = "/bin/sh"; '
    text += 'args = [ "-c" "echo kept >$out" ]; }'
    script = "cat >/root/thing.nix; nix-build /root/thing.nix -o /root/link"
    incus.sh(name, script, input=text % built)
    paths = [path for path in listed(host, "/nix/store") if path.endswith(f"-{built}")]
    assert len(paths) == 1
    assert visible(incus, name).keys() == listed(host, "/nix/store").keys()

    incus.set(name, "user.inx.store=isolated")
    assert visible(incus, name).keys() == listed(host, "/nix/store").keys(), "at the next start"
    restart(incus, name)
    sees(incus, name)
    assert incus.run(name, "nix", "store", "info", check=False).returncode != 0
    for _ in range(2):
        sync(host)
        collect(host)
    assert there(host, f"/nix/store/{paths[0]}")
    sees(incus, name)

    incus.set(name, "user.inx.store=shared")
    restart(incus, name)
    assert visible(incus, name).keys() == listed(host, "/nix/store").keys()
    incus.run(name, "grep", "-qx", "kept", "/root/link")
    incus.run(name, "nix", "store", "info")
    incus.run(name, "rm", "/root/link")
    gone(incus, f"/nix/store/{paths[0]}")


# --- user.inx.store.include -------------------------------------------------------------------


@pytest.mark.parametrize("where", ["instance", "profile"])
def test_included_paths_show_with_all_that_they_need(incus: Incus, host: Host, where: str) -> None:
    link, program = made(incus, "link", "program")
    file = f"/srv/{incus.prefix}-added"
    host.run(["sh", "-euc", f"echo added >{file}; ln -s nowhere {file}-link"])
    added = [
        host.run(["nix-store", "--add", path]).stdout.strip() for path in (file, f"{file}-link")
    ]
    several = [link, program, *added]
    if where == "profile":
        profile = incus.name("profile")
        incus("profile", "create", profile)
        for key in "store=isolated", f"store.include={several[0]}":
            incus("profile", "set", profile, f"user.inx.{key}")
        name = incus.launch("--profile", profile, system=SYSTEM)
    else:
        name = isolated(incus, store_include=several[0])
    sees(incus, name, several[0])
    assert not {link, program} & set(host.run(["nix-store", "-qR", SYSTEM]).stdout.split())

    text = f"{', '.join(several[:2])}  {chr(10).join(several[2:])} "
    if where == "profile":
        incus("profile", "set", profile, f"user.inx.store.include={text}")
    else:
        incus.set(name, f"user.inx.store.include={text}")
    sees(incus, name, several[0])
    restart(incus, name)
    sees(incus, name, *several)
    look = f"""
        [ "$(cat {link})" = needed ] || exit 2
        [ "$(cat {added[0]})" = added ] || exit 3
        [ "$(readlink {added[1]})" = nowhere ] || exit 4
        status=0; {program} || status=$?
        [ "$status" = 42 ] || exit 5
    """
    assert incus.sh(name, look, check=False).returncode == 0
    if where == "profile":
        incus.set(name, f"user.inx.store.include={program}")
        restart(incus, name)
        sees(incus, name, program)
        incus("delete", "-f", name)
        incus("profile", "delete", profile)


REFUSED = {
    "absent": ("store.include", ABSENT, f"names {ABSENT}, which is not in the store"),
    "no store path": ("store.include", "/etc/passwd", "user.inx.store.include is '/etc/passwd'; "),
    "below one": ("store.include", f"{ABSENT}/bin", f"user.inx.store.include is '{ABSENT}/bin'; "),
    "option": ("store.include", f"{ABSENT} -x", f"user.inx.store.include is '{ABSENT} -x'; "),
    "all": ("store.include", "/nix/store", "user.inx.store.include is '/nix/store'; allowed: "),
    "shared": ("store", "shared", "user.inx.store.include goes with user.inx.store=isolated"),
    "typo": ("store", "Isolated", "user.inx.store is 'Isolated'; allowed: shared or isolated"),
    "daemon": ("daemon", "true", "exclude each other"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_shown_is_refused_with_one_sentence(
    incus: Incus, host: Host, what: str
) -> None:
    key, value, reason = REFUSED[what]
    good = host.run(["readlink", SYSTEM]).stdout.strip()
    name = incus.init(system=SYSTEM, store="isolated", store_include=good)
    incus.set(name, f"user.inx.{key}={value}")
    refused = incus.start(name, check=False)
    assert refused.returncode != 0 and "--show-log" in refused.stderr
    assert incus.state(name) == "STOPPED" and incus.pid(name) == 0
    said = [line for line in incus.log(name).splitlines() if " inx - " in line]
    assert len(said) == 1 and reason in said[0], said
    incus.wait_status(name, "failed: ")
    # Nothing else is wrong with it.
    incus.set(name, f"user.inx.{key}=", "user.inx.store=isolated")
    boots_again(incus, name)


def test_what_is_included_outlives_collections_until_it_is_taken_away(
    incus: Incus, host: Host
) -> None:
    path = made(incus, "directory")[0]
    needed = host.run(["nix-store", "-q", "--references", path]).stdout.split()

    def kept() -> None:
        sync(host)
        collect(host)
        assert all(there(host, each) for each in (path, *needed)), incus.story()

    name = isolated(incus, store_include=path)
    kept()
    sees(incus, name, path)
    incus("stop", name)
    kept()
    copied = incus.adopt(incus.name("copy"))
    incus("copy", name, copied)
    incus("delete", name)
    kept()
    assert boots_again(incus, copied, path)
    incus("snapshot", "create", copied, "before")
    incus.set(copied, "user.inx.store.include=")
    sees(incus, copied, path)
    kept()
    restart(incus, copied)
    sees(incus, copied)
    incus.eventually(lambda: set(holders(host, path)) == {"snapshots"}, incus.story)
    kept()
    incus("snapshot", "restore", copied, "before")
    incus.wait_inside(copied)
    sees(incus, copied, path)
    incus.set(copied, "user.inx.store.include=")
    incus("snapshot", "delete", copied, "before")
    kept()
    restart(incus, copied)
    gone(incus, path)
    sees(incus, copied)


def test_what_the_next_start_includes_outlives_collections_before_it(
    incus: Incus, host: Host
) -> None:
    path = made(incus, "directory")[0]
    name = isolated(incus)
    incus.set(name, f"user.inx.store.include={path}")
    collect(host)
    sees(incus, name)
    restart(incus, name)
    sees(incus, name, path)


def holders(host: Host, path: str) -> list[str]:
    """The kinds of roots that hold it, after a comparison."""
    sync(host)
    printed = ["find", GCROOTS, "-lname", path, "-printf", "%P\\n"]
    return [line.split("/")[1] for line in host.run(printed).stdout.splitlines()]


# --- Builds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sidecar", ["lives", "is killed"])
def test_nothing_is_seen_while_a_build_is_pending(incus: Incus, host: Host, sidecar: str) -> None:
    path = made(incus, "directory")[0]
    name = incus.init(store="isolated", file=things(incus), attr="late", store_include=path)
    incus.start(name)
    incus.eventually(lambda: "step one of the slow build" in incus.console(name), incus.story)
    init = init_of(incus, name)
    assert nothing_is_seen(host, init)
    if sidecar == "is killed":
        before = host.run(["systemctl", "show", "-P", "MainPID", SIDECAR]).stdout
        host.run(["systemctl", "kill", "--signal=KILL", SIDECAR])
        incus.eventually(
            lambda: (
                host.run(["systemctl", "show", "-P", "MainPID", SIDECAR]).stdout
                not in (before, "0\n")
            ),
            incus.story,
        )
    assert host.run(
        ["test", "-e", f"/run/inx/{incus.uuid(name)}/boot/ready"], check=False
    ).returncode
    assert nothing_is_seen(host, init)
    incus.wait_ready(name)
    system = sees(incus, name, path)
    assert init_of(incus, name) == init
    restart(incus, name)
    assert sees(incus, name, path) == system


def nothing_is_seen(host: Host, init: int) -> bool:
    script = 'd=/proc/$0/root; [ -d $d/dev/.inx ] && [ -z "$(ls -A $d/nix/store 2>/dev/null)" ]'
    return host.run(["sh", "-euc", script, str(init)], check=False).returncode == 0


def test_a_build_that_fails_stops_an_isolated_instance(incus: Incus) -> None:
    text = 'nixosConfigurations.web = throw "no such thing as a free system";'
    flake = incus.flake_text(text, f"/srv/{incus.prefix}")
    name = incus.init(store="isolated", flake=f"{flake}#web")
    incus.start(name)
    incus.wait_state(name, "STOPPED")
    assert "no such thing as a free system" in incus.wait_status(name, "failed: ")


def test_a_failed_rebuild_starts_the_last_generation_isolated(incus: Incus) -> None:
    name = isolated(incus, flake="/etc/nixos#web")
    first = sees(incus, name)
    incus("stop", name)
    incus.set(name, "user.inx.flake=/srv/gone#web")
    incus.start(name)
    assert incus.wait_status(name, "failed: ").endswith("; started generation 1")
    incus.wait_inside(name)
    assert sees(incus, name) == first


def test_a_sidecar_that_is_restarted_changes_nothing_of_the_view(incus: Incus, host: Host) -> None:
    name = isolated(incus)

    def mounts() -> list[str]:
        rows = host.run(["cat", f"/proc/{init_of(incus, name)}/mountinfo"]).stdout.splitlines()
        return [row for row in rows if " /nix/" in row]

    init, before = init_of(incus, name), mounts()
    assert before
    for how in "restart", "kill --signal=KILL":
        host.run(["systemctl", *how.split(), SIDECAR])
        sync(host)
        assert (init_of(incus, name), mounts()) == (init, before)
        sees(incus, name)


# --- Generations and seals --------------------------------------------------------------------


def test_a_pinned_generation_is_what_is_seen_and_kept(incus: Incus, host: Host) -> None:
    name = isolated(incus, flake=f"{incus.flake(greeting='one')}#web")
    first = sees(incus, name)
    incus.flake(greeting="two")
    incus.set(name, "user.inx.update=2")
    incus.restart_into(name, generation=2)
    second = sees(incus, name)
    incus.set(name, "user.inx.generation=1")
    incus.restart_into(name, generation=1)
    assert sees(incus, name) == first
    # Nothing but that it runs holds it then.
    incus.sh(name, "rm /nix/var/nix/profiles/system*")
    gone(incus, second)
    assert there(host, first)
    shown = visible(incus, name)
    assert shown.keys() == {
        path.removeprefix("/nix/store/")
        for path in host.run(["nix-store", "-qR", first]).stdout.split()
    }
    assert incus.sh(name, INSIDE, check=False).returncode == 0
    assert incus.run(name, "grep", "-q", "one", "/etc/greeting", check=False).returncode == 0


@pytest.mark.parametrize("size", [32, 5], ids=["another", "cut short"])
def test_a_seal_of_another_host_does_not_count(incus: Incus, host: Host, size: int) -> None:
    name = isolated(incus, flake=f"{incus.flake(greeting='one')}#web")
    first = sees(incus, name)
    shared = incus.launch(name=incus.name("shared"), flake=f"{incus.flake(greeting='one')}#web")
    incus.flake(greeting="two")
    restart(incus, name)
    assert sees(incus, name) == first, "its source has not changed, so nothing is evaluated"
    for each in name, shared:
        incus("stop", each)
    assert host.run(["stat", "-c", "%a %u %s", KEY]).stdout.split() == ["600", "0", "32"]
    host.sh(
        'cp -p "$K" "$K.saved"; head -c "$N" /dev/urandom >"$K"', env={"K": KEY, "N": str(size)}
    )
    try:
        incus.start(name)
        incus.wait_inside(name)
        second = sees(incus, name)
        assert second != first
        incus.run(name, "grep", "-qx", "two", "/etc/greeting")
        incus.wait_status(name, "ready$")
        incus.start(shared)
        incus.wait_inside(shared)
        incus.run(shared, "grep", "-qx", "one", "/etc/greeting")
        assert host.run(["stat", "-c", "%a %u %s", KEY]).stdout.split() == ["600", "0", "32"]
        incus.flake(greeting="three")
        restart(incus, name)
        assert sees(incus, name) == second, "it has a seal of this key now"
    finally:
        host.run(["mv", f"{KEY}.saved", KEY])
    restart(incus, name)
    incus.wait_status(name, "ready$")
    sees(incus, name)
    incus.run(name, "grep", "-qx", "three", "/etc/greeting")


# --- Memory -----------------------------------------------------------------------------------


def test_what_ten_instances_map_is_in_memory_once(incus: Incus, host: Host) -> None:
    big = f"/srv/{incus.prefix}-big"
    host.sh('mkdir "$D"; head -c 50M /dev/urandom >"$D/lib.so"', env={"D": big})
    path = host.run(["nix-store", "--add", big]).stdout.strip()
    names = [
        incus.init(
            name=incus.name(f"n{number}"), system=SYSTEM, store="isolated", store_include=path
        )
        for number in range(10)
    ]
    incus("start", *names)
    for name in names:
        incus.wait_inside(name)
    roots = [f"/proc/{init_of(incus, name)}/root" for name in names]

    def mapped(file: str) -> float:
        """Megabytes, shared ones counted once."""
        found = host.run(["python3", "-I", "-c", MAP, file, *roots]).stdout
        assert re.fullmatch(r"[0-9]+\n", found)
        return int(found) / 1024

    try:
        assert 49 < mapped(f"{path}/lib.so") < 75
        for name in names:
            incus.run(name, "cp", f"{path}/lib.so", "/copy")
        assert 490 < mapped("/copy") < 525
    finally:
        host.run(["rm", "-r", big])
