"""Hostile root of an isolated container against what it does not see of the host's store.

`Vault.secret` and `Vault.shown` are alike, store paths that no system needs; only the second is
included in the view. What finds the second would find the first as well, were it to be seen.
"""

import contextlib
import ctypes
import errno
import inspect
import json
import os
import re
import shlex
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from host.test_attacks import (
    FILE_TRICKS,
    HOPELESS_CALLS,
    HOPELESS_TRICKS,
    MOUNT_TRICKS,
    NEVER,
    POOL,
    as_container_root,
    become_container_root,
    handles,
    own,
    refusal,
    start,
    succeeded,
    system_calls,
    unchanged,
)
from support.disposable import Host
from support.incus import Incus

from inx_sidecar.links.indirect_roots import name_of

pytestmark = pytest.mark.isolated

STORE = "/nix/store"
PROFILES = "/nix/var/nix/profiles"
MODULES = (contextlib, ctypes, errno, json, os, re, socket, stat, struct, subprocess, sys)


libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
LIBC = "libc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall.restype = ctypes.c_long"


def check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    check(libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None))


def call(number: int, *args: int | bytes | None) -> int:
    kinds = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
    return check(int(libc.syscall(ctypes.c_long(number), *kinds)))


def in_namespaces(user: bool = False) -> None:
    """A mount namespace of its own, with `user` in a user namespace below; /mnt is a tmpfs then."""
    if user:
        check(libc.unshare(0x10000000))
        check(libc.prctl(4, 1, 0, 0, 0))  # dumpable: else its maps belong to somebody else
        with open("/proc/self/setgroups", "w") as file:
            file.write("deny")
        for kind in "uid_map", "gid_map":
            with open(f"/proc/self/{kind}", "w") as file:
                file.write("0 0 1")
    check(libc.unshare(0x00020000))
    if not user:
        mount("none", "/", None, 16384 | 1 << 18)
    mount("tmpfs", "/mnt", "tmpfs", 0)
    for directory in "a", "upper", "work", "merged":
        os.mkdir(f"/mnt/{directory}")


