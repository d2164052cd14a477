"""The isolated store: the time to make its view, and the time of file access through the view.

The view is compared with one bind mount for each path, made in the same lock step. File access is
also compared with the whole store, which a shared container has by one plain mount. One process in
one container uses all three in turn, so that other load of the machine affects all of them.
"""

import json
from pathlib import Path
from typing import Any

from support.disposable import REPO, Host

COUNTS = (100, 1000, 5000, 20000)
ROUNDS = {100: 15, 1000: 15, 5000: 9, 20000: 5}
PYTHON = "/opt/inx/bin/python"
VISIBLE = 1000  # paths of the view that is read
COLD_ROUNDS = 9
WARM_ROUNDS = 31
BUILD_GOAL = 20  # ms for VISIBLE paths
GOALS = {
    "first read, nothing in memory": 2.2,
    "first read, files in memory": 2.2,
    "read small files": 2.2,
    "read top-level files": 2.2,
    "read 50 MB": 2.2,
    "stat top-level entries": 1.6,
    "stat nested files": 1.6,
}

# Make paths in the store of the host, like those of a NixOS system: a third are files, some are
# links. The first paths are like packages. The many others are small.
MAKE = """
import json, os, random, subprocess, sys
counts, packages = json.load(sys.stdin)
chance = random.Random(1)
letters = "0123456789abcdfghijklmnpqrsvwxyz"

def name(what):
    return f"/nix/store/{''.join(chance.choices(letters, k=32))}-bench-{what}"

def write(path, size):
    with open(path, "wb") as file:
        file.write(chance.randbytes(size))

def fill(path, number):
    if number % 3 == 1:
        write(path, chance.randrange(200, 4000))
    elif number % 50 == 2:
        os.symlink(f"/etc/bench/{number}", path)
    elif number >= packages:
        os.makedirs(f"{path}/bin")
        for part in ("bin/program", "about"):
            write(f"{path}/{part}", 200)
    else:
        for directory in ("bin", "lib", "share/doc/bench", "share/man/man1"):
            os.makedirs(f"{path}/{directory}")
            for part in range(chance.randrange(1, 5)):
                write(f"{path}/{directory}/part-{part}", chance.randrange(200, 16000))

nix = next(f"/nix/store/{entry}" for entry in os.listdir("/nix/store") if entry.endswith("-nix"))
big = name("big")
os.mkdir(big)
write(f"{big}/data", 50_000_000)
many = [name(number) for number in range(max(counts))]
references = {big: []}
for number, path in enumerate(many):
    fill(path, number)
    references[path] = chance.sample(many[:number], min(number, 5))
tops = {}
for count in counts:
    tops[count] = name(f"top-{count}")
    os.makedirs(f"{tops[count]}/etc")
    references[tops[count]] = [big, nix, *many[: count - 3]]
text = "".join(
    "\\n".join([path, 64 * "0", "4096", "", str(len(needs)), *needs, ""])
    for path, needs in references.items()
)
argv = ["nix-store", "--register-validity", "--hash-given"]
subprocess.run(argv, input=text, text=True, check=True)
print(json.dumps({"tops": tops, "nix": nix, "big": big}))
"""

