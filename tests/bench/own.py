"""A store of its own: the time to make it and to register it, and the time and disk that it takes.

The registration is compared with `nix-store --load-db`, which registers the same paths. Access and
builds are compared with a shared store, and with a container without inx that has a copy of the
same paths in its root file system. The containers take turns, so that other load of the machine
affects all of them.
"""

import json
from typing import Any

from bench.store import COMMON, PYTHON, ROUNDS, make_paths, run
from support.disposable import Host
from support.own import NIX_CONFIG

COUNTS = (1000, 20000)
SHOWN = 1000  # paths that each container has
INSTANCES = 10
WARM_ROUNDS = 31
BUILDS = 9
KINDS = ("shared", "isolated", "own", "copied")

MADE = """
counts, rounds, tops = json.load(sys.stdin)
from inx_sidecar.container.own_store import attach_own_store, open_nix
from inx_sidecar.nix import own_database
from inx_sidecar.nix.closure import registrations_of
from inx_sidecar.nix.own_database import encode
from inx_sidecar.nix.shown_record import Record

# The root file system of the host may be an overlay, which cannot be an upper layer.
rootfs = make_rootfs(Path(tempfile.mkdtemp(dir="/var/lib/incus")))
os.chmod(rootfs, 0o755)

async def timed(awaited):
    begin = time.perf_counter()
    value = await awaited
    return 1000 * (time.perf_counter() - begin), value

async def rows_of(top):
    names = frozenset(os.path.basename(path) for path in await closure_of([top]))
    return names, encode(await registrations_of(names), "bench")

async def one(count):
    top, times = tops[str(count)], {}
    times["query"], (names, rows) = await timed(rows_of(top))
    assert len(names) == count
    with sandbox() as (inside, container):
        nix = await open_nix(container)
        for kind in ("register", "register again"):
            times[kind], _ = await timed(
                own_database.write(nix, container.user, rows, "bench", starts=True))
        os.close(nix)
        layer = tempfile.mkdtemp(dir=paths.RUN)
        view = HostDirectory(STORE, paths.OWN_INSIDE, entries=names, layer=layer)
        attached = attach_own_store(container, view, [], uncovered=frozenset(), change=None,
            record=Record({}), roots={})
        times["mounts"], _ = await timed(attached)
        assert set(inside.inside(lambda: os.listdir(STORE))) == names
        subprocess.run(["rm", "-rf", f"{rootfs}/nix", layer], check=True)
    listed = subprocess.run(["nix-store", "-qR", top], capture_output=True, text=True).stdout
    dump = subprocess.run(
        ["nix-store", "--dump-db", *listed.split()], capture_output=True, check=True).stdout
    state = tempfile.mkdtemp()
    begin = time.perf_counter()
    subprocess.run(["nix-store", "--load-db"], input=dump, check=True,
        env={**os.environ, "NIX_STATE_DIR": state, "NIX_REMOTE": ""})
    times["load-db"] = 1000 * (time.perf_counter() - begin)
    subprocess.run(["rm", "-rf", state], check=True)
    return times

async def main():
    await one(min(counts))
    answer = {}
    for count in counts:
        found = [await one(count) for _ in range(rounds[str(count)])]
        answer[count] = {kind: statistics.median(times[kind] for times in found)
                         for kind in found[0]}
    print(json.dumps(answer))

os.makedirs(paths.RUN, exist_ok=True)
asyncio.run(main())
"""