def attempt(function: Callable[[], object]) -> str:
    """ "done", or the name of the error, of `function` in a child."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(254)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return errno.errorcode.get(status, str(status)) if status else "done"


HELPERS = (become_container_root, check, mount, call, in_namespaces, attempt)


def program(function: Callable[..., Any], *args: Any, pid: int = 0) -> str:
    """A Python program that prints in JSON what `function` gives, as root of the container whose
    init is `pid`. What it imports, it imports outside: the host's modules are not to be had inside.
    """
    return "\n".join(
        [
            "from __future__ import annotations",
            f"import {', '.join(module.__name__ for module in MODULES)}",
            LIBC,
            *(inspect.getsource(part) for part in (*HELPERS, function)),
            f"become_container_root({pid})" if pid else "",
            f"told = {function.__name__}(*json.loads({json.dumps(args)!r}))",
            "print(json.dumps(told), flush=True)",
        ]
    )


def inside(incus: Incus, name: str, function: Callable[..., Any], *args: Any) -> Any:
    text = program(function, *args, pid=incus.pid(name))
    return json.loads(incus.host.run(["python3", "-I", "-"], input=text).stdout)


def on_host(host: Host, function: Callable[..., Any], *args: Any) -> Any:
    return json.loads(host.run(["python3", "-I", "-"], input=program(function, *args)).stdout)


def closure(host: Host, *paths: str) -> set[str]:
    """The names of all that the store paths need."""
    needed = host.run(["nix-store", "--query", "--requisites", *paths]).stdout
    return {os.path.basename(path) for path in needed.split()}


def stored(host: Host) -> set[str]:
    return set(host.run(["ls", "-A", STORE]).stdout.split())


def add(incus: Incus, label: str) -> str:
    """A directory in the store, with a file, a program and a link in it."""
    script = """
        d=$(mktemp -d)/$L; mkdir -p "$d/below"; cd "$d"
        echo "bytes of $L" >file; cp file below; ln -s file link
        printf '#!/bin/sh\\necho "bytes of $L"\\n' >run; chmod +x run
        nix-store --add "$d"
    """
    return str(incus.host.sh(script, env={"L": f"{incus.prefix}-{label}"}).stdout.strip())


def build(incus: Incus, greeting: str) -> str:
    """A system that no instance was given."""
    flake = incus.flake(directory=f"/srv/{incus.prefix}-{greeting}", greeting=greeting)
    script = """
        nix --extra-experimental-features 'nix-command flakes' build -o "$D/result" \
            "$D#nixosConfigurations.web.config.system.build.toplevel"
        readlink "$D/result"
    """
    return str(incus.host.sh(script, env={"D": flake}).stdout.strip())


class Vault:
    """An isolated instance beside store paths that it must not see."""

    def __init__(self, incus: Incus, *options: str, **config: str) -> None:
        self.incus, self.host = incus, incus.host
        self.secret, self.shown = add(incus, "secret"), add(incus, "shown")
        # As a store that shares equal files has it.
        self.host.sh(f"mkdir -p {STORE}/.links; ln -f {self.secret}/file {STORE}/.links/0secret")
        more = {"flake": "/etc/nixos#web", "store": "isolated", "store_include": self.shown}
        self.name = incus.init(*options, **(more | config))

    def launch(self) -> "Vault":
        self.incus.start(self.name)
        self.incus.wait_ready(self.name)
        return self

    @property
    def system(self) -> str:
        return self.incus.get(self.name, "user.inx.status.system")

    def visible(self, *more: str) -> set[str]:
        return closure(self.host, self.system, self.shown, *more)

    def foreign(self, *given: str) -> list[str]:
        """The names of all else in the store."""
        return sorted(stored(self.host) - self.visible(*given))

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        return inside(self.incus, self.name, function, *args)


@pytest.fixture
def vault(incus: Incus) -> Vault:
    return Vault(incus).launch()


# --- By path ----------------------------------------------------------------------------------


def reach(paths: list[str]) -> dict[str, list[str]]:
    """What root can do with each path; those with which it can do nothing are left out."""
    os.makedirs("/reached", exist_ok=True)

    def bind(path: str) -> None:
        mount(path, "/reached", None, 4096)
        libc.umount2(b"/reached", 2)

    def apart(function: Callable[[], object]) -> bool:
        return {"done": True}[attempt(function)]

    attempts: dict[str, Callable[[str], object]] = {
        "stat": os.stat,
        "lstat": os.lstat,
        "statfs": os.statvfs,
        "access": lambda path: {True: True}[os.access(path, os.F_OK)],
        "hold": lambda path: os.close(os.open(path, os.O_PATH | os.O_NOFOLLOW)),
        "open": lambda path: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK)),
        "list": os.listdir,
        "cat": lambda path: open(f"{path}/file").read(),
        "read a link": lambda path: os.readlink(f"{path}/link"),
        "list attributes": os.listxattr,
        "go there": lambda path: apart(lambda: os.chdir(path)),
        "make it the root": lambda path: apart(lambda: os.chroot(path)),
        "execute": lambda path: subprocess.run([f"{path}/run"], check=False, capture_output=True),
        "bind": bind,
    }
    found: dict[str, list[str]] = {}
    for path in paths:
        for what, trial in attempts.items():
            try:
                trial(path)
            except (OSError, KeyError):
                continue
            found.setdefault(path, []).append(what)
    return found


ALL_OF_A_DIRECTORY = [
    "stat", "lstat", "statfs", "access", "hold", "open", "list", "cat", "read a link",
    "list attributes", "go there", "make it the root", "execute", "bind",
]  # fmt: skip


def test_the_view_lists_the_closure_and_nothing_else(vault: Vault) -> None:
    assert set(vault.do(os_listdir, STORE)) == vault.visible()
    assert vault.incus.said(vault.name, "ls", "-A", STORE).split() == sorted(vault.visible())
    assert os.path.basename(vault.secret) in vault.foreign()
    assert {".links", *closure(vault.host, build(vault.incus, "other"))} - vault.visible()


def os_listdir(path: str) -> list[str]:
    return os.listdir(path)


def test_no_other_path_of_the_store_is_there_for_who_knows_its_name(
    vault: Vault, incus: Incus
) -> None:
    build(incus, "other")
    names = vault.foreign()
    assert {".links", os.path.basename(vault.secret)} < set(names)
    paths = [f"{STORE}/{name}" for name in (*names, ".links/0secret")]
    assert vault.do(reach, [*paths, vault.shown]) == {vault.shown: ALL_OF_A_DIRECTORY}
    shared = incus.launch(name=incus.name("shared"), flake="/etc/nixos#web")
    reached = inside(incus, shared, reach, paths)
    assert reached.keys() == set(paths)
    assert reached[vault.secret] == ALL_OF_A_DIRECTORY


def ways(store: str, shown: str) -> list[str]:
    """Directories from which the store, or what the view is made of, might be reached."""
    name = os.path.basename(shown)
    return [
        f"{store}/.",
        f"{store}/../store",
        f"{store}/..",
        f"{store}/../entries",
        f"{store}/../../all",
        f"{store}/../all",
        f"{store}/../../0.layers/all",
        f"{store}/{name}/..",
        f"{store}/{name}/../..",
        f"{store}/{name}/below/../..",
        f"{store}/{name}/below/../../..",
        "/proc/self/root/nix/store",
        "/proc/1/root/nix/store",
        "/proc/1/root/../nix/store",
        "/proc/1/root/../../../../../../../nix/store",
        "/proc/1/cwd/../../../../nix/store",
        "/run/inx/0.layers/all",
        "/run/inx/0.layers/overlay",
        "/../../nix/store",
    ]


def test_no_steps_upwards_lead_out_of_the_view(vault: Vault) -> None:
    secret, shown = (os.path.basename(path) for path in (vault.secret, vault.shown))
    places = ways(STORE, vault.shown)
    assert vault.do(reach, [f"{place}/{secret}" for place in places]) == {}
    found = vault.do(reach, [f"{place}/{shown}" for place in places])
    assert len(found) == 10, found
    assert set(vault.do(os_listdir, f"{STORE}/..")) == {"store", "var"}
    for place in (f"{STORE}/../..", f"{vault.shown}/../../..", "/proc/1/root/.."):
        assert "nix" in vault.do(os_listdir, place)
        assert "lost+found" not in vault.do(os_listdir, place)
    assert not {"all", "named", "entries"} & set(vault.do(os_listdir, f"{STORE}/../.."))


# Exit status 0 if one of the processes leads to the store path $3, else 3.
LOOK_IN_PROC = """
    cd "$1"; exec 8<"$1" 9<"$2"
    name=${3##*/} status=3
    for process in /proc/[0-9]*; do
        for way in $process/root $process/cwd $process/fd/* $process/map_files/* \
                $process/task/*/root $process/task/*/cwd; do
            for up in . .. ../.. nix/store ../nix/store ../../../../nix/store ../all ../../all; do
                [ ! -e "$way/$up/$name" ] || status=0
            done
        done
    done
    exit $status
"""


def test_no_process_inside_leads_to_another_path(vault: Vault) -> None:
    def found(path: str) -> int:
        look = ["sh", "-uc", LOOK_IN_PROC, "sh", vault.shown, STORE, path]
        return vault.incus.run(vault.name, *look, check=False).returncode

    assert found(vault.shown) == 0
    assert found(vault.secret) == 3


# --- By name ----------------------------------------------------------------------------------


def names_inside(hashes: list[str]) -> dict[str, list[str]]:
    """Where inside the hash of a store path can be read; for each of `hashes` the places."""
    api = socket.socket(socket.AF_UNIX)
    api.connect("/dev/incus/sock")

    def ask(path: str) -> str:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect("/dev/incus/sock")
            channel.sendall(f"GET {path} HTTP/1.0\r\nHost: incus\r\n\r\n".encode())
            return b"".join(iter(lambda: channel.recv(65536), b"")).decode(errors="replace")

    texts = {f"guest API {path}": ask(path) for path in ("/1.0", "/1.0/devices", "/1.0/meta-data")}
    listed = ask("/1.0/config")
    keys = re.findall(r"/1\.0/config/[^\"\s]+", listed)
    texts |= {f"guest API {key}": ask(key) for key in keys} | {"guest API /1.0/config": listed}

    own = f"/proc/{os.getpid()}/"
    tops = ["/proc", "/dev", "/etc", "/root", "/run", "/tmp", "/var", "/nix/var", "/usr"]
    seldom = {"kmsg", "kcore", "pagemap", "mem", "task", "net", "sysrq-trigger", "clear_refs"}
    for top in tops:
        for base, directories, files in os.walk(top):
            directories[:] = [name for name in directories if name not in seldom]
            if base.startswith("/proc/sys/"):
                directories[:] = []
            links = [name for name in directories if os.path.islink(f"{base}/{name}")]
            for name in [*files, *links]:
                path = f"{base}/{name}"
                with contextlib.suppress(OSError):
                    if os.path.islink(path):
                        texts[path] = os.readlink(path)
                        continue
                    kind = os.stat(path).st_mode
                    regular = stat.S_ISREG(kind) or stat.S_ISFIFO(kind)
                    if not regular or name in seldom or path.startswith(f"{own}fd"):
                        continue
                    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                    try:
                        texts[path] = os.read(fd, 1 << 20).decode(errors="replace")
                    finally:
                        os.close(fd)
    with contextlib.suppress(FileNotFoundError):  # there is none before it is known what it shows
        texts["the listing of the store"] = " ".join(os.listdir("/nix/store"))
    found: dict[str, list[str]] = {}
    for place, text in texts.items():
        for wanted in hashes:
            if wanted in text:
                found.setdefault(wanted, []).append(place)
    return found


def hashes(names: set[str] | list[str]) -> list[str]:
    """Those of store paths, of which other names there have none."""
    return sorted(name[:32] for name in names if re.match(r"[0-9a-z]{32}-", name))


def assert_no_names(vault: Vault, *given: str) -> dict[str, list[str]]:
    """Inside are no names of store paths but those of what it was given; where these are."""
    needed = closure(vault.host, vault.shown, *given)
    foreign = hashes(stored(vault.host) - needed)
    assert vault.secret[len(STORE) + 1 :][:32] in foreign
    found = vault.do(names_inside, [*foreign, *hashes(needed)])
    assert not found.keys() & set(foreign), found
    console = vault.incus.console(vault.name)
    assert not [wanted for wanted in foreign if wanted in console], console
    return dict(found)


def test_no_text_inside_names_another_path(vault: Vault, incus: Incus) -> None:
    """But for the status and its own system, the console of a shared one shows them."""
    build(incus, "other")
    system = vault.system
    found = assert_no_names(vault, system)
    (of_system,) = hashes([os.path.basename(system)])
    places = found[of_system]
    assert "guest API /1.0/config/user.inx.status.system" in places
    assert f"{PROFILES}/system-1-link" in places
    assert "/run/current-system" in places
    assert "the listing of the store" in places
    (of_shell,) = hashes([name for name in vault.visible() if name.endswith("-busybox")])
    for place in "/proc/1/maps", "/proc/1/smaps", "/proc/1/exe":
        assert place in found[of_shell]


GATED = """
    {{ web = builtins.trace "needs {secret}" (builtins.seq (builtins.readFile {gate})
        ({then})); }}
"""


class Gate:
    """A source of an instance that names a store path, waits, and gives what it is told to."""

    def __init__(self, incus: Incus, secret: str) -> None:
        self.incus, self.secret = incus, secret
        self.directory = incus.flake(directory=f"/srv/{incus.prefix}-gated", greeting="gated")
        self.path, self.file = f"{self.directory}/gate", f"{self.directory}/gated.nix"
        incus.host.run(["mkfifo", self.path])
        incus.host.sh(
            'cat >"$D/systems.nix"',
            env={"D": self.directory},
            input="""
                { name, greeting }: let
                    gathered = builtins.fromJSON (builtins.readFile ./deps.json);
                    deps = builtins.mapAttrs
                        (n: v: if n == "system" then v else builtins.storePath v) gathered;
                in import ./system.nix { inherit name deps; extra.greeting = greeting; }
            """,
        )

    def give(self, then: str) -> None:
        text = GATED.format(secret=self.secret, gate=self.path, then=then)
        self.incus.host.sh('cat >"$F"', env={"F": self.file}, input=text)

    def give_system(self, greeting: str) -> None:
        self.give(f'import ./systems.nix {{ name = "web"; greeting = "{greeting}"; }}')

    def open(self) -> None:
        self.incus.host.sh(': >"$P"', env={"P": self.path})

    def wait(self, name: str) -> None:
        """Until the build has named the path and waits."""
        log = f"/var/log/inx/{self.incus.uuid(name)}.build.log"
        asked = ["grep", "-q", f"needs {self.secret}", log]
        self.incus.wait_status(name, "building$")
        self.incus.eventually(
            lambda: self.incus.host.run(asked, check=False).returncode == 0, self.incus.story
        )


def test_no_text_names_another_path_while_and_after_a_system_is_built(
    incus: Incus, host: Host
) -> None:
    secret = add(incus, "secret")
    gate = Gate(incus, secret)
    gate.give_system("one")
    vault = Vault(incus, flake="", file=gate.file, attr="web")
    shared = incus.init(name=incus.name("shared"), file=gate.file, attr="web")
    incus.start(shared)
    gate.wait(shared)
    gate.open()
    incus.wait_ready(shared)
    assert f"needs {secret}" in incus.console(shared)

    incus.start(vault.name)
    gate.wait(vault.name)
    assert_no_names(vault)
    gate.open()
    incus.wait_ready(vault.name)
    assert f"needs {STORE}/..." in incus.console(vault.name)
    first = vault.system
    assert hashes([os.path.basename(first)])[0] in assert_no_names(vault, first)

    gate.give_system("two")
    incus.set(vault.name, "user.inx.update=2")
    incus("restart", "-f", vault.name)
    gate.wait(vault.name)
    assert_no_names(vault, first)
    gate.open()
    incus.wait_ready(vault.name)
    second = vault.system
    assert second != first
    assert_no_names(vault, first, second)
    # What is seen is that of the system that runs.
    assert vault.do(reach, [first]) == {}

    gate.give(f'throw "there is no {secret}"')
    incus.set(vault.name, "user.inx.update=3")
    incus("restart", "-f", vault.name)
    gate.wait(vault.name)
    gate.open()
    incus.wait_inside(vault.name)
    status = incus.wait_status(vault.name, "failed: .*; started generation 2$")
    assert f"there is no {STORE}/..." in status
    assert f"there is no {secret}" in incus.log(vault.name)
    assert_no_names(vault, first, second)
    assert "there is no " in incus.console(vault.name)
    assert vault.do(reach, [first, vault.secret]) == {}


def test_a_system_that_leads_nowhere_is_not_named_inside(incus: Incus, host: Host) -> None:
    """The operator's link leads to what is no system, and an older generation starts."""
    vault = Vault(incus, flake="", system=f"/srv/{incus.prefix}-link")
    link = f"/srv/{incus.prefix}-link"
    system = build(incus, "first")
    host.run(["ln", "-sfn", system, link])
    vault.launch()
    host.run(["ln", "-sfn", f"{vault.secret}/below", link])
    incus("restart", "-f", vault.name)
    incus.wait_inside(vault.name)
    status = incus.wait_status(vault.name, "failed: .*; started generation 1$")
    assert f"leads to '{STORE}/...below'" in status or f"leads to '{STORE}/.../below'" in status
    shared = incus.launch(name=incus.name("shared"), system=system)
    incus.set(shared, f"user.inx.system={link}")
    incus("restart", "-f", shared)
    incus.wait_status(shared, "failed: .*; started generation 1$")
    assert f"{vault.secret}/below" in inside(incus, shared, read, "/dev/.inx/ready")
    assert_no_names(vault, system)


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def test_a_sidecar_that_cannot_take_over_names_nothing_inside(incus: Incus, host: Host) -> None:
    """It comes back to a container that waits, and whose source now leads to what is no system."""
    gate = Gate(incus, add(incus, "needed"))
    gate.give_system("one")
    vault = Vault(incus, flake="", file=gate.file, attr="web")
    link = f"/srv/{incus.prefix}-link"
    host.run(["ln", "-sfn", f"{vault.secret}/below", link])
    incus.start(vault.name)
    gate.wait(vault.name)
    units = ["inx-sidecar.socket", "inx-sidecar.service"]
    host.run(["systemctl", "stop", *units])
    keys = ["user.inx.file=", "user.inx.attr=", f"user.inx.system={link}"]
    incus.set(vault.name, *keys)
    host.run(["systemctl", "start", *units])
    incus.wait_state(vault.name, "STOPPED")
    assert f"{vault.secret}/below" in host.run(["journalctl", "-u", "inx-sidecar"]).stdout
    incus.eventually(
        lambda: "leads to" in incus.console(vault.name), lambda: incus.console(vault.name)
    )
    assert os.path.basename(vault.secret)[:32] not in incus.console(vault.name)


def test_a_name_that_is_cut_short_is_left_out_as_well(incus: Incus, host: Host) -> None:
    """A status has 400 characters: where it ends, some of a hash may be left."""
    script = 'd=$(mktemp -d)/n; echo "$L" >"$d"; nix-store --add "$d"'
    secret = host.sh(script, env={"L": incus.prefix}).stdout.strip()
    bare = os.path.basename(secret)
    crowd = " ".join([bare] * 40)
    outputs = f'nixosConfigurations.web = throw "{crowd}";'
    flake = incus.flake_text(outputs, f"/srv/{incus.prefix}-crowd")
    vault = Vault(incus, flake=f"{flake}#web")
    incus.start(vault.name, check=False)
    status = incus.wait_status(vault.name, "failed: ")
    incus.wait_state(vault.name, "STOPPED")
    assert bare in incus.log(vault.name)
    console = incus.console(vault.name)
    for length in range(32, 4, -1):
        assert bare[:length] not in status, status
        assert bare[:length] not in console, console


# --- By handle --------------------------------------------------------------------------------


def open_handles(known: dict[str, tuple[int, str]], bases: list[str]) -> dict[str, str]:
    """What comes of each file handle at each base, as a directory and as a file."""
    outcome = {}
    for base in bases:
        base_fd = os.open(base, os.O_RDONLY)
        for path, (kind, value) in known.items():
            raw = bytes.fromhex(value)
            handle = struct.pack("=Ii", len(raw), kind) + raw
            for flags in (os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY, os.O_PATH | os.O_DIRECTORY):
                fd = libc.open_by_handle_at(base_fd, handle, flags)
                how = "opened" if fd >= 0 else errno.errorcode[ctypes.get_errno()]
                outcome[f"{path} at {base} with {flags:o}"] = how
                if fd >= 0:
                    os.close(fd)
        os.close(base_fd)
    return outcome


def wrapped(known: dict[str, tuple[int, str]], path: str) -> dict[str, tuple[int, str]]:
    """The handles as the overlay at `path` would write them (fs/overlayfs/overlayfs.h, ovl_fh)."""
    buffer = ctypes.create_string_buffer((128).to_bytes(4, sys.byteorder), 136)
    where = ctypes.byref(ctypes.c_int())
    at_handle_fid = 0x200
    if libc.name_to_handle_at(-100, os.fsencode(path), buffer, where, at_handle_fid):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    length, kind = struct.unpack_from("=Ii", buffer.raw)
    pattern = bytearray(buffer.raw[8 : 8 + length])
    made = {path: (kind, bytes(pattern).hex())}
    for name, (inner, value) in known.items():
        fid = bytes.fromhex(value)
        head = bytearray(pattern[: 3 + 21])
        head[3 + 2], head[3 + 4] = 21 + len(fid), inner
        made[f"wrapped {name}"] = (kind, bytes(head + fid).hex())
    return made


def test_no_file_handle_opens_another_path(vault: Vault, incus: Incus, host: Host) -> None:
    name = vault.name
    incus.sh(name, "mkdir -p /plain/mine; mount -o bind /plain /plain")
    mine = f"{POOL}/{name}/rootfs/plain/mine"
    paths = [vault.secret, f"{vault.secret}/file", vault.shown, f"{vault.shown}/below", STORE]
    known = on_host(host, handles, [*paths, f"{STORE}/.links", mine])
    assert len(known) == 7
    bases = ["/", STORE, vault.shown, "/nix/var/nix", PROFILES, "/dev/.inx", "/dev/incus", "/plain"]
    bases += ["/nix/var/nix/daemon-socket", "/dev", "/run", "/tmp", "/etc"]
    told = vault.do(open_handles, known, bases)
    opened = {what for what, how in told.items() if how == "opened"}
    assert f"{mine} at /plain with 200000" in opened, told
    assert not [what for what in opened if not what.startswith(f"{mine} at /")], opened

    overlaid = vault.do(wrapped, {path: known[path] for path in paths}, vault.shown)
    assert len(overlaid) == 6
    told = vault.do(open_handles, overlaid, [STORE, vault.shown, "/"])
    assert "opened" not in told.values(), told

    # Where the whole store is mounted, they open it.
    assert set(
        on_host(host, open_handles, {vault.secret: known[vault.secret]}, [STORE]).values()
    ) == {"opened"}
    shared = incus.launch(name=incus.name("shared"), flake="/etc/nixos#web")
    told = inside(incus, shared, open_handles, {vault.secret: known[vault.secret]}, [STORE])
    assert "opened" in told.values(), told


# --- By mount ---------------------------------------------------------------------------------


def mount_tricks(store: str, name: str, sample: str) -> dict[str, str]:
    """By which tricks the entry `name` of `store` is found: "done", or the name of the error.

    `sample` is a directory of the store that is there.
    """
    bind, move, rec, detach = 4096, 8192, 16384, 2
    open_tree, fsopen, fsconfig, fsmount = 428, 430, 431, 432
    here, clone, recursive = -100, 1, 0x8000

    def look(*places: str) -> None:
        """Raise unless the entry is at one of these."""
        for place in places:
            with contextlib.suppress(FileNotFoundError):
                os.stat(f"{place}/{name}")
                return
        raise FileNotFoundError(errno.ENOENT, "")

    def bind_it() -> None:
        mount(store, "/mnt/a", None, bind)
        look("/mnt/a", "/mnt/a/..")

    def bind_all() -> None:
        mount("/", "/mnt/a", None, bind | rec)
        look(f"/mnt/a{store}", f"/mnt/a{store}/../..", "/mnt/a/..")

    def copy() -> None:
        for flags in (clone, clone | recursive):
            fd = call(open_tree, here, store.encode(), flags)
            look(*(f"/proc/self/fd/{fd}/{way}" for way in (".", "..", "../all", "../../all")))

    def copy_all() -> None:
        fd = call(open_tree, here, b"/", clone | recursive)
        look(f"/proc/self/fd/{fd}{store}")

    def move_it() -> None:
        mount(store, "/mnt/a", None, move)
        look("/mnt/a", "/mnt/a/..")

    def look_below() -> None:
        mount(store, "/mnt/a", None, move)
        look(store)

    def unmount() -> None:
        check(libc.umount2(store.encode(), 0))
        look(store)

    def unmount_lazily() -> None:
        check(libc.umount2(store.encode(), detach))
        look(store)

    def pivot_root() -> None:
        mount(store, store, None, bind)
        os.chdir(store)
        check(libc.pivot_root(b".", b"."))
        libc.umount2(b".", detach)
        look("/", "/..", ".", "..", "../all", "../../all")

    def chroot() -> None:
        os.chroot(store)
        os.chdir("/")
        look("/", "/..", "../../../..", "../all")

    def leave_chroot() -> None:
        os.chdir(store)
        os.chroot(sample)
        look(".", *("/".join([".."] * steps) for steps in range(1, 9)))

    def overlay() -> None:
        data = f"lowerdir={store},upperdir=/mnt/upper,workdir=/mnt/work,userxattr"
        mount("mine", "/mnt/merged", "overlay", 0, data)
        look("/mnt/merged", "/mnt/merged/..")

    def overlay_of_two() -> None:
        mount("mine", "/mnt/merged", "overlay", 0, f"lowerdir={store}:{store}/..")
        look("/mnt/merged", f"/mnt/merged/{os.path.basename(sample)}/..")

    def overlay_of_copy() -> None:
        tree = call(open_tree, here, store.encode(), clone)
        fd = call(fsopen, b"overlay", 0)
        call(fsconfig, fd, 5, b"lowerdir+", None, tree)
        call(fsconfig, fd, 5, b"lowerdir+", None, os.open("/mnt/upper", os.O_PATH))
        call(fsconfig, fd, 6, None, None, 0)
        look(f"/proc/self/fd/{call(fsmount, fd, 0, 0)}")

    def overlay_of_the_same_layers() -> None:
        with open("/proc/self/mountinfo") as file:
            shown = [line for line in file if f" {store} " in line]
        mount("inx", "/mnt/merged", "overlay", 1, shown[-1].split()[-1].partition(",")[2])
        look("/mnt/merged", "/mnt/merged/entries")

    tricks = (
        lambda: look(store), bind_it, bind_all, copy, copy_all, move_it, look_below, unmount,
        unmount_lazily, pivot_root, chroot, leave_chroot, overlay, overlay_of_two, overlay_of_copy,
        overlay_of_the_same_layers,
    )  # fmt: skip
    os.makedirs("/mnt", exist_ok=True)
    outcome = {}
    for user in (False, True):
        for trick in tricks:

            def apart(trick: Callable[[], None] = trick, user: bool = user) -> None:
                in_namespaces(user)
                trick()

            outcome[f"{trick.__name__}{' in a user namespace' if user else ''}"] = attempt(apart)
    return outcome


# By these, root inside finds what is in the view: at its place, at another, or in a copy.
WORKING = {
    "<lambda>", "bind_it", "bind_all", "copy", "copy_all", "move_it", "pivot_root", "chroot",
    "leave_chroot", "overlay", "overlay_of_two", "overlay_of_copy",
}  # fmt: skip
# A mount that came along into a lesser user namespace cannot be moved there.
WORKING_BELOW = {
    f"{trick} in a user namespace" for trick in WORKING - {"move_it", "overlay_of_two"}
}
UNCOVERED = {"look_below", "unmount", "unmount_lazily"}


def done(outcome: dict[str, str]) -> set[str]:
    assert "254" not in outcome.values(), outcome
    return {what for what, how in outcome.items() if how == "done"}


def test_no_mount_inside_shows_another_path(vault: Vault, incus: Incus) -> None:
    secret, shown = (os.path.basename(path) for path in (vault.secret, vault.shown))
    told = vault.do(mount_tricks, STORE, shown, vault.shown)
    assert done(told) == WORKING | WORKING_BELOW, told
    # The view can be taken away; below lies an empty directory of the container's own.
    assert {told[trick] for trick in UNCOVERED} == {"ENOENT"}
    told = vault.do(mount_tricks, STORE, secret, vault.shown)
    assert done(told) == set(), told
    shared = incus.launch(name=incus.name("shared"), flake="/etc/nixos#web")
    told = inside(incus, shared, mount_tricks, STORE, secret, vault.shown)
    assert done(told) >= WORKING | WORKING_BELOW, told


def redirects(store: str, name: str, user: bool) -> dict[str, str]:
    """Which overlays lead from a directory that bears a redirection to the entry `name`."""
    outcome = {}
    targets = (f"/{name}", f"/../{name}", f"../{name}", f"/entries/../{name}", name)
    for space in "user", "trusted":
        for options in (
            "", "redirect_dir=on", "redirect_dir=follow", "redirect_dir=follow,metacopy=on",
            "userxattr", "userxattr,redirect_dir=on", "userxattr,metacopy=on",
        ):  # fmt: skip
            for number, target in enumerate(targets):
                for writable in False, True:

                    def follow(
                        space: str = space,
                        options: str = options,
                        target: str = target,
                        writable: bool = writable,
                    ) -> None:
                        in_namespaces(user)
                        os.mkdir("/mnt/upper/stolen")
                        os.setxattr(
                            "/mnt/upper/stolen", f"{space}.overlay.redirect", target.encode()
                        )
                        layers = f"lowerdir=/mnt/upper:{store}"
                        if writable:
                            layers = f"lowerdir={store},upperdir=/mnt/upper,workdir=/mnt/work"
                        data = f"{layers},{options}" if options else layers
                        mount("mine", "/mnt/merged", "overlay", 0, data)
                        os.stat("/mnt/merged/stolen/file")

                    how = "written" if writable else "read"
                    outcome[f"{space} {number} {options} {how}"] = attempt(follow)
    return outcome


def test_no_overlay_inside_is_redirected_to_another_path(vault: Vault, host: Host) -> None:
    secret = os.path.basename(vault.secret)
    vault.incus.run(vault.name, "mkdir", "-p", "/mnt")
    for user in (False, True):
        told = vault.do(redirects, STORE, secret, user)
        assert done(told) == set(), told
        # Some are mounted, and show an empty directory.
        assert "ENOENT" in {how for what, how in told.items() if what.startswith("user ")}
    # Root of the host is led there, from a directory on the store itself.
    followed = done(on_host(host, redirects, STORE, secret, False))
    assert "trusted 0 redirect_dir=follow,metacopy=on read" in followed
    assert "trusted 0 redirect_dir=on written" in followed
    assert {what[:9] for what in followed} == {"trusted 0", "trusted 4"}, followed


def reconfigurations(target: str) -> dict[str, str]:
    """Changes of the overlay that is mounted at `target`."""
    with open("/proc/self/mountinfo") as file:
        shown = [line for line in file if f" {target} " in line]
    layers = shown[-1].split()[-1].partition("lowerdir=")[2].partition(",")[0]
    fsconfig, fspick = 431, 433
    outcome = {}
    for key, value in {
        "ro": "", "rw": "", "lowerdir": f"{target}/..", "lowerdir+": f"{target}/..",
        "redirect_dir": "off", "metacopy": "off", "nfs_export": "on", "upperdir": "/tmp",
        "same": layers,
    }.items():  # fmt: skip

        def remount(key: str = key, value: str = value) -> None:
            data = f"lowerdir={value}" if key == "same" else f"{key}={value}" if value else key
            mount("none", target, None, 32, data)

        def reconfigure(key: str = key, value: str = value) -> None:
            fd = call(fspick, -100, target.encode(), 0)
            if value:
                call(fsconfig, fd, 1, key.encode(), value.encode(), 0)
            else:
                call(fsconfig, fd, 0, key.encode(), None, 0)
            call(fsconfig, fd, 7, None, None, 0)

        outcome[f"remount {key}"] = attempt(remount)
        outcome[f"reconfigure {key}"] = attempt(reconfigure)
    return outcome


def test_the_view_cannot_be_reconfigured(vault: Vault) -> None:
    vault.incus.sh(
        vault.name,
        "mkdir -p /own; mount -t overlay -o ro,lowerdir=/nix/store:/etc own /own",
    )
    mine = vault.do(reconfigurations, "/own")
    assert done(mine) >= {"remount ro", "reconfigure ro"}, mine
    before = vault.do(os_listdir, STORE)
    told = vault.do(reconfigurations, STORE)
    # What is no option at all is found out first.
    assert set(told.values()) <= {"EPERM", "EINVAL"}, told
    assert {
        told[f"{how} {what}"] for how in ("remount", "reconfigure") for what in ("ro", "rw")
    } == {"EPERM"}, told
    assert vault.do(os_listdir, STORE) == before


# --- Writing ----------------------------------------------------------------------------------


def test_the_view_cannot_be_written(vault: Vault, incus: Incus, host: Host) -> None:
    name, file = vault.name, f"{vault.shown}/file"
    own(incus, name)
    tricks = MOUNT_TRICKS | HOPELESS_TRICKS
    assert succeeded(incus, name, tricks, "/bound", "/bound/file") >= set(MOUNT_TRICKS)
    assert succeeded(incus, name, FILE_TRICKS, "/plain", "/plain/file") == set(FILE_TRICKS)
    incus.sh(name, "echo 2 >/plain/file")
    plain = as_container_root(incus, name, system_calls, "/plain", "/plain/file", {}, [])
    assert {call for call, how in plain.items() if how != "succeeded"} == NEVER, plain
    bound = as_container_root(incus, name, system_calls, "/bound", "/bound/file", {}, [])
    assert {call for call, how in bound.items() if how != "succeeded"} == HOPELESS_CALLS, bound
    with unchanged(host):
        for place in STORE, vault.shown:
            assert succeeded(incus, name, tricks | FILE_TRICKS, place, file) == set(), place
            told = as_container_root(incus, name, system_calls, place, file, {}, [])
            assert not {"succeeded", "254"} & set(told.values()), (place, told)


def links_and_renames(shown: str, secret: str) -> dict[str, str]:
    """Into the view, out of it and within: the name of each error."""
    outcome = {}
    os.makedirs("/root/mine", exist_ok=True)
    with open("/root/file", "w") as file:
        file.write("mine")

    def link_fd(source: str, target: str) -> None:
        fd = os.open(source, os.O_PATH)
        check(libc.linkat(fd, b"", -100, target.encode(), 0x1000))

    def exchange(source: str, target: str) -> None:
        flags = ctypes.c_uint(2)
        check(libc.renameat2(-100, source.encode(), -100, target.encode(), flags))

    calls: dict[str, Callable[[str, str], None]] = {
        "link": os.link,
        "link by descriptor": link_fd,
        "rename": os.rename,
        "exchange": exchange,
    }
    for what, trick in calls.items():
        for source, target in (
            (f"{shown}/file", "/root/stolen"),
            (f"{shown}/file", f"{shown}/second"),
            (f"{shown}/file", secret),
            (shown, "/root/mine"),
            (shown, secret),
            ("/root/file", f"{shown}/file"),
            ("/root/file", secret),
            ("/root/mine", secret),
        ):
            try:
                trick(source, target)
                how = "succeeded"
            except OSError as error:
                how = errno.errorcode[error.errno or 0]
            outcome[f"{what} {source} {target}"] = how
    return outcome


def test_no_link_or_rename_crosses_the_view(vault: Vault, host: Host) -> None:
    with unchanged(host):
        told = vault.do(links_and_renames, vault.shown, vault.secret)
    # What does not exist, and what is no file, is found out before on which file system it is.
    refusals = {"EXDEV", "EROFS", "EPERM", "ENOENT", "EEXIST"}
    assert set(told.values()) <= refusals, told
    assert told[f"link {vault.shown}/file /root/stolen"] == "EXDEV"
    assert told[f"rename /root/file {vault.shown}/file"] == "EXDEV"
    assert told[f"rename {vault.shown}/file {vault.shown}/second"] == "EROFS"
    vault.incus.sh(vault.name, "ln /root/file /root/second; mv /root/second /root/third")


# --- What the container leaves for its next start ---------------------------------------------

# In the profile, with $T a system that the instance was never given.
PLANTED = {
    "the generation leads elsewhere": "ln -sfn $T system-1-link",
    "the system leads elsewhere": "ln -sfn $T system",
    "another generation": "ln -s $T system-2-link; ln -sfn system-2-link system",
    "another with the seal of the first": """
        ln -s $T system-2-link; ln -sfn system-2-link system; cp -P system-1-seal system-2-seal
    """,
    "another with the seal's own text": """
        ln -s $T system-2-link; ln -sfn system-2-link system; ln -s system-1-seal system-2-seal
    """,
    "another with the digest of its name": """
        ln -s $T system-2-link; ln -sfn system-2-link system
        ln -s "$(printf %s $T | sha256sum | cut -c1-64)" system-2-seal
    """,
    "another with a seal made up": """
        ln -s $T system-2-link; ln -sfn system-2-link system
        ln -s "$(printf %064d 0)" system-2-seal
    """,
    "seals that are none": """
        for n in 2 3 4 5; do ln -s $T system-$n-link; done; ln -sfn system-5-link system
        ln -s "$(printf '\\377\\376')" system-2-seal; mkdir system-3-seal; : >system-4-seal
        ln -s "$(printf '%01000d' 0)" system-5-seal
    """,
    "pinned": """
        ln -s $T system-2-link; ln -sfn system-2-link system; ln -s 2 system-pinned
        cp -P system-1-seal system-2-seal
    """,
    "numbers that are one": """
        ln -s $T system-01-link; ln -s $T system-+1-link; cp -P system-1-seal system-01-seal
        ln -sfn system-01-link system
    """,
    "steps": "ln -sfn ${A%/*}/../store/${T##*/} system-1-link; ln -sfn system-1-link system",
    "no seal at all": "rm system-1-seal",
    "nothing": "rm -rf system*",
}