# Functions that both measurements need.
COMMON = """
import asyncio, gc, json, mmap, os, select, stat, statistics, subprocess, sys, tempfile, time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
sys.path[:0] = ["/root/inx/tests"]
from inx_sidecar.base import paths
from inx_sidecar.kernel import forked
from inx_sidecar.nix.closure import closure_of
from inx_sidecar.container.locked_mounts import HostDirectory
from inx_sidecar.container.mounts import attach_mounts
from inx_sidecar.container.namespaces import Container
from inx_sidecar.kernel.syscalls import (AT_FDCWD, CLONE_NEWNS, CLONE_NEWUSER, MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MS_PRIVATE, MS_REC, mount,
    mount_setattr, move_mount, open_tree, opened, setns, unshare)
from support.containers import CLONE_NEWPID, make_rootfs, running

AT_RECURSIVE = 0x8000
READ_ONLY = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
STORE = "/nix/store"
rootfs = make_rootfs(Path(tempfile.mkdtemp(dir="/root")))
os.chmod(rootfs, 0o755)

@contextmanager
def sandbox():
    with running(rootfs) as sandbox, Container(sandbox.pid, "bench") as container:
        with opened(os.pidfd_open(sandbox.pid)) as init:
            yield sandbox, container
            os.kill(sandbox.pid, 9)
            select.select([init], [], [])

async def bind_each(container, names, target):
    def place(all_of_it, name):
        entry = f"{paths.RUN}/{name}"
        mode = os.stat(name, dir_fd=all_of_it, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):  # cannot be mounted
            os.symlink(os.readlink(name, dir_fd=all_of_it), entry)
            return
        if stat.S_ISDIR(mode):
            os.mkdir(entry)
        else:
            os.close(os.open(entry, os.O_CREAT | os.O_WRONLY))
        with opened(open_tree(all_of_it, name)) as tree, opened(os.open(entry, os.O_PATH)) as at:
            move_mount(tree, at)

    def bind():
        whole = open_tree(AT_FDCWD, STORE)
        mount_setattr(whole, READ_ONLY, propagation=MS_PRIVATE)
        mount_setattr(whole, MOUNT_ATTR_IDMAP, userns_fd=container.user)
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        mount("inx", "/mnt", "tmpfs", 0, "mode=755")
        os.mkdir("/mnt/all")
        with opened(os.open("/mnt/all", os.O_PATH)) as at:
            move_mount(whole, at)
        mount("inx", paths.RUN, "tmpfs", 0, "mode=755")
        for name in names:
            place(whole, name)
        setns(container.user, CLONE_NEWUSER)
        unshare(CLONE_NEWNS)
        tree = open_tree(AT_FDCWD, paths.RUN, AT_RECURSIVE)
        container.enter(from_its_user_namespace=True)
        os.makedirs(f"/{target}", exist_ok=True)
        with opened(os.open(f"/{target}", os.O_PATH)) as at:
            move_mount(tree, at)
        return None, []

    await forked.run_in_child(bind, "binding each", 120, fds=container.fds)
"""

BUILD = """
counts, rounds, tops = json.load(sys.stdin)
kinds = ("query", "mounts", "binds", "nix-store", "shared")

async def timed(awaited):
    begin = time.perf_counter()
    value = await awaited
    return 1000 * (time.perf_counter() - begin), value

async def one(count):
    times = {}
    top = tops[str(count)]
    times["query"], found = await timed(closure_of([top]))
    assert len(found) == count, len(found)
    names = frozenset(os.path.basename(path) for path in found)
    for kind, only in (("mounts", names), ("shared", None)):
        with sandbox() as (inside, container):
            store = HostDirectory(STORE, paths.STORE_INSIDE, entries=only)
            mounted = attach_mounts(container, [store], None, await_exit=False)  # as a start
            times[kind], mapped = await timed(mounted)
            assert mapped
            if only:
                assert set(inside.inside(lambda: os.listdir(STORE))) == names
    with sandbox() as (inside, container):
        times["binds"], _ = await timed(bind_each(container, names, paths.STORE_INSIDE))
        assert set(inside.inside(lambda: os.listdir(STORE))) == names
    begin = time.perf_counter()
    listed = subprocess.run(["nix-store", "-qR", top], capture_output=True, check=True).stdout
    times["nix-store"] = 1000 * (time.perf_counter() - begin)
    assert len(listed.split()) == count
    return times

async def main():
    await one(min(counts))
    answer = {}
    for count in counts:
        found = [await one(count) for _ in range(rounds[str(count)])]
        answer[count] = {kind: statistics.median(times[kind] for times in found) for kind in kinds}
        view = statistics.median(times["query"] + times["mounts"] for times in found)
        answer[count]["view"] = view
    print(json.dumps(answer))

asyncio.run(main())
"""

