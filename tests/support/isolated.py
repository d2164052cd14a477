"""Isolated instances, and whether they see the closure of their system and nothing else."""

import functools
import json
from typing import Any

from support.disposable import Host
from support.incus import Incus
from support.services import sync
from support.store import STORE, closure, collect, exists

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
# What stat(2) tells of each entry of a directory, but for owners and the size of directories.
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
# Exit statuses: 2 a store path does not belong to root, 3 a program does not run, 4 the store can
# be written.
LOOK_INSIDE = """
    [ -z "$(find /nix/store -maxdepth 2 '(' ! -user 0 -o ! -group 0 ')')" ] || exit 2
    nix --version >/dev/null || exit 3
    touch /nix/store/planted && exit 4
    exit 0
"""


@functools.cache
def ready_made(host: Host) -> str:
    """A link to a system that is there already, so that a start builds nothing."""
    link = "/srv/isolated-system"
    host.run(["nix-build", "/etc/nixos", "-A", "web", "-o", link])
    return link


def isolated(incus: Incus, *args: str, name: str = "", **keys: str) -> str:
    """A running isolated instance, of the ready-made system unless the keys name another one."""
    keys = {"store": "isolated"} | keys
    if not {"flake", "file", "system"} & keys.keys():
        keys["system"] = ready_made(incus.host)
    return incus.launch(*args, name=name, **keys)


def things(incus: Incus) -> str:
    """A Nix file on the host whose derivations no other test has."""
    path = f"/srv/{incus.prefix}-things.nix"
    incus.host.sh('cat >"$P"', env={"P": path}, input=THINGS % incus.prefix)
    return path


def made(incus: Incus, *attributes: str) -> list[str]:
    """Store paths of `things` that no root keeps."""
    options = [word for attribute in attributes for word in ("-A", attribute)]
    done = incus.host.run(["nix-build", "--no-out-link", things(incus), *options])
    return done.stdout.split()


def init_of(incus: Incus, name: str, project: str = "default") -> int:
    state = incus.json("query", f"/1.0/instances/{name}/state?project={project}")
    return int(state["pid"])


def entries(host: Host, directory: str = STORE) -> dict[str, Any]:
    return dict(json.loads(host.run(["python3", "-I", "-c", LIST, directory]).stdout))


def entries_inside(incus: Incus, name: str, project: str = "default") -> dict[str, Any]:
    """The entries of the store that a process of the instance sees."""
    return entries(incus.host, f"/proc/{init_of(incus, name, project)}/root{STORE}")


def names(paths: set[str]) -> set[str]:
    return {path.removeprefix(f"{STORE}/") for path in paths}


def sees_its_closure_alone(incus: Incus, name: str, *include: str, project: str = "default") -> str:
    """The system that runs, after a look at the store inside.

    The closures of the system and of `include` are seen as they are on the host, belong to root
    and work. Nothing else is seen.
    """
    init = init_of(incus, name, project)
    system = incus.host.run(["readlink", f"/proc/{init}/root/run/current-system"]).stdout.strip()
    shown = entries_inside(incus, name, project)
    everything = entries(incus.host)
    wanted = names(closure(incus.host, system, *include))
    assert shown.keys() == wanted, incus.story()
    assert shown == {name: everything[name] for name in wanted}
    assert everything.keys() - wanted, "the host has more"
    done = incus.sh(name, LOOK_INSIDE, project=project, check=False)
    assert done.returncode == 0, f"{name}: {done}"
    incus.eventually(
        lambda: incus.get(name, "user.inx.status.system", project) == system, incus.story
    )
    return system


def restart(incus: Incus, name: str) -> None:
    """Restart in order, until the system has come up again."""
    before = init_of(incus, name)
    incus("restart", name)
    wait_other_init(incus, name, before)


def wait_other_init(incus: Incus, name: str, before: int) -> None:
    incus.eventually(lambda: incus.pid(name) not in (0, before), incus.story)
    incus.wait_inside(name)


def boots_again(incus: Incus, name: str, *include: str) -> str:
    incus.start(name)
    incus.wait_inside(name)
    return sees_its_closure_alone(incus, name, *include)


def is_collected(incus: Incus, path: str) -> None:
    """The path is there, and a collection deletes it once Incus is idle."""
    assert exists(incus.host, path)

    def collected() -> bool:
        sync(incus.host)
        collect(incus.host)
        return not exists(incus.host, path)

    incus.eventually(
        collected,
        lambda: (
            incus.host.run(["nix-store", "--query", "--roots", path]).stdout
            + incus("config", "show", incus.name(), check=False).stdout
        ),
    )