# Microseconds for each operation, in the mount namespaces of the running containers.
ACCESS = """
import gc, json, os, statistics, subprocess, sys, time
top, nix, containers, rounds = json.load(sys.stdin)
gc.disable()
listed = subprocess.run(["nix-store", "-qR", top], capture_output=True, text=True, check=True)
names = listed.stdout.split()
files = [f"{where}/{file}" for name in names if "-bench-" in name and os.path.isdir(name)
         and not name.endswith("-bench-big")
         for where, _, inside in os.walk(name) for file in inside]
buffer, quiet = bytearray(1 << 20), os.memfd_create("output")
big = next(name for name in names if name.endswith("-bench-big"))

def read(path):
    fd = os.open(path, os.O_RDONLY)
    while os.readv(fd, [buffer]):
        pass
    os.close(fd)

def execute(path):
    library = f"{path}/lib"
    argv = [f"{library}/ld.so", "--library-path", library, f"{path}/bin/nix", "--version"]
    pid = os.posix_spawn(argv[0], argv, {"HOME": "/"},
                         file_actions=[(os.POSIX_SPAWN_DUP2, quiet, 1)])
    assert os.waitpid(pid, 0)[1] == 0

operations = {
    "stat top-level entries": (os.lstat, names),
    "stat nested files": (os.stat, files),
    "read small files": (read, files),
    "read 50 MB": (read, [f"{big}/data"]),
    "start a program": (execute, 3 * [nix]),
}

def worker(pid):
    # A process of its own for each container: what one has looked up is cached for it alone.
    ask, answer = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(ask[1])
        os.close(answer[0])
        with open(f"/proc/{pid}/ns/mnt") as mounts, open(f"/proc/{pid}/ns/pid") as processes:
            os.setns(mounts.fileno(), os.CLONE_NEWNS)
            os.setns(processes.fileno(), os.CLONE_NEWPID)  # programs read their /proc/self
        while what := os.read(ask[0], 100).decode():
            function, paths = operations[what]
            begin = time.perf_counter()
            for path in paths:
                function(path)
            taken = 1e6 * (time.perf_counter() - begin) / len(paths)
            os.write(answer[1], str(taken).encode())
        os._exit(0)
    os.close(ask[0])
    os.close(answer[1])
    return ask[1], answer[0]

workers = {kind: worker(pid) for kind, pid in containers.items()}
times = {what: {kind: [] for kind in workers} for what in operations}
kinds = list(workers)
for number in range(-1, rounds):
    for what in operations:
        for turn in range(len(kinds)):
            kind = kinds[(number + turn) % len(kinds)]
            ask, answer = workers[kind]
            os.write(ask, what.encode())
            taken = float(os.read(answer, 100))
            if number >= 0:
                times[what][kind].append(taken)
print(json.dumps({what: {kind: statistics.median(taken) for kind, taken in found.items()}
                  for what, found in times.items()}))
"""

# Builds, and the time before and after them in seconds. The first build is not timed.
BUILD = r"""
box=$(dirname "$(dirname "$(readlink -f /run/current-system/sw/bin/sh)")")
[ -x "$box/bin/sh" ] || box=$(ls -d /nix/store/*-busybox)
build() {
    cat >/root/build.nix <<EON
let box = builtins.storePath $box; in derivation {
    name = "bench-$(hostname)-$1";
    system = "$(cat /run/current-system/system)";
    builder = "\${box}/bin/sh";
    args = [ "-c" "echo $1 >\$out" ];
}
EON
    nix-build /root/build.nix --no-out-link >/dev/null
}
build 0
cut -d' ' -f1 /proc/uptime
for number in $(seq BUILDS); do build "$number"; done
cut -d' ' -f1 /proc/uptime
"""


def measure(host: Host) -> dict[str, Any]:
    """Milliseconds to make a store; microseconds of accesses; milliseconds of builds; KiB."""
    made = make_paths(host, COUNTS, SHOWN)
    top = made["tops"][str(SHOWN)]
    rounds = {count: ROUNDS[count] for count in COUNTS}
    times = run(host, PYTHON, COMMON + MADE, [COUNTS, rounds, made["tops"]])
    system = launch(host, "shared", "shared")
    for kind in ("isolated", "own"):
        launch(host, kind, kind, f"user.inx.store.include={top}")
    copy(host, "copied", [system, top])
    pids = {kind: pid_of(host, kind) for kind in KINDS}
    access = run(host, PYTHON, ACCESS, [top, made["nix"], pids, WARM_ROUNDS])
    builds = {kind: build(host, kind) for kind in KINDS if kind != "isolated"}
    many = [f"many-{number}" for number in range(INSTANCES)]
    for name in many:
        launch(host, name, "own", f"user.inx.store.include={top}")
    disk = {"own": sum(disk_of(host, name) for name in many), "copied": disk_of(host, "copied")}
    return {"times": times, "access": access, "builds": builds, "disk": disk}


