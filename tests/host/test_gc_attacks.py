"""The container's root against the garbage collector: of the host, of others, and of the sidecar.

What is registered inside is text of the container's choice, and all that the text is looked up in
belongs to the container. Each attack is made for real; what it must not touch is then collected for
real.
"""

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import pytest
from support.disposable import Host
from support.incus import Incus

from inx_sidecar.links.indirect_roots import name_of

pytestmark = pytest.mark.gc

CONFIG = "/etc/inx/config.toml"
SYNC = ["/opt/inx/bin/inx-sidecar", "sync"]
# What the barrier lets one collection wait: at gcroots and at temproots, and some time to collect.
LONGEST_COLLECTION = 2 * 5.0 + 5.0

# Registers roots as a Nix client does (worker protocol 1.35, operation AddIndirectRoot), but any
# text, and many at once: argv[1] is the daemon's socket, stdin the texts in JSON, as Latin-1; with
# argv[2] it goes on with numbered ones until it is killed.
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
    # Up to STDERR_LAST; what the daemon logs on the way is nobody's concern.
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


def socket_of(incus: Incus, name: str) -> str:
    return f"/run/inx/{incus.uuid(name)}/daemon-socket/socket"


def register(incus: Incus, name: str, texts: Sequence[str | bytes], *, check: bool = True) -> str:
    """Register any texts as roots of the instance; what the client complains of."""
    raw = [text if isinstance(text, bytes) else text.encode() for text in texts]
    done = incus.host.run(
        ["python3", "-c", REGISTER, socket_of(incus, name)],
        input=json.dumps([text.decode("latin-1") for text in raw]),
        check=check,
    )
    return done.stderr


@contextlib.contextmanager
def flood(incus: Incus, name: str, prefix: str) -> Iterator[None]:
    """New texts as fast as the daemon takes them, while the block runs."""
    argv = ["python3", "-c", REGISTER, socket_of(incus, name), prefix]
    with subprocess.Popen(
        incus.host.enter(argv),
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # nsenter's child ends with it
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"[]")
        process.stdin.close()
        try:
            yield
            assert process.poll() is None, "the flood ended by itself"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def busy(incus: Incus, name: str, script: str) -> Iterator[None]:
    """Inside, `script` runs again and again while the block does; the last run is a whole one."""
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


def add_to_store(incus: Incus, label: str) -> str:
    """A store path that nothing holds and no other test has."""
    script = 'd=$(mktemp -d); echo "$L" >"$d/$L"; nix-store --add "$d/$L"; rm -r "$d"'
    return str(incus.host.sh(script, env={"L": f"{incus.prefix}-{label}"}).stdout.strip())


def link(incus: Incus, name: str, links: Mapping[str, str]) -> None:
    """Make links inside, path to target; many at once."""
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


def root_of(text: str | bytes, path: str) -> str:
    """What the root is called that keeps `path` for the link at `text`."""
    return f"{name_of(text if isinstance(text, str) else text.decode('latin-1'))}.{path[11:43]}"


def roots_of(incus: Incus, name: str) -> dict[str, str]:
    """The links of the instance that are roots on the host."""
    place = f"/nix/var/nix/gcroots/inx/{name}.{incus.uuid(name)}/links"
    found = incus.host.sh('find "$P" -type l -printf "%f %l\\n" || :', env={"P": place}).stdout
    return dict(line.split(" ", 1) for line in found.splitlines())


def wait_rooted(incus: Incus, name: str, links: Mapping[str, str]) -> None:
    """Until each link, path to store path, is a root; nothing but registering it asks for that."""
    wanted = {root_of(text, path) for text, path in links.items()}

    def missing() -> set[str]:
        return wanted - {root.removesuffix(".away") for root in roots_of(incus, name)}

    incus.eventually(lambda: not missing(), lambda: f"not rooted: {missing()}\n{incus.story()}")


def keep(incus: Incus, name: str, links: Mapping[str, str]) -> None:
    """Make links inside, register them, and wait until they are roots."""
    link(incus, name, links)
    register(incus, name, list(links))
    wait_rooted(incus, name, links)


def collect(host: Host) -> float:
    """Collect on the host; how long it took."""
    begin = time.monotonic()
    host.run(["nix-store", "--gc"])
    return time.monotonic() - begin