ACCESS = """
top, nix, big, cold_rounds, warm_rounds = json.load(sys.stdin)
gc.disable()
variants = ("plain", "views", "binds")  # of equal length, so that paths are of equal length

found = asyncio.run(closure_of([top]))
names = sorted(os.path.basename(path) for path in found)
tops = [name for name in names if os.path.isfile(f"{STORE}/{name}")]
directories = [name for name in names if os.path.isdir(f"{STORE}/{name}")]
files = [
    os.path.relpath(f"{where}/{file}", STORE)
    for name in directories
    if "-bench-" in name and f"{STORE}/{name}" not in (top, big)
    for where, _, inside in os.walk(f"{STORE}/{name}")
    for file in inside
]
buffer = bytearray(1 << 20)

def read(path, size=1 << 16):
    fd = os.open(path, os.O_RDONLY)
    while os.read(fd, size):
        pass
    os.close(fd)

def reading(path):
    fd = os.open(path, os.O_RDONLY)
    while os.readv(fd, [buffer]):
        pass
    os.close(fd)

def close(path):
    os.close(os.open(path, os.O_RDONLY))

def walk(path):
    for _ in os.walk(path):
        pass

def touch(path):
    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        memory[:: mmap.PAGESIZE]
    os.close(fd)

def execute(path):
    library = f"{path}/lib"
    argv = [f"{library}/ld.so", "--library-path", library, f"{path}/bin/nix", "--version"]
    actions = [(os.POSIX_SPAWN_DUP2, quiet, 1)]
    pid = os.posix_spawn(argv[0], argv, {"HOME": "/"}, file_actions=actions)
    assert os.waitpid(pid, 0)[1] == 0

quiet = os.memfd_create("output")
data, client = os.path.relpath(f"{big}/data", STORE), os.path.relpath(nix, STORE)
warm = {
    "read small files": (read, files),
    "read top-level files": (read, 4 * tops),
    "read 50 MB": (reading, [data]),
    "mmap 50 MB, each page": (touch, 8 * [data]),
    "stat top-level entries": (partial(os.stat, follow_symlinks=False), 4 * names),
    "stat nested files": (os.stat, files),
    "open and close": (close, files),
    "walk": (walk, directories),
    "exec": (execute, 3 * [client]),
}

def timed(function, relative, variant):
    full = [f"/{variant}/store/{path}" for path in relative]
    begin = time.perf_counter()
    for path in full:
        function(path)
    return 1e6 * (time.perf_counter() - begin) / len(full)

def turns(number):
    return [variants[(number + turn) % len(variants)] for turn in range(len(variants))]

def all_warm():
    times = {what: {variant: [] for variant in variants} for what in warm}
    for number in range(-1, warm_rounds):
        for what, (function, relative) in warm.items():
            for variant in turns(number):
                taken = timed(function, relative, variant)
                if number >= 0:
                    times[what][variant].append(taken)
    return times

def content(variant):
    root = f"/{variant}/store"
    return set(os.listdir(root)), [os.stat(f"{root}/{file}").st_size for file in files]

with sandbox() as (inside, container):
    asyncio.run(attach_mounts(container, [
        HostDirectory(STORE, "plain/store"),
        HostDirectory(STORE, "views/store", entries=frozenset(names)),
    ], None))
    asyncio.run(bind_each(container, names, "binds/store"))
    with open(f"/proc/{inside.pid}/ns/pid") as processes:  # programs read their /proc/self
        setns(processes.fileno(), CLONE_NEWPID)
    contents = {variant: inside.inside(partial(content, variant)) for variant in variants}
    assert contents["views"] == contents["binds"] and contents["views"][0] == set(names)
    assert contents["plain"][0] > set(names) and contents["plain"][1] == contents["views"][1]
    times = {}
    first = {"first read, nothing in memory": "3", "first read, files in memory": "2"}
    for what, drop in first.items():
        times[what] = {variant: [] for variant in variants}
        inside.inside(partial(timed, read, files, "plain"))
        for number in range(cold_rounds):
            for variant in turns(number):
                os.sync()
                Path("/proc/sys/vm/drop_caches").write_text(drop)
                taken = inside.inside(partial(timed, read, files[::4], variant))
                times[what][variant].append(taken)
    times |= inside.inside(all_warm)

def ratio(taken, variant):
    pairs = zip(taken[variant], taken["plain"])
    return statistics.median(one / native for one, native in pairs)

print(json.dumps({
    what: {
        "native": statistics.median(taken["plain"]),
        "view": ratio(taken, "views"),
        "binds": ratio(taken, "binds"),
    }
    for what, taken in times.items()
}))
"""


