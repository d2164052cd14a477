"""What the tests of garbage collection share: build, link, register, collect, and look.

A store path is *kept* if it is still there after a collection on the host, and *gone* if it is not.
"""

import contextlib
import functools
import io
import json
import platform
import shlex
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from inx_sidecar.links.indirect_roots import name_of
from support.disposable import Host
from support.incus import Incus

GCROOTS = "/nix/var/nix/gcroots"
ROOTS = f"{GCROOTS}/inx"
AUTO = f"{GCROOTS}/auto"
STATE = "/var/lib/inx"
CONFIG = "/etc/inx/config.toml"
SIDECAR = "inx-sidecar.service"
SIDECAR_UNITS = ("inx-sidecar.socket", SIDECAR)
BARRIER = "inx-barrier.service"
SYNC = ["/opt/inx/bin/inx-sidecar", "sync"]
COLLECT = ["nix-store", "--gc"]


@functools.cache
def system_of(host: Host) -> str:
    """A link on the host to a system that is built once."""
    link = "/srv/gc-system"
    host.run(["nix-build", "/etc/nixos", "-A", "web", "-o", link])
    return link


def launch(incus: Incus, suffix: str = "", project: str = "default") -> str:
    """Launch an instance for which nothing has to be built."""
    return incus.launch(name=incus.name(suffix), project=project, system=system_of(incus.host))


# Every script of `run_inside` begins with this. $EXPR builds $NAME, without nixpkgs and network.
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

# Start a program that goes on running. It writes its process id to /run/up.
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

# Run a command as a user who is not root.
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

exec >/run/said
"""


def expression(name: str, command: str) -> str:
    """A derivation in the Nix language. It needs no nixpkgs and no network."""
    system = f"{platform.machine()}-linux"
    fields = f'name = "{name}"; system = "{system}"; builder = "/bin/sh";'
    return f'derivation {{ {fields} args = [ "-c" "{command}" ]; }}'


def run_inside(
    incus: Incus, name: str, script: str, *, thing: str = "nothing", project: str = "default"
) -> None:
    """Run a script that begins with PRELUDE; $EXPR builds `thing`. Output goes to /run/said."""
    built = shlex.quote(expression(thing, f"echo {thing} >$out"))
    incus.sh(name, f"NAME={thing}\nEXPR={built}\n{PRELUDE}{script}", project=project)


def said_inside(incus: Incus, name: str, project: str = "default") -> str:
    """The last line that the last script of `run_inside` printed."""
    return incus.said(name, "tail", "-n", "1", "/run/said", project=project).strip()


def build_by(incus: Incus, name: str, script: str, what: str, *, project: str = "default") -> str:
    """Run a script that builds $NAME and prints its store path last. The path is the result.

    No other test builds the same path. The file contains its name, which ends with `what`.
    """
    run_inside(incus, name, script, thing=incus.name(what), project=project)
    path = said_inside(incus, name, project)
    assert path.startswith("/nix/store/") and path.count("/") == 3, path
    return path


def build(
    incus: Incus, name: str, what: str, *, link: str = "/root/link", project: str = "default"
) -> str:
    """Build a new store path inside with `nix-build -o LINK`."""
    return build_by(incus, name, f"build -o {link}", what, project=project)


def unlink(incus: Incus, name: str, link: str = "/root/link", project: str = "default") -> None:
    incus.run(name, "rm", link, project=project)


def assert_link_works(
    incus: Incus, name: str, what: str, *, link: str = "/root/link", project: str = "default"
) -> None:
    """Inside, the link leads to what `build` made for `what`."""
    incus.wait_inside(name, project)
    incus.run(name, "grep", "-qxF", incus.name(what), link, project=project)


def add_to_store(incus: Incus, label: str) -> str:
    """Add a file to the host's store. Nothing holds it, and no other test has the same path."""
    script = 'd=$(mktemp -d); echo "$L" >"$d/$L"; nix-store --add "$d/$L"; rm -r "$d"'
    return str(incus.host.sh(script, env={"L": incus.name(label)}).stdout.strip())