def valid(host: Host, path: str) -> bool:
    done = host.run(["nix-store", "--check-validity", path], check=False)
    return done.returncode == 0


def wait_collected(incus: Incus, path: str) -> None:
    """A collection takes it: processes and operations that just end may hold it a moment longer."""

    def gone() -> bool:
        collect(incus.host)
        return not valid(incus.host, path)

    def holders() -> str:
        held = incus.host.run(["nix-store", "--query", "--roots", path], check=False).stdout
        return f"{path} is held by {held}\n{incus.story()}"

    incus.eventually(gone, holders)


@contextlib.contextmanager
def harmless(incus: Incus) -> Iterator[str]:
    """Another instance with a root of its own, which outlives whatever the block does; its name.

    A path that nobody holds is collected after it, so that a collection is known to work.
    """
    victim = incus.launch(name=incus.name("victim"), flake="/etc/nixos#web")
    mine, dead = add_to_store(incus, "victims"), add_to_store(incus, "dead")
    keep(incus, victim, {"/root/result": mine})
    yield victim
    wait_collected(incus, dead)
    assert valid(incus.host, mine)
    incus.sh(victim, f'[ "$(cat /root/result)" = {incus.prefix}-victims ]')


def journal(host: Host, since: str) -> list[bytes]:
    """What inx said since then, as a terminal would get it."""
    units = ["-u", "inx-sidecar", "-u", "inx-barrier"]
    argv = ["journalctl", *units, "--after-cursor", since, "--all", "-o", "cat", "--no-pager"]
    return host.run(argv).stdout.encode(errors="surrogateescape").splitlines()


def cursor(host: Host) -> str:
    shown = host.run(["journalctl", "-n", "0", "--show-cursor", "--no-pager"]).stdout
    return str(shown.partition("cursor: ")[2].strip())


@pytest.fixture
def cap(host: Host) -> Iterator[int]:
    """Few roots for each instance that starts."""
    host.sh(f"mkdir -p /etc/inx; echo max_roots_per_instance = 50 >{CONFIG}")
    yield 50
    host.run(["rm", "-f", CONFIG])


# --- Too many ---------------------------------------------------------------------------------


def test_a_flood_is_refused_told_and_costs_others_nothing(
    incus: Incus, host: Host, cap: int
) -> None:
    path = add_to_store(incus, "flood")
    first = {f"/root/first-{count}": path for count in range(cap)}
    with harmless(incus) as victim:
        name = incus.launch(flake="/etc/nixos#web")
        keep(incus, name, first)
        link(incus, name, {f"/root/more-{count}": path for count in range(2000)})
        since, begin = cursor(host), time.monotonic()
        register(incus, name, [f"/root/more-{count}" for count in range(2000)])
        with flood(incus, name, "/root/flood-"):
            status = incus.wait_status(name, r"ready \(.*max_roots_per_instance")
            theirs = {f"/root/r{count}": path for count in range(20)}
            asked = time.monotonic()
            keep(incus, victim, theirs)
            assert time.monotonic() - asked < 10, "others wait for an instance that floods"
            assert collect(host) < LONGEST_COLLECTION
        assert "50" in status
        # Those that were there first stay, and no more than the host's owner allows.
        assert set(roots_of(incus, name)) == {root_of(text, path) for text in first}
        auto = f"/var/lib/inx/{incus.uuid(name)}/auto"
        incus.eventually(
            lambda: len(host.run(["ls", auto]).stdout.split()) <= cap,
            lambda: f"{host.sh(f'ls {auto} | wc -l').stdout} are left in {auto}",
        )
        lines = journal(host, since)
        assert len(lines) < 40 + 5 * (time.monotonic() - begin), lines[:100]


def test_a_full_instance_is_told_how_to_get_out(incus: Incus, cap: int) -> None:
    path = add_to_store(incus, "many")
    name = incus.launch(flake="/etc/nixos#web")
    links = {f"/root/l{count}": path for count in range(cap + 1)}
    link(incus, name, links)
    register(incus, name, list(links))
    status = incus.wait_status(name, r"ready \(.*max_roots_per_instance")
    assert "remove" in status and CONFIG in status