def make_paths(host: Host, counts: tuple[int, ...], packages: int) -> Any:
    """What MAKE prints. The host then has what the other programs import."""
    host.push(REPO / "tests", ["support"], "/root/inx/tests")
    return run(host, "python3", MAKE, [counts, packages])


def run(host: Host, python: str, script: str, given: Any) -> Any:
    """What `script` prints on the host, which reads `given`; both are JSON."""
    done = host.run([python, "-c", script], input=json.dumps(given), timeout=900)
    return json.loads(done.stdout)


def measure(host: Host) -> dict[str, Any]:
    """Milliseconds by the number of paths. Microseconds of each native access, and ratios to it."""
    made = make_paths(host, COUNTS, VISIBLE)
    tops = made["tops"]
    builds = run(host, PYTHON, COMMON + BUILD, [COUNTS, ROUNDS, tops])
    given = [tops[str(VISIBLE)], made["nix"], made["big"], COLD_ROUNDS, WARM_ROUNDS]
    access = run(host, PYTHON, COMMON + ACCESS, given)
    return {"builds": builds, "access": access}


def table(numbers: dict[str, Any]) -> str:
    heads = ("view, ms", "of it query", "mounts", "bind per path", "nix-store -qR", "whole store")
    kinds = ("view", "query", "mounts", "binds", "nix-store", "shared")
    lines = ["paths" + "".join(f"{head:>15}" for head in heads)]
    for count, found in numbers["builds"].items():
        goal = f"  (view under {BUILD_GOAL})" if int(count) == VISIBLE else ""
        lines.append(f"{count:>5}" + "".join(f"{found[kind]:>15.1f}" for kind in kinds) + goal)
    lines += ["", f"{'':<32}native, us      view  bind per path"]
    for what, found in numbers["access"].items():
        goal = f"  (view at most {GOALS[what]})" if what in GOALS else ""
        ratios = f"{found['view']:>10.2f}{found['binds']:>15.2f}"
        lines.append(f"{what:<32}{found['native']:>10.1f}{ratios}{goal}")
    return "\n".join(lines)


def plot(numbers: dict[str, Any], file: Path) -> None:
    """Plot the time to make the view by its size, and the ratios of access to native access."""
    from matplotlib.figure import Figure  # only here: the benches need nothing else

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    made, access = figure.subplots(1, 2)
    kinds = {
        "view": "view, with its query",
        "query": "closure query alone",
        "binds": "bind mount per path",
        "nix-store": "nix-store -qR alone",
    }
    for kind, label in kinds.items():
        times = [found[kind] for found in numbers["builds"].values()]
        made.plot(COUNTS, times, marker="o", label=label)
    made.set(title="Making it", xlabel="paths", ylabel="ms", xscale="log", yscale="log")
    made.legend(frameon=False)
    places = range(len(numbers["access"]))
    for kind, label, shift in (("view", "view", -0.2), ("binds", "bind mount per path", 0.2)):
        ratios = [found[kind] for found in numbers["access"].values()]
        access.barh([place + shift for place in places], ratios, height=0.38, label=label)
    access.axvline(1, color="black", linewidth=0.8)
    access.set(title="Access to it", xlabel="time, as multiple of native", xlim=0)
    access.set_yticks(list(places), list(numbers["access"]))
    access.invert_yaxis()
    shown = access.get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower right", ncols=2, frameon=False)
    for axes in (made, access):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)