def launch(host: Host, name: str, store: str, *keys: str) -> str:
    """Launch an instance, and return its system when that runs."""
    keys = ("user.inx.flake=/etc/nixos#web", f"user.inx.store={store}", *keys)
    options = [word for key in keys for word in ("-c", key)]
    host.run(["incus", "launch", "--empty", name, "--profile", "inx", *options])
    host.sh(f"until incus exec {name} -- test -e /run/current-system; do sleep 0.1; done")
    return host.sh(f"readlink /proc/{pid_of(host, name)}/root/run/current-system").stdout.strip()


def copy(host: Host, name: str, tops: list[str]) -> None:
    """A container without inx that has a registered copy of the closure of `tops`."""
    host.sh(
        """
        incus init --empty "$NAME" </dev/null
        incus config set "$NAME" raw.lxc="lxc.init.cmd = ${TOPS%% *}/init"
        rootfs=/var/lib/incus/storage-pools/default/containers/$NAME/rootfs
        mkdir -p "$rootfs/nix/store" "$rootfs/nix/var/nix"
        nix-store -qR $TOPS | xargs cp -a -t "$rootfs/nix/store"
        incus start "$NAME"
        until incus exec "$NAME" -- test -e /run/current-system; do sleep 0.1; done
        nix-store --dump-db $(nix-store -qR $TOPS) | incus exec "$NAME" -- nix-store --load-db
        """,
        env={"NAME": name, "TOPS": " ".join(tops)},
        timeout=300,
    )  # fmt: skip


def pid_of(host: Host, name: str) -> int:
    return int(json.loads(host.sh(f"incus query /1.0/instances/{name}/state").stdout)["pid"])


def build(host: Host, name: str) -> float:
    """Milliseconds of a build inside."""
    config = f"{NIX_CONFIG}\nsubstituters =" if name != "shared" else ""
    script = BUILD.replace("BUILDS", str(BUILDS))
    argv = ["incus", "exec", name, "--env", f"NIX_CONFIG={config}", "--", "sh", "-eu"]
    begin, end = host.run(argv, input=script, timeout=300).stdout.split()
    return 1000 * (float(end) - float(begin)) / BUILDS


def disk_of(host: Host, name: str) -> int:
    """KiB of the root file system on disk."""
    rootfs = f"/var/lib/incus/storage-pools/default/containers/{name}/rootfs"
    return int(host.sh(f"du -sxk {rootfs}").stdout.split()[0])


def table(numbers: dict[str, Any]) -> str:
    heads = ("query", "register", "register again", "mounts", "load-db")
    lines = ["ms     " + "".join(f"{head:>16}" for head in heads)]
    for count, found in numbers["times"].items():
        lines.append(f"{count:>7}" + "".join(f"{found[head]:>16.1f}" for head in heads))
    lines += ["", f"{'':<26}shared, us  isolated       own    copied"]
    for what, found in numbers["access"].items():
        ratios = "".join(f"{found[kind] / found['shared']:>10.2f}" for kind in KINDS[1:])
        lines.append(f"{what:<26}{found['shared']:>10.1f}{ratios}")
    builds = ", ".join(f"{kind} {taken:.0f} ms" for kind, taken in numbers["builds"].items())
    disk = numbers["disk"]
    return "\n".join(
        [
            *lines,
            "",
            f"a build inside: {builds}",
            f"disk: {INSTANCES} instances {disk['own']} KiB, one with a copy {disk['copied']} KiB",
        ]
    )