def test_a_full_instance_recovers_once_links_are_removed(incus: Incus, cap: int) -> None:
    path = add_to_store(incus, "full")
    name = incus.launch(flake="/etc/nixos#web")
    keep(incus, name, {f"/root/l{count}": path for count in range(cap)})
    link(incus, name, {"/root/new": path})
    register(incus, name, ["/root/new"])
    incus.wait_status(name, r"ready \(")
    incus.sh(name, "rm /root/l*")

    def again() -> bool:
        register(incus, name, ["/root/new"])
        return root_of("/root/new", path) in roots_of(incus, name)

    incus.eventually(again, incus.story)
    incus.wait_status(name, "ready$")


@pytest.mark.parametrize("targets", ["one", "many"])
def test_links_to_what_never_was_in_the_store_do_not_fill_the_journal(
    incus: Incus, host: Host, targets: str
) -> None:
    path = add_to_store(incus, "in-the-store")
    name = incus.launch(flake="/etc/nixos#web")
    missing = "/nix/store/" + "0" * 32 + "-never-built"
    links = {
        f"/root/l{count}": missing + (str(count) if targets == "many" else "")
        for count in range(1000)
    }
    link(incus, name, links)
    since = cursor(host)
    register(incus, name, list(links))
    keep(incus, name, {"/root/good": path})
    host.run(SYNC)
    lines = journal(host, since)
    assert any(b"/root/good" in line for line in lines) and len(lines) < 100, len(lines)


# --- What a registered text, and what is there, can be ----------------------------------------

NAME_MAX = 255
HOSTILE_TEXTS: dict[str, bytes] = {
    "a store path": b"",  # replaced by one that is valid
    "in a store path": b"",
    "the store": b"/nix/store",
    "the store, and more": b"/nix/store/",
    "gibberish in the store": b"/nix/store/x",
    "root": b"/",
    "dots": b"/../../../../srv/inx-host-link",
    "dots behind a directory": b"/root/../../../../../srv/inx-host-link",
    "a link on the host": b"/srv/inx-host-link",
    "a root on the host": b"/nix/var/nix/gcroots/inx-host-root",
    "a link in a root file system": b"/var/lib/incus/containers/victim/rootfs/root/result",
    "relative": b"root/relative",
    "empty": b"",
    "a newline": b"/root/new\nline <3>inx: all is well",
    "an escape sequence": b"/root/\x1b[2J\x1b]0;pwned\x07\x9b2J",
    "a carriage return": b"/root/\rroot dropped",
    "a long name": b"/root/" + b"n" * 300,
    "a long path": b"/root" + b"/directory" * 380,
    "no UTF-8": b"/root/\xff\xfe\x80",
    "right to left": "/root/\u202egnp.exe".encode(),
    "a loop": b"/root/loop-a",
    "below a loop": b"/root/loop-a/x",
    "below a file": b"/root/file/x",
    "another's proc": b"/proc/1/root/root/good",
    "a link to another's proc": b"/root/to-proc/good",
    "a descriptor": b"/proc/self/fd/3",
    "a link to a descriptor": b"/root/to-fd",
    "a device": b"/dev/null",
    "a link to the host": b"/root/to-host",
    "a directory of the host": b"/root/to-srv/inx-host-link",
    "an invalid store path": b"/root/invalid",
    "a device below the store": b"/root/store-dots",
}