def boot(incus: Incus, name: str) -> None:
    incus("restart", "-f", name)
    incus.wait_inside(name)
    incus.wait_ready(name)


def test_no_planted_link_shows_or_starts_another_system(vault: Vault, incus: Incus) -> None:
    foreign, system, name = build(incus, "other"), vault.system, vault.name
    # The same as a newer generation is what a shared one boots.
    shared = incus.launch(name=incus.name("shared"), system=system)
    variables = f"T={foreign} A={system}; cd {PROFILES};"
    incus.sh(shared, f"{variables} {PLANTED['another generation']}")
    boot(incus, shared)
    assert inside(incus, shared, os_readlink, "/run/current-system") == foreign

    incus.sh(name, f"cp -a {PROFILES} /root/saved")
    wrong = {}
    for what, script in PLANTED.items():
        incus.sh(name, f"{variables} rm -rf ./*; cp -a /root/saved/. .; {script}")
        boot(incus, name)
        booted = vault.do(os_readlink, "/run/current-system")
        listed = set(vault.do(os_listdir, STORE))
        reached = vault.do(reach, [foreign, f"{foreign}/init"])
        if booted != system or vault.system != system or listed != vault.visible() or reached:
            wrong[what] = (booted, vault.system, listed - vault.visible(), reached)
    assert wrong == {}