def collect(host: Host, command: Sequence[str] = COLLECT) -> float:
    """Collect garbage on the host, and return the seconds that it took."""
    begin = time.monotonic()
    host.run(command)
    return time.monotonic() - begin


def collect_in_time(host: Host, command: Sequence[str] = COLLECT) -> None:
    """Collect garbage. The barrier must have had each answer of the sidecar in time."""
    since = journal_end(host)
    collect(host, command)
    said = journal(host, since, BARRIER)
    assert "goes on" not in said, said


def wait_idle(incus: Incus) -> None:
    """Wait until Incus runs no operation: the sidecar drops no root before that."""

    def holds() -> bool:
        told = incus("query", "/1.0/operations?recursion=1&all-projects=true").stdout
        found = json.loads(told or "{}")  # nothing is printed if there is no operation at all
        tasks = [each for kind in found.values() for each in kind if each["class"] == "task"]
        return not [each for each in tasks if each["status_code"] < 200]

    incus.eventually(holds, lambda: incus("operation", "list", "--all-projects").stdout)


def collect_when_idle(incus: Incus, command: Sequence[str] = COLLECT) -> None:
    wait_idle(incus)
    collect(incus.host, command)


def left(host: Host, *paths: str) -> set[str]:
    """Those of `paths` that are in the store. Nix's database and the disk have to agree."""
    script = """
        for path; do
            ! nix-store --check-validity "$path" 2>/dev/null || echo "$path"
            [ ! -e "$path" ] || echo "$path"
        done
    """
    found = host.run(["bash", "-uc", script, "left", *paths]).stdout.split()
    assert all(found.count(path) in (0, 2) for path in paths), found
    return set(found)


def in_store(host: Host, path: str) -> bool:
    return left(host, path) == {path}


def assert_kept(incus: Incus, *paths: str) -> None:
    """A collection at this moment keeps the paths, whatever Incus does meanwhile."""
    collect(incus.host)
    lost = set(paths) - left(incus.host, *paths)
    assert not lost, f"collected: {lost}\n{all_roots(incus.host)}\n{incus.story()}"


def assert_kept_by_snapshot(incus: Incus, *paths: str) -> None:
    """A collection keeps the paths, and only snapshots hold them."""
    wait_idle(incus)
    assert_kept(incus, *paths)
    for path in paths:
        lines = root_lines(incus.host, path)
        assert lines and all("/snapshots/" in line for line in lines), lines


def assert_gone(incus: Incus, *paths: str) -> None:
    """The paths are in the store, and the next collection deletes them."""
    assert left(incus.host, *paths) == set(paths)
    collect_when_idle(incus)
    kept = left(incus.host, *paths)
    told = [incus.host.run(["nix-store", "--query", "--roots", path]).stdout for path in kept]
    assert not kept, f"kept: {kept} by {told}\n{incus.story()}"


def wait_gone(incus: Incus, path: str) -> None:
    """Collect until the path is gone: a process that just ends may hold it a moment longer."""

    def gone() -> bool:
        collect(incus.host)
        return not in_store(incus.host, path)

    def holders() -> str:
        held = incus.host.run(["nix-store", "--query", "--roots", path], check=False).stdout
        return f"{path} is held by {held}\n{incus.story()}"

    incus.eventually(gone, holders)


def all_roots(host: Host) -> str:
    """All roots that inx made, one in a line."""
    return host.run(["find", ROOTS, "-type", "l", "-printf", "%P -> %l\n"]).stdout


def root_lines(host: Host, path: str) -> list[str]:
    return [line for line in all_roots(host).splitlines() if line.endswith(f" -> {path}")]


def holders(host: Host, path: str) -> set[str]:
    """The names of the instances that hold the path."""
    return {line.partition("/")[0].partition(".")[0] for line in root_lines(host, path)}