def test_whatever_is_registered_reaches_no_further_than_the_container(
    incus: Incus, host: Host
) -> None:
    secret, good, dotted = (add_to_store(incus, label) for label in ("secret", "good", "dotted"))
    host.sh(
        'ln -sfn "$S" /srv/inx-host-link; ln -sfn /srv/inx-host-link "$R"',
        env={"S": secret, "R": "/nix/var/nix/gcroots/inx-host-root"},
    )
    with harmless(incus) as victim:
        name = incus.launch(flake="/etc/nixos#web")
        link(
            incus,
            name,
            {
                "/root/good": good,
                "/root/loop-a": "loop-b",
                "/root/loop-b": "/root/loop-a",
                "/root/to-proc": "/proc/1/root/root",
                "/root/to-fd": "/proc/self/fd/0",
                "/root/to-host": "../../../../../../srv/inx-host-link",
                "/root/to-srv": "../../../../../../srv",
                "/root/invalid": "/nix/store/00000000000000000000000000000000-never-built",
                "/root/store-dots": f"{dotted}/../../../etc",
            },
        )
        incus.sh(name, "touch /root/file")
        texts = HOSTILE_TEXTS | {
            "a store path": secret.encode(),
            "in a store path": f"{secret}/x".encode(),
            "a link in a root file system": (
                f"/var/lib/incus/containers/{victim}/rootfs/root/result".encode()
            ),
        }
        since = cursor(host)
        register(incus, name, [*texts.values(), "/root/good"])
        wait_rooted(incus, name, {"/root/good": good, "/root/store-dots": dotted})
        host.run(SYNC)
        # Nix, too, takes what lies below a store path for that path; nothing is opened there.
        kept = {root_of("/root/good", good): good, root_of("/root/store-dots", dotted): dotted}
        assert roots_of(incus, name) == kept

        shown = host.run(["/opt/inx/bin/inx-sidecar", "roots"]).stdout
        assert "/root/good" in shown and shown.isascii()
        assert all(line.isprintable() for line in shown.splitlines())
        said = journal(host, since)
        assert any(b"/root/good" in line for line in said)
        assert all(line.decode().isprintable() for line in said), said

        host.run(["rm", "/nix/var/nix/gcroots/inx-host-root", "/srv/inx-host-link"])
        wait_collected(incus, secret)
        assert valid(host, good) and valid(host, dotted)


def test_hostile_names_of_real_links_reach_no_terminal(incus: Incus, host: Host) -> None:
    path = add_to_store(incus, "named")
    name = incus.launch(flake="/etc/nixos#web")
    names = [b"/root/\x1b[2J", b"/root/a\nb", b"/root/\xff", b"/root/\xc2\x9b2J", b"/root/\r"]
    octal = ["".join(f"\\{byte:03o}" for byte in text) for text in names]
    for text in octal:
        incus.sh(name, f"ln -s {path} \"$(printf '{text}')\"")
    since = cursor(host)
    register(incus, name, names)
    incus.eventually(lambda: len(roots_of(incus, name)) == len(names), incus.story)
    incus.sh(name, "rm /root/*")
    host.run(SYNC)
    shown = host.run(["/opt/inx/bin/inx-sidecar", "roots", name]).stdout
    said = journal(host, since)
    assert roots_of(incus, name) == {}, shown
    assert sum(b"root dropped" in line for line in said) == len(names)
    assert all(line.decode().isprintable() for line in said), said


def test_hostile_names_are_listed_escaped(incus: Incus, host: Host) -> None:
    path = add_to_store(incus, "listed")
    name = incus.launch(flake="/etc/nixos#web")
    incus.sh(name, f"ln -s {path} \"$(printf '/root/\\033[2J\\377\\n.')\"")
    register(incus, name, [b"/root/\x1b[2J\xff\n."])
    incus.eventually(lambda: len(roots_of(incus, name)) == 1, incus.story)
    heading, *shown = host.run(["/opt/inx/bin/inx-sidecar", "roots", name]).stdout.splitlines()
    assert heading.startswith("INSTANCE")
    (line,) = [line for line in shown if path in line]
    assert line.isascii() and line.isprintable() and "\\x1b[2J" in line


def test_any_valid_path_may_be_rooted_but_no_other(incus: Incus, host: Host) -> None:
    """As for any user of the host's Nix; it is shown as this instance's."""
    name = incus.launch(flake="/etc/nixos#web")
    foreign, gone = add_to_store(incus, "foreign"), add_to_store(incus, "gone")
    host.run(["nix-store", "--delete", gone])
    link(incus, name, {"/root/gone": gone})
    register(incus, name, ["/root/gone"])
    keep(incus, name, {"/root/foreign": foreign})
    assert set(roots_of(incus, name)) == {root_of("/root/foreign", foreign)}
    collect(host)
    assert valid(host, foreign)
    assert name in host.run(["nix-store", "--query", "--roots", foreign]).stdout