def os_readlink(path: str) -> str:
    return os.readlink(path)


def test_a_generation_that_was_planted_cannot_be_chosen(vault: Vault, incus: Incus) -> None:
    foreign, name, first = build(incus, "other"), vault.name, vault.system
    script = f"T={foreign}; cd {PROFILES}; {PLANTED['another with the seal of the first']}"
    incus.sh(name, f"{script}\nln -sfn system-1-link system")
    incus("stop", "-f", name)
    incus.set(name, "user.inx.generation=2")
    assert start(incus, name) != 0
    text = refusal(incus, name)
    assert text.startswith(
        f"user.inx.generation is 2, but {name!r} has no such generation (it has 1)"
    )
    incus.set(name, "user.inx.generation=1")
    assert start(incus, name) == 0
    incus.wait_ready(name)
    assert (vault.system, vault.do(reach, [foreign])) == (first, {})


def test_an_init_of_the_containers_own_finds_no_other_system(vault: Vault, incus: Incus) -> None:
    """The bootstrap starts what the container's own links lead to, in the view of its system."""
    foreign, name = build(incus, "other"), vault.name
    script = f"""
        mkdir -p /mine/system-1-link; cd /mine/system-1-link
        printf '#!/dev/.inx/busybox sh\n/dev/.inx/busybox ls {vault.system}/init $T/init\n' >init
        echo 'exec "$T/init"' >>init
        sed -i 's,$T,{foreign},' init; chmod +x init; ln -sfn /mine/system-1-link {PROFILES}/system
    """
    incus.sh(name, script)
    incus("restart", "-f", name, check=False)
    incus.wait_state(name, "STOPPED")
    incus.eventually(lambda: "not found" in incus.console(name), lambda: incus.console(name))
    console = incus.console(name).split("inx: starting")[-1]
    assert f"\n{vault.system}/init" in console
    assert f"\n{foreign}/init" not in console