def names_with_roots(host: Host, uuid: str) -> list[str]:
    """The names under which the instance with this uuid has roots."""
    present = host.run(["ls", ROOTS]).stdout.split()
    return [each.removesuffix(f".{uuid}") for each in present if each.endswith(f".{uuid}")]


def root_directory(incus: Incus, name: str) -> str:
    """The directory on the host where the roots of the instance lie."""
    return f"{ROOTS}/{name}.{incus.uuid(name)}"


def root_name(text: str | bytes, path: str) -> str:
    """The name of the root that holds `path` for a link at `text`."""
    return f"{name_of(text if isinstance(text, str) else text.decode('latin-1'))}.{path[11:43]}"


def link_roots(incus: Incus, name: str) -> dict[str, str]:
    """The roots of the instance that stand for links inside: name to store path."""
    place = f"{root_directory(incus, name)}/links"
    found = incus.host.sh('find "$P" -type l -printf "%f %l\\n" || :', env={"P": place}).stdout
    return dict(line.split(" ", 1) for line in found.splitlines())


# A Nix client (worker protocol 1.35, operation AddIndirectRoot) that registers any texts, many at
# once. argv[1] is the daemon's socket; stdin has the texts in JSON, as Latin-1. With argv[2], the
# client then registers numbered texts with that beginning until it is killed.
REGISTER = r"""
import itertools, json, socket, struct, sys

wire = socket.socket(socket.AF_UNIX)
wire.connect(sys.argv[1])
stream = wire.makefile("rb")

def number(value):
    return struct.pack("<Q", value)

def get():
    return struct.unpack("<Q", stream.read(8))[0]

def string():
    length = get()
    return stream.read(length + -length % 8)[:length]

def settle():
    # Read up to STDERR_LAST, and ignore what the daemon logs before it.
    while (kind := get()) != 0x616C7473:
        assert kind == 0x6F6C6D67, (hex(kind), string(), get(), string(), string())
        string()

def register(texts):
    packed = (number(12) + number(len(t)) + t + bytes(-len(t) % 8) for t in texts)
    wire.sendall(b"".join(packed))
    for text in texts:
        settle()
        assert get() == 1

wire.sendall(number(0x6E697863))
assert get() == 0x6478696F
get()
wire.sendall(number(0x123) + number(0) + number(0))
string(), get(), settle()
texts = [text.encode("latin-1") for text in json.load(sys.stdin)]
for begin in range(0, len(texts), 100):
    register(texts[begin : begin + 100])
if sys.argv[2:]:
    for begin in itertools.count(0, 100):
        register([b"%s%d" % (sys.argv[2].encode(), begin + step) for step in range(100)])
"""


def daemon_socket(incus: Incus, name: str) -> str:
    return f"/run/inx/{incus.uuid(name)}/daemon-socket/socket"


def register(incus: Incus, name: str, texts: Sequence[str | bytes], *, check: bool = True) -> str:
    """Register any texts as roots of the instance, and return the errors of the client."""
    raw = [text if isinstance(text, bytes) else text.encode() for text in texts]
    done = incus.host.run(
        ["python3", "-c", REGISTER, daemon_socket(incus, name)],
        input=json.dumps([text.decode("latin-1") for text in raw]),
        check=check,
    )
    return done.stderr