def test_links_that_are_swapped_while_roots_are_compared_keep_others_in_place(
    incus: Incus, host: Host
) -> None:
    first, second, steady = (add_to_store(incus, label) for label in ("first", "second", "steady"))
    with harmless(incus):
        name = incus.launch(flake="/etc/nixos#web")
        incus.run(name, "mkdir", "/root/a", "/root/b")
        keep(incus, name, {"/root/steady": steady, "/root/a/l": first, "/root/b/l": second})
        register(incus, name, ["/root/l", "/root/d/l"])
        swap = f"""
            ln -s {first} /root/new; mv -f /root/new /root/l; rm -rf /root/d; ln -s a /root/d
            ln -s /proc/1/root/etc/passwd /root/new; mv -f /root/new /root/l
            rm -f /root/d; mkdir /root/d; ln -s {second} /root/d/l; rm -f /root/l
            rm -rf /root/d; ln -s /proc/self/cwd /root/d; ln -s /root/l /root/l; rm -f /root/l
            ln -s {second} /root/l; rm -f /root/d; ln -s ../../../../../root/b /root/d
            """
        allowed = {first, second, steady}
        with busy(incus, name, swap):
            for _ in range(12):
                register(incus, name, ["/root/l", "/root/d/l"])
                host.run(SYNC)
                now = roots_of(incus, name)
                assert set(now.values()) <= allowed and root_of("/root/steady", steady) in now
            assert collect(host) < LONGEST_COLLECTION
        register(incus, name, ["/root/l", "/root/d/l"])
        last = {"/root/l": second, "/root/d/l": second, "/root/steady": steady}
        wait_rooted(incus, name, last)
        incus.sh(name, "rm -r /root/a")
        wait_collected(incus, first)
        assert valid(host, second) and valid(host, steady)


# --- The container's own copy -----------------------------------------------------------------