def test_a_generation_of_its_own_can_be_chosen_and_shows_itself_alone(incus: Incus) -> None:
    """Otherwise that planted ones do not start would say nothing of seals."""
    flake = incus.flake(greeting="one")
    vault = Vault(incus, flake=f"{flake}#web").launch()
    first = vault.system
    incus.flake(greeting="two")
    incus.set(vault.name, "user.inx.update=2")
    incus.restart_into(vault.name, generation=2)
    second = vault.system
    assert second != first
    assert vault.do(reach, [first]) == {}
    incus.sh(vault.name, f"ln -sfn system-1-link {PROFILES}/system")
    incus.restart_into(vault.name, generation=1)
    assert vault.system == first
    assert vault.do(reach, [second]) == {}
    assert set(vault.do(os_listdir, STORE)) == vault.visible()


def test_planted_roots_show_nothing_and_tell_nothing(vault: Vault, incus: Incus) -> None:
    """Whether a path is in the store at all is not to be seen by what becomes of the links."""
    gone = f"{STORE}/{'0' * 32}-{incus.prefix}-gone"
    auto = "/nix/var/nix/gcroots/auto"
    entries = {path: name_of(path) for path in ("/root/there", "/root/gone", vault.secret, gone)}
    entries |= {f"{vault.secret}/file": name_of(f"{vault.secret}/file")}
    script = f"""
        mkdir -p {auto}; cd {PROFILES}
        ln -s {vault.secret} system-7-link; ln -s {gone} system-8-link
        ln -s {vault.secret} mine-1-link; ln -s {gone} mine-2-link
        ln -s {vault.secret} ../gcroots/there; ln -s {gone} ../gcroots/gone
        ln -s {vault.secret} /root/there; ln -s {gone} /root/gone
    """
    script += "".join(f"ln -s {path} {auto}/{name}\n" for path, name in entries.items())
    incus.sh(vault.name, script)
    before = vault.do(tree, ["/nix/var/nix", "/root"])
    assert len(before) >= 8 + len(entries)
    for _ in range(2):
        boot(incus, vault.name)
        assert vault.do(reach, [vault.secret, f"{auto}/{entries[vault.secret]}/."]) == {}
        assert set(vault.do(os_listdir, STORE)) == vault.visible()
        after = vault.do(tree, ["/nix/var/nix", "/root"])
        lost = {path for path in before if path not in after}
        assert {path.replace("there", "gone").replace("-1-", "-2-") for path in lost} <= lost
        assert ("system-7-link" in str(lost)) == ("system-8-link" in str(lost))
        here, there = (f"{auto}/{entries[path]}" in after for path in ("/root/there", "/root/gone"))
        assert here == there
        here, there = (f"{auto}/{entries[path]}" in after for path in (vault.secret, gone))
        assert here == there