@contextlib.contextmanager
def repeating(incus: Incus, name: str, script: str) -> Iterator[None]:
    """While the block runs, `script` runs inside again and again. Its last run is complete."""
    loop = f"rm -f /stop; while [ ! -e /stop ]; do {script}\ndone"
    with subprocess.Popen(
        incus.host.enter(["incus", "exec", name, "--", "sh", "-uc", loop]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield
            assert process.poll() is None, "the loop ended by itself"
        finally:
            incus.run(name, "touch", "/stop")
            process.wait(60)


def make_links(incus: Incus, name: str, links: Mapping[str, str]) -> None:
    """Make many links inside at once: path to target."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        made: set[str] = set()
        for path, target in links.items():
            for parent in reversed(PurePosixPath(path.lstrip("/")).parents[:-1]):
                if str(parent) not in made:
                    made.add(str(parent))
                    entry = tarfile.TarInfo(str(parent))
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(entry)
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    argv = incus.host.enter(["incus", "exec", name, "--", "tar", "-x", "-C", "/"])
    subprocess.run(argv, input=packed.getvalue(), check=True, capture_output=True)


def wait_rooted(incus: Incus, name: str, links: Mapping[str, str]) -> None:
    """Wait until each link (path to store path) has its root. Nothing else asks the sidecar."""
    wanted = {root_name(text, path) for text, path in links.items()}

    def missing() -> set[str]:
        return wanted - {root.removesuffix(".away") for root in link_roots(incus, name)}

    incus.eventually(lambda: not missing(), lambda: f"not rooted: {missing()}\n{incus.story()}")


def make_roots(incus: Incus, name: str, links: Mapping[str, str]) -> None:
    """Make links inside, register them, and wait for their roots."""
    make_links(incus, name, links)
    register(incus, name, list(links))
    wait_rooted(incus, name, links)


@contextlib.contextmanager
def unharmed_neighbour(incus: Incus) -> Iterator[str]:
    """The name of another instance, whose root must survive all that the block does.

    A collection after the block deletes a path that nobody holds: so collections do delete.
    """
    neighbour = incus.launch(name=incus.name("neighbour"), flake="/etc/nixos#web")
    held, nobodys = add_to_store(incus, "neighbours"), add_to_store(incus, "nobodys")
    make_roots(incus, neighbour, {"/root/result": held})
    yield neighbour
    wait_gone(incus, nobodys)
    assert in_store(incus.host, held)
    incus.sh(neighbour, f'[ "$(cat /root/result)" = {incus.name("neighbours")} ]')


def main_pid(host: Host, unit: str = SIDECAR) -> int:
    """The number of the unit's main process on the host. It is 0 if there is none."""
    return int(host.run(["systemctl", "show", "-P", "MainPID", unit]).stdout)


def send_signal(host: Host, name: str, unit: str = SIDECAR) -> None:
    host.run(["systemctl", "kill", "--kill-whom=main", f"--signal={name}", unit])


@contextlib.contextmanager
def paused(host: Host, unit: str = SIDECAR) -> Iterator[None]:
    """While the block runs, the unit's main process is stopped by a signal."""
    send_signal(host, "STOP", unit)
    try:
        yield
    finally:
        send_signal(host, "CONT", unit)


@contextlib.contextmanager
def without(host: Host, *units: str) -> Iterator[None]:
    """While the block runs, the units do not."""
    host.run(["systemctl", "stop", *units])
    try:
        yield
    finally:
        host.run(["systemctl", "start", *units])


def journal_end(host: Host) -> str:
    """The place where the journal ends now."""
    host.run(["journalctl", "--sync"])
    shown = host.run(["journalctl", "-n", "1", "--show-cursor", "--no-pager"]).stdout
    return str(shown.rpartition("-- cursor: ")[2].strip())


def journal(host: Host, since: str, *units: str) -> str:
    """What the units said since then. Without `units`, the sidecar and the barrier are meant."""
    host.run(["journalctl", "--sync"])
    named = [f"--unit={unit}" for unit in units or (SIDECAR, BARRIER)]
    options = ["--all", "--output=cat", "--no-pager", "--quiet", f"--after-cursor={since}"]
    return host.run(["journalctl", *named, *options]).stdout


def journal_lines(host: Host, since: str) -> list[bytes]:
    """The lines of `journal`, byte for byte as a terminal gets them."""
    return journal(host, since).encode(errors="surrogateescape").splitlines()