AUTO = "/nix/var/nix/gcroots/auto"
COPIES = {
    "a file": f"rm -rf {AUTO}; echo pwned >{AUTO}",
    "a fifo": f"rm -rf {AUTO}; mknod {AUTO} p",
    "a link to /etc": f"rm -rf {AUTO}; ln -s /etc {AUTO}",
    "a link up": f"rm -rf {AUTO}; ln -s ../../../../../../../../srv {AUTO}",
    "a link to the host's": f"rm -rf {AUTO}; ln -s /proc/1/root/var/lib/inx {AUTO}",
    "a parent that is a link": f"rm -rf {AUTO}; rmdir {AUTO}/..; ln -s /root {AUTO}/..",
    "no directory": f"rm -rf {AUTO}",
    "subdirectories": f"cd {AUTO}; for i in $(seq 500); do mkdir $i; done",
    "unreadable": f"chmod 0 {AUTO}",
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_replaced_copy_of_the_registrations_harms_its_owner_alone(
    incus: Incus, host: Host, copy: str
) -> None:
    before, after = add_to_store(incus, "before"), add_to_store(incus, "after")
    name = incus.launch(flake="/etc/nixos#web")
    keep(incus, name, {"/root/before": before})
    incus.sh(name, "ls /etc >/root/etc")
    outside = host.sh("ls -a /etc /srv /root").stdout
    incus.sh(name, COPIES[copy], check=False)
    keep(incus, name, {"/root/after": after})
    incus("snapshot", "create", name, "snap")
    incus("restart", "-f", name)
    incus.wait_inside(name)
    wait_rooted(incus, name, {"/root/before": before, "/root/after": after})
    clone = incus.adopt(incus.name("copy"))
    incus("copy", name, clone)
    host.run(SYNC)
    assert collect(host) < LONGEST_COLLECTION
    assert valid(host, before) and valid(host, after)
    incus.sh(name, "ls /etc | cmp - /root/etc")
    incus("delete", clone)
    host.run(SYNC)
    assert host.sh("ls -a /etc /srv /root").stdout == outside


def test_what_keeps_the_copy_from_being_written_is_named_once(incus: Incus, host: Host) -> None:
    path = add_to_store(incus, "in-the-way")
    name = incus.launch(flake="/etc/nixos#web")
    incus.sh(name, COPIES["a file"])
    since = cursor(host)
    for count in range(3):
        keep(incus, name, {f"/root/l{count}": path})
    (told,) = [line.decode() for line in journal(host, since) if b"lack roots" in line]
    assert AUTO in told and "remove it" in told


def test_a_copy_with_many_entries_keeps_nobody_waiting(incus: Incus, host: Host) -> None:
    path = add_to_store(incus, "counted")
    with harmless(incus) as victim:
        name = incus.launch(flake="/etc/nixos#web")
        keep(incus, name, {"/root/result": path})
        invented = [name_of(f"/root/l{count}") for count in range(30_000)]
        # Half of them match what they name, the others are lies.
        entries = {
            f"{AUTO}/{known if count % 2 else known[::-1]}": f"/root/l{count}"
            for count, known in enumerate(invented)
        }
        link(incus, name, entries)
        incus("snapshot", "create", name, "snap")
        incus("stop", "-f", name)
        clone = incus.adopt(incus.name("copy"))
        incus("copy", "--instance-only", name, clone)
        incus.start(name)
        begin = time.monotonic()
        keep(incus, victim, {"/root/meanwhile": path})
        assert collect(host) < LONGEST_COLLECTION
        incus.wait_inside(name)
        assert time.monotonic() - begin < 30
        wait_rooted(incus, name, {"/root/result": path})


# --- Mounts, namespaces, control groups -------------------------------------------------------

PLACES = {
    "a tmpfs": "mount -t tmpfs tmpfs /root/p; cd /root/p",
    "a bind mount": "mkdir /root/b; mount -o bind /root/b /root/p; cd /root/p",
    "an overlay": (
        "mkdir /root/low; mount -t tmpfs tmpfs /root/low; mkdir /root/low/u /root/low/w; "
        "mount -t overlay -o lowerdir=/root/p,upperdir=/root/low/u,workdir=/root/low/w o /root/p"
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_link_on_what_is_mounted_inside_holds(incus: Incus, host: Host, place: str) -> None:
    path = add_to_store(incus, "mounted")
    name = incus.launch(flake="/etc/nixos#web")
    incus.sh(name, f"mkdir /root/p; {PLACES[place]}; ln -s {path} /root/p/result")
    register(incus, name, ["/root/p/result"])
    wait_rooted(incus, name, {"/root/p/result": path})
    collect(host)
    assert valid(host, path)
    incus.run(name, "rm", "/root/p/result")
    wait_collected(incus, path)


def test_a_link_in_a_root_of_its_own_holds_while_that_runs(incus: Incus, host: Host) -> None:
    """As a container in the container has."""
    path = add_to_store(incus, "pivoted")
    name = incus.launch(flake="/etc/nixos#web")
    script = f"""
        mkdir /root/new; mount -t tmpfs tmpfs /root/new; cd /root/new
        mkdir -p nix/store old deep; ln -s {path} deep/result
        mount -o bind /nix/store nix/store; cp "$(readlink -f "$(which sh)")" busybox
        pivot_root . old
        exec chroot . /busybox sh -c '/busybox umount -l /old; exec /busybox sleep 3600'
        """
    incus.sh(name, f"unshare -m sh -euc {shlex.quote(script)} >/dev/null 2>/root/err &")
    incus.eventually(
        lambda: "deep" in incus.sh(name, "ls -d /proc/*/root/deep || :").stdout,
        lambda: incus.sh(name, "cat /root/err").stdout,
    )
    register(incus, name, ["/deep/result"])
    wait_rooted(incus, name, {"/deep/result": path})
    collect(host)
    assert valid(host, path)


def test_hundreds_of_namespaces_and_thousands_of_groups_keep_nobody_waiting(
    incus: Incus, host: Host
) -> None:
    path, other = add_to_store(incus, "crowd"), add_to_store(incus, "crowd-gone")
    links = {f"/root/l{count}": path for count in range(300)}
    groups = "cd /sys/fs/cgroup; [ ! -d unified ] || cd unified"
    with harmless(incus) as victim:
        name = incus.launch(flake="/etc/nixos#web")
        keep(incus, name, {"/root/gone": other})
        incus.sh(
            name,
            f"""
            {groups}
            for a in $(seq 50); do mkdir c$a; for b in $(seq 50); do mkdir c$a/$b; done; done
            for i in $(seq 300); do unshare -m sleep 3600 </dev/null >/dev/null 2>&1 & done
            """,
            check=False,
        )
        incus.eventually(
            lambda: int(incus.said(name, "sh", "-c", "ls -lL /proc/*/ns/mnt | wc -l")) > 300,
            incus.story,
        )
        link(incus, name, links)
        register(incus, name, list(links))
        keep(incus, victim, {"/root/meanwhile": path})
        wait_rooted(incus, name, links)
        assert collect(host) < LONGEST_COLLECTION
        # While there are more than it looks at, it cannot be sure that nobody has the link.
        incus.sh(
            name,
            f"rm /root/gone; killall sleep; {groups}; rmdir c[0-9]*/[0-9]* c[0-9]*",
        )
        wait_collected(incus, other)
        assert valid(host, path)


@contextlib.contextmanager
def hanging(incus: Incus, name: str) -> Iterator[None]:
    """/root/dead is a file system whose server takes no request: whoever looks below waits."""
    incus.sh(
        name,
        """
        mkdir /root/dead; exec 3<>/dev/fuse
        mount -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 dead /root/dead
        sleep 3600 </dev/null >/dev/null 2>&1 & echo $! >/root/pid
        """,
    )
    try:
        yield
    finally:
        incus.sh(name, "kill $(cat /root/pid)")


def test_a_file_system_that_never_answers_makes_others_wait_no_longer_than_said(
    incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "hung")
    with harmless(incus) as victim:
        name = incus.launch(flake="/etc/nixos#web")
        keep(incus, name, {"/root/before": path})
        with hanging(incus, name):
            register(incus, name, ["/root/dead/result"])
            for label in "first", "second":
                begin = time.monotonic()
                keep(incus, victim, {f"/root/{label}": path})
                assert time.monotonic() - begin < 10
                assert collect(host) < LONGEST_COLLECTION
            # Not one of its roots is dropped for what cannot be seen.
            assert root_of("/root/before", path) in roots_of(incus, name)
        keep(incus, name, {"/root/late": add_to_store(incus, "late")})


def test_a_link_beside_a_file_system_that_never_answers_holds(incus: Incus, host: Host) -> None:
    path = add_to_store(incus, "beside")
    name = incus.launch(flake="/etc/nixos#web")
    link(incus, name, {"/root/beside": path})
    stop = ["systemctl", "kill", "--kill-whom=main", "--signal=STOP", "inx-sidecar"]
    with hanging(incus, name):
        # It hears of both at once.
        host.run(stop)
        try:
            register(incus, name, ["/root/dead/result", "/root/beside"])
        finally:
            host.run([word.replace("STOP", "CONT") for word in stop])
        wait_rooted(incus, name, {"/root/beside": path})
        collect(host)
        assert valid(host, path)


def test_an_instance_that_does_not_answer_says_so(incus: Incus) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    with hanging(incus, name):
        register(incus, name, ["/root/dead/result"])
        incus.wait_status(name, r"ready \(.*does not answer")
    incus.wait_status(name, "ready$")


# --- Nix inside -------------------------------------------------------------------------------

# Each with a word of what the user sees, and whether it ends well.
COLLECTIONS: dict[str, tuple[str, bool]] = {
    "nix-collect-garbage -d": ("cannot bind to socket", False),
    "nix-store --gc": ("cannot bind to socket", False),
    "nix store gc": ("cannot bind to socket", False),
    "nix-store --gc --print-dead": ("cannot bind to socket", False),
    "nix-store --delete $D": ("cannot bind to socket", False),
    "nix-store --delete --ignore-liveness $D": ("not allowed", False),
    "nix store delete $D": ("cannot bind to socket", False),
    "nix-store --verify --check-contents --repair": ("not privileged", False),
    "nix-store --repair-path $D": ("", False),
    "nix-store --optimise": ("", True),
}


def test_no_garbage_is_collected_from_inside(incus: Incus, host: Host) -> None:
    with harmless(incus):
        dead, mine = add_to_store(incus, "unheld"), add_to_store(incus, "mine")
        name = incus.launch(flake="/etc/nixos#web")
        keep(incus, name, {"/root/result": mine})
        before = host.sh("cd /nix/store; find . | sort").stdout.replace("./.links", "")
        for command, (word, well) in COLLECTIONS.items():
            done = incus.sh(name, f"export D={dead}; {command}", check=False)
            said = (command, done.stdout, done.stderr)
            assert (done.returncode == 0) == well and word in done.stderr, said
            assert valid(host, dead), said
        after = host.sh("cd /nix/store; find . | sort").stdout
        assert set(before.splitlines()) <= set(after.splitlines()) | {""}
        wait_collected(incus, dead)
        assert valid(host, mine)


def test_looking_for_roots_inside_loses_none_and_names_none_of_the_host(
    incus: Incus, host: Host
) -> None:
    secret = f"{incus.prefix}-topsecret"
    path = add_to_store(incus, "looked-for")
    name = incus.launch(flake="/etc/nixos#web")
    other = incus.launch(name=incus.name("neighbour"), flake="/etc/nixos#web")
    keep(incus, other, {f"/root/{secret}": path})
    host.sh(
        """
        mkdir -p /nix/var/nix/profiles/per-user/$S /home/$S
        ln -s $P /nix/var/nix/profiles/per-user/$S/profile-1-link
        ln -s $P /home/$S/result; ln -s $P /nix/var/nix/gcroots/$S
        nix-store --add-root /srv/$S-result --realise $P
        """,
        env={"S": secret, "P": path},
    )
    links = {f"/root/l{count}": path for count in range(2000)}
    link(incus, name, links)
    texts = list(links)
    look = "nix-store --gc --print-roots"
    enough = "[ -e /looks ] && [ $(wc -l </looks) -ge 200 ]"
    with busy(incus, name, f"{look} >>/shown 2>&1 && echo >>/looks"):
        while incus.sh(name, enough, check=False).returncode:
            register(incus, name, [texts.pop() for _ in range(min(20, len(texts)))])
    register(incus, name, texts)
    wait_rooted(incus, name, links)
    shown = incus.said(name, "sort", "-u", "/shown")
    host.run(["rm", "-r", f"/srv/{secret}-result", f"/nix/var/nix/gcroots/{secret}"])
    host.run(["rm", "-r", f"/nix/var/nix/profiles/per-user/{secret}", f"/home/{secret}"])
    assert name_of("/root/l0") not in shown  # they are not in its reach, and so not removed
    assert secret not in shown, [line for line in shown.splitlines() if secret in line]
    assert other not in shown


LOCAL_STORES = [
    "NIX_REMOTE=local nix-store --gc",
    "nix-store --store local --gc",
    "nix store gc --store local",
    "nix store gc --store /root/s",
    "nix store gc --store '/?state=/root/state&real=/nix/store'",
    "nix store gc --store 'local?root=/&state=/root/state2'",
    "nix-store --store 'local?state=/root/state3' --delete $D",
    "export NIX_STATE_DIR=/root/state4 NIX_REMOTE=local; nix-store --init; nix-store --gc",
    "export NIX_STATE_DIR=/root/state5; nix-collect-garbage -d",
    "mkdir /root/var; mount -o bind /root/var /nix/var/nix; NIX_REMOTE=local nix-store --gc",
    "mount -o remount,rw,bind /nix/store; mount -t tmpfs tmpfs /nix/var/nix; nix-store --gc",
]


@pytest.mark.parametrize("privileged", ["false", "true"])
def test_a_store_of_its_own_cannot_delete_a_byte_of_the_shared_one(
    incus: Incus, host: Host, privileged: str
) -> None:
    options = ["-c", f"security.privileged={privileged}"]
    with harmless(incus):
        dead = add_to_store(incus, "unheld")
        name = incus.launch(*options, flake="/etc/nixos#web", daemon="true")
        listing = "find /nix/store -printf '%p %i %m %u %n %s %T@ %C@ %l\\n' | sort"
        before = host.sh(listing).stdout
        ended_well = []
        for command in LOCAL_STORES:
            done = incus.sh(
                name,
                f"export D={dead}; unshare -m sh -uc {shlex.quote(command)}",
                check=False,
                timeout=60,
            )
            if done.returncode == 0:
                ended_well.append(command)
            assert host.sh(listing).stdout == before, (command, done.stdout, done.stderr)
        # A store elsewhere is the container's own affair.
        assert "nix store gc --store /root/s" in ended_well
        assert valid(host, dead)


def test_without_a_daemon_nothing_is_mirrored_and_nobody_disturbed(
    incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "without")
    since = cursor(host)
    with harmless(incus) as victim:
        name = incus.launch(flake="/etc/nixos#web", daemon="false")
        link(incus, name, {"/root/result": path, f"{AUTO}/{name_of('/root/no')}": "/root/no"})
        assert incus.run(name, "nix", "store", "info", check=False).returncode != 0
        refused = register(incus, name, ["/root/result"], check=False)
        assert "Connection refused" in refused
        host.run(SYNC)
        assert roots_of(incus, name) == {}
        keep(incus, victim, {"/root/second": path})
        assert incus.status(name) == "ready"
    assert not [line for line in journal(host, since) if f"{name}: root ".encode() in line]