def tree(tops: list[str]) -> dict[str, str]:
    """Every link below, and its text."""
    return {
        path: os.readlink(path)
        for top in tops
        for base, directories, files in os.walk(top)
        for path in (f"{base}/{name}" for name in (*directories, *files))
        if os.path.islink(path)
    }


# --- Nix --------------------------------------------------------------------------------------

ASK = {
    "query": "nix-store --query --references $S",
    "hash": "nix-store --query --hash $S",
    "validity": "nix-store --check-validity $S",
    "dump": "nix-store --dump $S",
    "dump over the wire": "nix store dump-path $S",
    "export": "nix-store --export $S",
    "list": "nix store ls $S",
    "information": "nix path-info $S",
    "all": "nix path-info --all",
    "realise": "nix-store --realise $S",
    "copy": "nix copy --no-check-sigs --to file:///root/cache $S",
    "roots": "nix-store --gc --print-roots",
    "add": "nix-store --add /root/copy.nix",
    "evaluate": """nix-instantiate --eval -E "builtins.readDir (builtins.storePath $S)" """,
    "build": "nix-build --no-out-link /root/copy.nix",
}
# Fail in a shared container as well: Nix has no store of its own there.
ASK_WITHOUT_DAEMON = {
    f"{what} of {store}": f"nix {command} $S --store '{store}'"
    for store in ("local", "local?read-only=true", "local?root=/root/own", "dummy://", "/root/own")
    for what, command in (("information", "path-info"), ("dump", "store dump-path"))
}
COPY = """
    let
        inStore = path: builtins.appendContext path { ${path}.path = true; };
        path = inStore "@S@";
    in derivation {
        name = "@N@"; system = "@K@"; builder = "${inStore "@B@"}/bin/sh";
        args = [ "-c" "read -r l <${path}/file; echo \\"it says $l\\" >&2; echo $l >$out" ];
    }
"""


def prepare_nix(incus: Incus, name: str, secret: str, label: str) -> None:
    deps = json.loads(incus.host.run(["cat", "/etc/nixos/deps.json"]).stdout)
    values = {"S": secret, "N": label, "K": deps["system"], "B": deps["busybox"]}
    text = COPY
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    incus.sh(name, "cat >/root/copy.nix", input=text)


def answers(incus: Incus, name: str, commands: dict[str, str], secret: str) -> set[str]:
    """Which of the commands end well; told by a file, as much as there is to print."""
    lines = "\n".join(
        f"( timeout 30 {command.strip()} ) >/dev/null 2>&1 && echo {shlex.quote(what)} >&9"
        for what, command in commands.items()
    )
    settings = "substitute = false\nextra-experimental-features = read-only-local-store"
    variables = f"HOME=/root S={secret} NIX_CONFIG={shlex.quote(settings)}"
    script = f"export {variables}; exec 9>/root/answers\n{lines}\nexit 0"
    incus.run(name, "sh", "-uc", script)
    return set(inside(incus, name, read, "/root/answers").splitlines())


def test_nix_inside_answers_nothing(vault: Vault, incus: Incus) -> None:
    shared = incus.launch(name=incus.name("shared"), flake="/etc/nixos#web")
    for name in (shared, vault.name):
        prepare_nix(incus, name, vault.secret, f"{incus.prefix}-copied")
    asked = ASK | ASK_WITHOUT_DAEMON
    answered = answers(incus, shared, asked, vault.secret)
    assert answered == ASK.keys()
    assert answers(incus, vault.name, asked, vault.secret) == set()
    # Not even about what it sees; only what needs no store is done.
    assert answers(incus, vault.name, ASK, vault.shown) == {"dump"}
    state = vault.host.run(["systemctl", "is-active", f"inx-nix-daemon@{incus.uuid(vault.name)}"],
                           check=False).stdout  # fmt: skip
    assert state == "inactive\n"


# --- Why an isolated container has no daemon --------------------------------------------------


def test_a_daemon_together_with_isolation_is_refused_in_one_sentence(
    incus: Incus, host: Host
) -> None:
    vault = Vault(incus, daemon="true")
    assert start(incus, vault.name) != 0
    text = refusal(incus, vault.name)
    assert text == (
        "user.inx.daemon=true and user.inx.store=isolated exclude each other: a Nix daemon shows "
        "every path of the store; unset one"
    )
    incus.wait_state(vault.name, "STOPPED")
    incus("config", "unset", vault.name, "user.inx.daemon")
    vault.launch()


SOCKET = "/mnt/daemon/socket"


@pytest.fixture
def connected(vault: Vault, incus: Incus) -> Vault:
    """An isolated container with what the refused combination would give it: a Nix daemon."""
    other = incus.launch(name=incus.name("other"), flake="/etc/nixos#web")
    source = f"/run/inx/{incus.uuid(other)}/daemon-socket"
    disk = ["disk", f"source={source}", "path=/mnt/daemon"]
    incus("config", "device", "add", vault.name, "daemon", *disk)
    assert vault.do(reach, [vault.secret]) == {}
    return vault


def dump(path: str, store_path: str) -> str:
    """What a Nix daemon answers to NarFromPath (libstore/worker-protocol.hh), as Latin-1."""
    number = struct.Struct("<Q")
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(30)
        wire.connect(path)
        stream = wire.makefile("rb")

        def get() -> int:
            return int(number.unpack(stream.read(8))[0])

        def string() -> bytes:
            length = get()
            return stream.read(length + -length % 8)[:length]

        wire.sendall(number.pack(0x6E697863))
        assert get() == 0x6478696F
        get()
        wire.sendall(number.pack(0x123) + number.pack(0) + number.pack(0))
        assert (string(), get(), get())[2] == 0x616C7473
        text = store_path.encode()
        wire.sendall(number.pack(38) + number.pack(len(text)) + text + bytes(-len(text) % 8))
        wire.shutdown(socket.SHUT_WR)
        return stream.read().decode("latin-1")


def test_why_the_combination_is_refused_a_daemon_dumps_any_path(connected: Vault) -> None:
    told = connected.do(dump, SOCKET, connected.secret)
    assert f"bytes of {connected.incus.prefix}-secret" in told
    gone = f"{STORE}/{'0' * 32}-gone"
    assert "bytes of" not in connected.do(dump, SOCKET, gone)


def test_why_the_combination_is_refused_a_daemon_lists_all_names(connected: Vault) -> None:
    ask = f'NIX_REMOTE=unix://{SOCKET} nix path-info --all >/root/names; grep -qxF "$1" /root/names'
    incus, name = connected.incus, connected.name
    assert incus.run(name, "sh", "-uc", ask, "sh", connected.secret, check=False).returncode == 0
    gone = f"{STORE}/{'0' * 32}-gone"
    assert incus.run(name, "sh", "-uc", ask, "sh", gone, check=False).returncode == 1
    names = set(inside(incus, name, read, "/root/names").split())
    valid = {f"{STORE}/{each}" for each in connected.foreign()} & names
    assert connected.secret in valid and len(valid) >= 3


def test_why_the_combination_is_refused_a_build_copies_any_path(connected: Vault) -> None:
    """Were it not to dump what the container may not see: what is built is the container's own."""
    incus, name = connected.incus, connected.name
    prepare_nix(incus, name, connected.secret, f"{incus.prefix}-stolen")
    script = f"""
        export HOME=/root NIX_REMOTE=unix://{SOCKET}
        nix-instantiate --eval --read-write-mode -E '(import /root/copy.nix).outPath' >/root/out
        nix-build --no-out-link /root/copy.nix >/root/log 2>&1
        exit 0
    """
    incus.run(name, "sh", "-uc", script)
    log = inside(incus, name, read, "/root/log")
    assert f"it says bytes of {incus.prefix}-secret" in log
    output = json.loads(inside(incus, name, read, "/root/out"))
    assert output != connected.secret
    assert f"bytes of {incus.prefix}-secret" in connected.do(dump, SOCKET, output)
