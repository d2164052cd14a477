"""The container's root, and whoever may edit its configuration, against the host.

Each attack is made for real. What could fail for reasons of its own is first made where it works,
against what the container itself owns.
"""

import contextlib
import inspect
import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from subprocess import CompletedProcess
from typing import Any

import pytest
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.main

# What no container may change. Nix and Incus themselves write beside these, but not in them.
PRECIOUS = "/etc /root /srv /opt/inx /usr/local /nix/store /nix/var/nix/profiles /var/lib/inx-build"
POOL = "/var/lib/incus/storage-pools/default/containers"


def fingerprint(host: Host) -> dict[str, str]:
    """Each precious file's identity, rights, owner, size and times, each mount of the host, and
    each root of inx that keeps no valid path."""
    listed = host.sh(
        f"find {PRECIOUS} -printf '%p|%i %#m %U:%G %n %s %T@ %C@ %l\\n'; "
        "findmnt --noheadings --list --output TARGET,SOURCE,FSROOT,OPTIONS,PROPAGATION | "
        "grep -v ^/var/lib/incus/ | sed 's/ /|/'; "
        "cd /nix/var/nix/gcroots/inx; find . -type l -printf '%l\\n' | "
        "xargs -r nix-store --check-validity --print-invalid | sed 's/$/|is rooted, but not valid/'"
    )
    return dict(line.split("|", 1) for line in listed.stdout.splitlines())


def changes(host: Host, before: dict[str, str]) -> str:
    """What differs now, one line each."""
    after = fingerprint(host)
    differing = [
        f"{path}: {before.get(path)} -> {after.get(path)}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    inside = host.sh("findmnt --noheadings --list --output TARGET | grep /rootfs/ || :").stdout
    return "\n".join([*differing, *inside.splitlines()])


@contextlib.contextmanager
def unchanged(host: Host) -> Iterator[None]:
    """The block leaves no trace on the host."""
    before = fingerprint(host)
    yield
    assert changes(host, before) == ""


def store_file(incus: Incus, name: str) -> str:
    return f"{incus.said(name, 'readlink', '/run/current-system').strip()}/activate"


# --- What a shell can try ---------------------------------------------------------------------

# $T is a read-only mount, $F a file in it; each ends with status 0 only if something was written.
MOUNT_TRICKS = {
    "remount": "mount -o remount,bind,rw $T; write $T",
    "remount a second bind": "mount -o bind $T /a; mount -o remount,bind,rw /a; write /a",
    "remount a recursive bind": "mount -o rbind $T /a; mount -o remount,bind,rw /a; write /a",
    "bind read-write at once": "mount -o bind,rw $T /a; mount -o remount,bind,rw /a; write /a",
    "remount below a bind of all": "unshare -m --propagation private sh -euc "
    "'mount -o rbind / /a; mount -o remount,bind,rw /a$T; write /a$T'",
    "remount a bind of a file": "mount -o bind $F /f; mount -o remount,bind,rw /f; touch /f",
    "remount in a mount namespace": "unshare -m sh -euc 'mount -o remount,bind,rw $T; write $T'",
    "remount what was moved": "unshare -m --propagation private sh -euc "
    "'mount -o move $T /a; mount -o remount,bind,rw /a; write /a'",
    "remount in the namespace of init": "nsenter -t 1 -m sh -euc "
    "'mount -o remount,bind,rw $T; write $T'",
}
# The kernel refuses these even for a read-only mount of the container's own.
HOPELESS_TRICKS = {
    "remount the file system": "mount -o remount,rw $T; write $T",
    "remount in a user namespace": "unshare -Urm sh -euc 'mount -o remount,bind,rw $T; write $T'",
    "bind in a user namespace": "unshare -Urm sh -euc "
    "'mount -o bind $T /a; mount -o remount,bind,rw /a; write /a'",
    "through /proc": "write /proc/1/root$T",
}
FILE_TRICKS = {
    "create": "write $T",
    "append": "echo pwned >>$F",
    "truncate": "truncate -s 0 $F",
    "times": "touch -d 2001-01-01 $F",
    "mode": "chmod 0777 $F",
    "owner": "chown 1000:1000 $F",
    "rename": "mv $F $F.moved; mv $F.moved $F",
    "replace": "echo pwned >/f; cp -f /f $F",
    "link beside it": "ln $F $T/pwned; rm $T/pwned",
    "make a directory": "mkdir $T/pwned; rmdir $T/pwned",
    "make a link": "ln -s / $T/pwned; rm $T/pwned",
    "make a fifo": "mknod $T/pwned p; rm $T/pwned",
    "remove": "rm -f $F; test ! -e $F",
}


def succeeded(incus: Incus, name: str, tricks: dict[str, str], target: str, file: str) -> set[str]:
    """Which of the tricks the container's root brings off."""
    define = 'write() { echo pwned >"$1/pwned"; rm "$1/pwned"; }\n'
    # A shell of its own each, with and without a namespace, all with `write`.
    text = "\n".join(
        f"sh -euc {shlex.quote(trick.replace(QUOTE, QUOTE + '. /write; '))} && echo {label!r} >&3\n"
        "umount -lr /a; umount -l /f; [ $T = /plain ] || mount -o remount,bind,ro $T"
        for label, trick in ((label, f". /write; {trick}") for label, trick in tricks.items())
    )
    script = (
        f"printf %s {shlex.quote(define)} >/write; mkdir -p /a; touch /f\n"
        f"exec 3>&1 >/dev/null 2>&1; export T F\n{text}"
    )
    run = ["exec", name, "--env", f"T={target}", "--env", f"F={file}", "--", "sh", "-uc", script]
    return set(incus(*run, check=False).stdout.splitlines())


QUOTE = "sh -euc '"


def own(incus: Incus, name: str) -> None:
    """What the container may do as it likes with: /plain, and /bound, a read-only mount of it."""
    incus.sh(
        name,
        """
        mkdir -p /plain /bound; mount -o bind /plain /plain; echo 1 >/plain/file
        mount -o bind /plain /bound; mount -o remount,bind,ro /bound
        """,
    )


@pytest.mark.parametrize("privileged", ["false", "true"])
def test_no_mount_can_be_made_writable(incus: Incus, host: Host, privileged: str) -> None:
    options = ["-c", f"security.privileged={privileged}"]
    name = incus.launch(*options, flake="/etc/nixos#web", daemon="true")
    own(incus, name)
    tricks = MOUNT_TRICKS | HOPELESS_TRICKS
    assert succeeded(incus, name, tricks, "/bound", "/bound/file") >= set(MOUNT_TRICKS)
    assert succeeded(incus, name, FILE_TRICKS, "/plain", "/plain/file") == set(FILE_TRICKS)
    targets = {
        "/nix/store": store_file(incus, name),
        "/dev/.inx": "/dev/.inx/init",
        "/nix/var/nix/daemon-socket": "/nix/var/nix/daemon-socket/socket",
    }
    run = host.sh(f"ls -lR --full-time /run/inx/{incus.uuid(name)}").stdout
    with unchanged(host):
        for target, file in targets.items():
            assert succeeded(incus, name, tricks | FILE_TRICKS, target, file) == set(), target
        assert host.sh(f"ls -lR --full-time /run/inx/{incus.uuid(name)}").stdout == run


# --- What only system calls can try -----------------------------------------------------------


def become_container_root(pid: int) -> None:
    """All of the container's root, in a child of the container's PID namespace: its namespaces and
    capabilities, without the system call filter that Incus adds."""
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    names = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
    differ = [
        n for n in names if os.readlink(f"/proc/{pid}/ns/{n}") != os.readlink(f"/proc/self/ns/{n}")
    ]
    for fd in [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in differ]:
        if libc.setns(fd, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(fd)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def attack_command(incus: Incus, name: str, function: Callable[..., Any], *args: Any) -> str:
    """A Python program for the host that runs `function` as the container's root."""
    pid = incus.json("query", f"/1.0/instances/{name}/state")["pid"]
    parts = [inspect.getsource(part) for part in (become_container_root, function)]
    call = f"import json\nbecome_container_root({pid})\n"
    parts.insert(0, "from __future__ import annotations")
    return "\n".join(
        [*parts, f"{call}print(json.dumps({function.__name__}(*{args!r})), flush=True)"]
    )


def as_container_root(
    incus: Incus, name: str, function: Callable[..., Any], *args: Any
) -> dict[str, str]:
    program = attack_command(incus, name, function, *args)
    said = incus.host.run(["python3", "-I", "-"], input=program).stdout
    return dict(json.loads(said))


def handles(paths: list[str]) -> dict[str, tuple[int, str]]:
    """File handles of the host's own files, for whoever could open them (open_by_handle_at(2))."""
    import ctypes
    import os
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    found = {}
    for path in paths:
        handle = ctypes.create_string_buffer((128).to_bytes(4, "little"), 136)
        where = ctypes.byref(ctypes.c_int())
        if libc.name_to_handle_at(-100, os.fsencode(path), handle, where, 0) == 0:
            length, kind = struct.unpack_from("=Ii", handle.raw)
            found[path] = (kind, handle.raw[8 : 8 + length].hex())
    return found


def system_calls(
    target: str, file: str, known: dict[str, tuple[int, str]], bases: list[str]
) -> dict[str, str]:
    """What becomes of each attempt: the name of the error, or "succeeded"."""
    import ctypes
    import errno
    import fcntl
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    open_tree, move_mount, fsconfig, fspick, mount_setattr = 428, 429, 431, 433, 442
    here, empty, recursive, clone = -100, 0x1000, 0x8000, 1
    outcome: dict[str, str] = {}

    def call(number: int, *args: int | bytes | None) -> int:
        kinds = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
        result = int(libc.syscall(ctypes.c_long(number), *kinds))
        if result < 0:
            raise OSError(ctypes.get_errno(), "")
        return result

    def clear(fd: int, flags: int = empty, undo: bool = False) -> None:
        attr = (ctypes.c_uint64 * 4)(undo, not undo, 0, 0)  # MOUNT_ATTR_RDONLY is 1
        call(mount_setattr, fd, b"", flags, ctypes.addressof(attr), ctypes.sizeof(attr))

    def write(dir_fd: int) -> None:
        os.close(os.open("pwned", os.O_WRONLY | os.O_CREAT, dir_fd=dir_fd))
        os.unlink("pwned", dir_fd=dir_fd)

    def tree(path: str = target, flags: int = 0) -> int:
        return call(open_tree, here, os.fsencode(path), clone | flags)

    def attempt(name: str) -> Callable[[Callable[[], None]], None]:
        def decorate(function: Callable[[], None]) -> None:
            child = os.fork()
            if child == 0:
                try:
                    function()
                    os._exit(0)
                except OSError as error:
                    os._exit(error.errno or 255)
                except BaseException:
                    os._exit(254)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            outcome[name] = errno.errorcode.get(status, str(status)) if status else "succeeded"

        return decorate

    @attempt("mount_setattr")
    def _() -> None:
        fd = os.open(target, os.O_PATH)
        clear(fd)
        write(fd)
        if target != "/plain":
            clear(fd, undo=True)

    @attempt("mount_setattr on a copy")
    def _() -> None:
        fd = tree()
        clear(fd)
        write(fd)

    @attempt("mount_setattr on a copy of all")
    def _() -> None:
        fd = tree("/", recursive)
        clear(fd, empty | recursive)
        write(os.open(target.lstrip("/"), os.O_PATH, dir_fd=fd))

    @attempt("mount_setattr on a copy of a file")
    def _() -> None:
        fd = tree(file)
        clear(fd)
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND))

    @attempt("mount_setattr on an attached copy")
    def _() -> None:
        os.makedirs("/a", exist_ok=True)
        call(move_mount, tree(), b"", here, b"/a", 0x04)
        fd = os.open("/a", os.O_PATH)
        try:
            clear(fd)
            write(fd)
        finally:
            libc.umount2(b"/a", 2)

    @attempt("mount_setattr in a user namespace")
    def _() -> None:
        if libc.unshare(0x10000000 | 0x00020000):
            raise OSError(ctypes.get_errno(), "")
        fd = os.open(target, os.O_PATH)
        clear(fd)
        write(fd)

    @attempt("write in a copy")
    def _() -> None:
        write(tree())

    @attempt("reconfigure the file system")
    def _() -> None:
        fd = call(fspick, here, os.fsencode(target), 0)
        call(fsconfig, fd, 0, b"rw", None, 0)
        call(fsconfig, fd, 7, None, None, 0)

    @attempt("setxattr")
    def _() -> None:
        os.setxattr(file, "user.pwned", b"1")
        os.removexattr(file, "user.pwned")

    @attempt("open for writing")
    def _() -> None:
        os.close(os.open(file, os.O_RDWR))

    @attempt("reopen for writing")
    def _() -> None:
        fd = os.open(file, os.O_PATH)
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))

    @attempt("unnamed file")
    def _() -> None:
        os.close(os.open(target, os.O_TMPFILE | os.O_RDWR))

    @attempt("inode flags")
    def _() -> None:
        fd = os.open(file, os.O_RDONLY)
        flags = fcntl.ioctl(fd, 0x80086601, bytes(8))  # FS_IOC_GETFLAGS
        fcntl.ioctl(fd, 0x40086602, bytes([flags[0] ^ 0x80]) + flags[1:])  # SETFLAGS, noatime
        fcntl.ioctl(fd, 0x40086602, flags)

    @attempt("times")
    def _() -> None:
        os.utime(file, (1, 1))

    @attempt("link out of it")
    def _() -> None:
        os.link(file, "/plain/stolen")
        os.unlink("/plain/stolen")

    for base in bases:
        for path, (kind, value) in known.items():

            @attempt(f"handle of {path} at {base}")
            def _(base: str = base, kind: int = kind, value: str = value) -> None:
                raw = bytes.fromhex(value)
                handle = len(raw).to_bytes(4, "little") + kind.to_bytes(4, "little") + raw
                fd = libc.open_by_handle_at(os.open(base, os.O_RDONLY), handle, os.O_RDONLY)
                if fd < 0:
                    raise OSError(ctypes.get_errno(), "")

    return outcome


# Refused even for what is the container's own: these reach beyond it.
NEVER = {"reconfigure the file system", "mount_setattr on a copy of all"}
# Refused for a read-only mount of the container's own, too.
HOPELESS_CALLS = NEVER | {
    "mount_setattr in a user namespace",
    "write in a copy",
    "setxattr",
    "open for writing",
    "reopen for writing",
    "unnamed file",
    "inode flags",
    "times",
    "link out of it",
}


def test_no_system_call_opens_the_host(incus: Incus, host: Host) -> None:
    """As root of the container without the filter that Incus lays over its system calls."""
    name = incus.launch(flake="/etc/nixos#web")
    own(incus, name)
    uuid = incus.uuid(name)
    secrets = ["/nix/var/nix/db/db.sqlite", "/nix/var/nix/gcroots", "/run/inx/sidecar.sock"]
    secrets += [f"/run/inx/{uuid}", f"{POOL}/{name}/backup.yaml"]
    program = f"{inspect.getsource(handles)}\nimport json\nprint(json.dumps(handles({secrets!r})))"
    known = json.loads(host.run(["python3", "-I", "-"], input=program).stdout)
    assert set(secrets) == set(known)

    plain = as_container_root(incus, name, system_calls, "/plain", "/plain/file", {}, [])
    refused = {call for call, outcome in plain.items() if outcome != "succeeded"}
    assert refused == NEVER, plain
    bound = as_container_root(incus, name, system_calls, "/bound", "/bound/file", {}, [])
    refused = {call for call, outcome in bound.items() if outcome != "succeeded"}
    assert refused == HOPELESS_CALLS, bound

    socket = "/nix/var/nix/daemon-socket"
    bases = ["/", "/nix/store", "/nix/var/nix/profiles", "/dev/.inx", socket]
    with unchanged(host):
        for target, file, handed in (
            ("/nix/store", store_file(incus, name), known),
            ("/dev/.inx", "/dev/.inx/init", {}),
            (socket, f"{socket}/socket", {}),
        ):
            told = as_container_root(incus, name, system_calls, target, file, handed, bases)
            assert "succeeded" not in told.values(), (target, told)
            assert "254" not in told.values(), (target, told)


def test_the_privileged_roots_system_calls_are_refused_too(incus: Incus, host: Host) -> None:
    """Locked mounts stay so even for uid 0 of the host's own user namespace."""
    options = ["-c", "security.privileged=true"]
    name = incus.launch(*options, flake="/etc/nixos#web", daemon="true")
    own(incus, name)
    with unchanged(host):
        for target, file in (
            ("/nix/store", store_file(incus, name)),
            ("/dev/.inx", "/dev/.inx/init"),
        ):
            told = as_container_root(incus, name, system_calls, target, file, {}, [])
            # Changing nothing: a file system that is writable on the host is asked to stay so.
            told.pop("reconfigure the file system")
            assert "succeeded" not in told.values(), (target, told)


# --- What lies below and beside ---------------------------------------------------------------


def test_below_each_mount_lies_only_the_containers_own(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    host.run(["touch", "/root/canary"])
    mine = incus.said(name, "sh", "-euc", "ls -a /nix/var/nix/profiles").split()
    # Only the shell's own words: the programs of the system vanish with the store.
    peel = """
        box=/root/busybox; cp /dev/.inx/busybox $box
        for m in daemon-socket profiles gcroots; do
            while $box umount -l /nix/var/nix/$m; do :; done
        done
        while $box umount -l /nix/var/nix; do :; done
        while $box umount -l /nix/store; do :; done
        while $box umount -l /dev/.inx; do :; done
        exec 2>&1
        for d in /nix /nix/store /nix/var /nix/var/nix /nix/var/nix/daemon-socket \
                /nix/var/nix/profiles /nix/var/nix/gcroots /dev/.inx; do
            echo $d: $($box ls $d)
        done
    """
    with unchanged(host):
        for wrap in (["unshare", "-m", "--propagation", "private", "sh", "-uc"], ["sh", "-uc"]):
            seen = incus.run(name, *wrap, peel).stdout.splitlines()
            assert seen == [
                "/nix: store var",
                "/nix/store:",
                "/nix/var: nix",
                "/nix/var/nix: daemon-socket gcroots profiles",
                "/nix/var/nix/daemon-socket:",
                f"/nix/var/nix/profiles: {' '.join(mine[2:])}",
                "/nix/var/nix/gcroots:",
                "/dev/.inx:",
            ]
    incus("restart", "-f", name)
    incus.wait_inside(name)


def test_no_process_that_is_visible_inside_leads_out(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    host.run(["touch", "/root/canary"])
    script = """
        for process in /proc/[0-9]*; do
            for way in $process/root $process/cwd $process/fd/* $process/task/*/root; do
                for up in . .. ../../../../.. ; do
                    for place in root/canary ../root/canary run/inx nix/var/nix/db; do
                        [ ! -e "$way/$up/$place" ] || echo "$way/$up/$place"
                    done
                done
                echo pwned 2>/dev/null >"$way/nix/store/pwned" && echo "$way written"
            done
            readlink $process/exe $process/cwd $process/fd/* | grep -E '/opt/inx|/run/inx' &&
                echo "$process is the host's"
        done
        for process in /proc/[0-9]*; do
            cmp -s $process/uid_map /proc/self/uid_map || [ ! -e $process ] || echo "$process"
        done
    """
    with unchanged(host):
        assert incus.sh(name, script, check=False).stdout == ""
        # A bind over the socket is the container's own affair.
        other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
        socket = "/nix/var/nix/daemon-socket"
        incus.sh(name, f"mkdir /mine; mount -o bind /mine {socket}; touch {socket}/socket")
        assert incus.run(name, "nix", "store", "info", check=False).returncode != 0
        assert incus.run(other, "nix", "store", "info").returncode == 0


# --- What a container may leave in its file system --------------------------------------------

# Shell text that runs in the root file system of a stopped instance, and the path that the refusal
# names; $T is a valid system. Nothing may be followed, and nothing left out of sight.
IN_THE_WAY = {
    "nix is a link": ("mv nix old; ln -s /tmp/x nix", "/nix"),
    "nix is a file": ("mv nix old; touch nix", "/nix"),
    "store is a link to itself": ("rm -r nix/store; ln -s store nix/store", "/nix/store"),
    "store leads to where it is": ("rm -r nix/store; ln -s . nix/store", "/nix/store"),
    "store is a fifo": ("rm -r nix/store; mkfifo nix/store", "/nix/store"),
    "var leads to the host": ("rm -r nix/var; ln -s /var/lib/inx nix/var", "/nix/var"),
    "state leads upwards": (
        "rm -r nix/var/nix; ln -s ../../../../../../../nix/var/nix nix/var/nix",
        "/nix/var/nix",
    ),
    "profiles leads to /etc": (
        "cd nix/var/nix; rm -r profiles; ln -s /etc profiles",
        "/nix/var/nix/profiles",
    ),
    "profiles is a file": (
        "cd nix/var/nix; rm -r profiles; touch profiles",
        "/nix/var/nix/profiles",
    ),
    "gcroots leads to the host's": (
        "cd nix/var/nix; rm -r gcroots; ln -s ../../../../../../../nix/var/nix/gcroots gcroots",
        "/nix/var/nix/gcroots",
    ),
    "the socket's directory leads to /run/inx": (
        "cd nix/var/nix; rm -r daemon-socket; ln -s /run/inx daemon-socket",
        "/nix/var/nix/daemon-socket",
    ),
    "the current system is a directory": (
        "cd nix/var/nix/profiles; rm system; mkdir -p system/full",
        "/nix/var/nix/profiles/system",
    ),
    "the note of the source is a directory": (
        "cd nix/var/nix/profiles; rm system-source; mkdir system-source",
        "/nix/var/nix/profiles/system-source",
    ),
    "the pin is a directory": (
        "cd nix/var/nix/profiles; mkdir system-pinned",
        "/nix/var/nix/profiles/system-pinned",
    ),
    "a crowd": (
        "cd nix/var/nix/profiles; seq 25000 | xargs touch",
        "/nix/var/nix/profiles of",
    ),
}
HARMLESS = {
    "the current system leads to the host": "ln -sfn ../../../../../../etc/passwd system",
    "a generation leads to the host": "ln -sfn /etc/shadow system-1-link; ln -sfn /root system",
    "a generation is a directory": "rm system-1-link; mkdir -p system-1-link/x",
    "a generation is a fifo": "rm system-1-link; mkfifo system-1-link",
    "a generation is a device": "rm system-1-link; mknod system-1-link c 1 3",
    "names": """
        touch -- -rf --option $'system-\\n-link' $'\\xff\\xfe' system--1-link system-0-link '$(id)'
        for n in system-01-link system-1-linkx system-٣-link system-1234567890-link $'\\e[31m' ' '
        do ln -sfn "$T" "$n"; done
        touch "$(printf 'x%.0s' {1..255})" "system-$(printf '9%.0s' {1..240})-link"
    """,
    "nix's lock": "ln -s /srv/locked system.lock; ln -s /srv/locked .system.lock",
    "a database": "ln -s /nix/var/nix/db ../db; ln -s /srv/locked ../gc.lock",
    "a long target": 'ln -sfn "$(printf "a/%.0s" {1..2000})" system-3-link',
    "/dev/.inx": "mkdir -p ../../../../dev/.inx; echo pwned >../../../../dev/.inx/init",
    "/dev/.inx leads to the host": "ln -sfn /run/inx ../../../../dev/.inx",
    "the highest number": "rm system; ln -s /gone system-999999999-link",
    "paths that are not valid": """
        for n in $(seq 100 140); do
            ln -s /nix/store/00000000000000000000000000000$n-gone system-$n-link
        done
    """,
}


def start(incus: Incus, name: str) -> int:
    """The exit status of a start that came as far as the hooks: while the sidecar writes a status
    and while Incus still puts the last try away, Incus itself refuses one."""
    done: list[CompletedProcess[str]] = []

    def tried() -> bool:
        done.append(incus.start(name, check=False))
        return done[-1].returncode == 0 or "forkstart" in done[-1].stderr

    incus.eventually(tried, lambda: done[-1].stderr)
    return done[-1].returncode


class Victim:
    """An instance whose file system is spoilt over and over; the host's hand is quicker than the
    container's, and leaves the same on the disk."""

    def __init__(self, incus: Incus) -> None:
        self.incus, self.host = incus, incus.host
        link = f"/srv/{incus.prefix}-system"
        flake = incus.flake()
        self.host.sh(
            'nix --extra-experimental-features "nix-command flakes" build -o "$L" '
            f'"{flake}#nixosConfigurations.web.config.system.build.toplevel"',
            env={"L": link},
        )
        self.system = self.host.run(["readlink", link]).stdout.strip()
        self.name = incus.launch(system=self.system)
        incus("stop", "-f", self.name)
        self.rootfs = f"{POOL}/{self.name}/rootfs"
        self.count = 0
        self.host.sh(f"cp -a {self.rootfs} /var/tmp/{self.name}; touch /srv/canary")
        self.before = fingerprint(self.host)

    def start(self, script: str, below: str = "") -> int:
        """Spoil what is as after a first start, then ask for a new generation; how start ends."""
        self.host.sh(
            f"cd {self.rootfs}; find . -mindepth 1 -delete; cp -a /var/tmp/{self.name}/. .; "
            f"cd ./{below}; {script}",
            env={"T": self.system},
        )
        self.count += 1
        self.incus.set(self.name, f"user.inx.update={self.count}")
        return start(self.incus, self.name)

    def end(self) -> str:
        """Stop it; what is wrong on the host then."""
        self.incus("stop", "-f", self.name, check=False)
        return changes(self.host, self.before)


def refusal(incus: Incus, name: str) -> str:
    """What inx said of a start that failed, in the log and the status; written in full, so that
    the status crosses no later request."""
    said: list[str] = []

    def logged() -> bool:
        # While LXC still takes the container down, Incus may answer "Invalid PID" instead.
        said[:] = [line for line in incus.log(name).split("\n") if " inx - " in line]
        return said != []

    incus.eventually(logged, lambda: f"the log of {name} is {incus.log(name)!r}")
    assert len(said) == 1 and said[0].isprintable() and len(said[0]) < 1200, said
    text = said[0].partition(" inx - ")[2].strip()
    incus.eventually(
        lambda: incus.status(name).startswith(f"failed: {text}"[:300].strip()),
        lambda: f"{text!r} is not the status, but {incus.status(name)!r}",
    )
    return text


def test_what_stands_in_the_way_is_refused_by_name(incus: Incus, host: Host) -> None:
    victim = Victim(incus)
    wrong: dict[str, str] = {}
    for what, (script, beginning) in IN_THE_WAY.items():
        started = victim.start(script) == 0
        begin = time.monotonic()
        text = "" if started else refusal(incus, victim.name)
        took = time.monotonic() - begin
        harm = victim.end()
        told = text.startswith(f"{beginning} ") and repr(victim.name) in text and took < 5
        if started or not told or harm:
            wrong[what] = f"started: {started}, said after {took:.1f} s: {text}, harm: {harm}"
    # As it says: what is removed is no longer in the way.
    assert victim.start(":") == 0
    incus.wait_inside(victim.name)
    assert wrong == {}, "\n".join(f"{what}: {how}" for what, how in wrong.items())


def test_what_lies_about_in_the_profile_does_no_harm(incus: Incus, host: Host) -> None:
    victim = Victim(incus)
    wrong: dict[str, str] = {}
    for what, script in HARMLESS.items():
        if victim.start(script, "nix/var/nix/profiles"):
            wrong[what] = f"did not start: {refusal(incus, victim.name)} {victim.end()}"
            continue
        incus.wait_ready(victim.name)
        profile = incus.said(victim.name, "readlink", "-f", "/nix/var/nix/profiles/system")
        system = incus.get(victim.name, "user.inx.status.system")
        harm = victim.end()
        if not profile.strip() == system == victim.system or harm:
            wrong[what] = f"profile: {profile.strip()}, status: {system}, harm: {harm}"
    assert wrong == {}, "\n".join(f"{what}: {how}" for what, how in wrong.items())


def test_a_link_planted_from_inside_is_refused_at_the_next_start(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    # A bind of / shows the root file system without what is mounted in it; a mount point can be
    # renamed where nothing is mounted on it.
    incus.sh(
        name,
        """
        mkdir /r
        unshare -m --propagation private sh -euc '
            for m in daemon-socket profiles gcroots .; do umount -l /nix/var/nix/$m; done
            mount -o bind / /r; cd /r/nix/var/nix
            mv profiles old; ln -s /etc profiles; ln -s /etc/shadow old/system-2-link
        '
        """,
    )
    with unchanged(host):
        incus("stop", "-f", name)
        assert incus.start(name, check=False).returncode != 0
        assert refusal(incus, name).startswith(f"/nix/var/nix/profiles of {name!r} cannot be used")
        state = f"{POOL}/{name}/rootfs/nix/var/nix"
        host.sh(f"cd {state}; rm profiles; mv old profiles")
        assert start(incus, name) == 0
        incus.wait_ready(name)


# --- What the configuration may say -----------------------------------------------------------


def test_the_instances_environment_does_not_reach_the_host(incus: Incus, host: Host) -> None:
    """Incus hands environment.* to the hooks that LXC runs as root of the host."""
    trap = f"/tmp/{incus.prefix}-trap"
    host.sh(
        """
        mkdir -p "$D/bin"; cd "$D"
        echo 'open("'$D'/hit-python", "w")' >sitecustomize.py; cp sitecustomize.py usercustomize.py
        echo "touch $D/hit-shell" >profile
        for tool in env python python3 nix nix-build nix-store systemctl systemd-run busybox; do
            printf '#!/bin/sh\\ntouch %s/hit-%s\\nexit 1\\n' "$D" $tool >bin/$tool
        done
        chmod +x bin/*
        """,
        env={"D": trap},
    )
    other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    environment = {
        "PYTHONPATH": trap,
        "PYTHONHOME": trap,
        "PYTHONSTARTUP": f"{trap}/sitecustomize.py",
        "PYTHONUSERBASE": trap,
        "PATH": f"{trap}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "BASH_ENV": f"{trap}/profile",
        "ENV": f"{trap}/profile",
        "NIX_CONFIG": f"post-build-hook = {trap}/bin/nix",
        "NIX_REMOTE": f"unix://{trap}/socket",
        "NIX_PATH": trap,
        "LD_DEBUG": "libs",
        "LD_DEBUG_OUTPUT": f"{trap}/loader",
        "LXC_NAME": other,
        "LXC_PID": "1",
        "LXC_TARGET": "reboot",
        "LXC_ROOTFS_PATH": f"{POOL}/{other}/rootfs",
        "LXC_CONFIG_FILE": f"{trap}/profile",
    }
    options = [word for k, v in environment.items() for word in ("-c", f"environment.{k}={v}")]
    flake = incus.flake(greeting="built with a hostile environment")
    name = incus.init(*options, flake=f"{flake}#web")
    incus.start(name)
    incus.wait_status(name, "ready$")
    system = incus.get(name, "user.inx.status.system")
    assert incus.said(name, f"{system}/sw/bin/cat", "/etc/greeting").startswith("built with")
    incus("restart", "-f", name)
    incus.wait_status(name, "ready$")
    incus("stop", "-f", name)
    assert host.sh(f"cd {trap}; ls -d hit-* || :").stdout == ""
    # The loader of LXC's own shell heeds LD_*, as for Incus' own hooks; ours starts without.
    assert "/opt/inx" not in host.sh(f"cat {trap}/loader*").stdout
    assert host.run(["test", "-e", f"/run/inx/{incus.uuid(name)}"], check=False).returncode == 1
    assert incus.run(other, "nix", "store", "info").returncode == 0


EVIL = [
    "$(touch /srv/pwned)",
    "; touch /srv/pwned #",
    "--option",
    "-I/srv",
    "`touch${IFS}/srv/pwned`",
    "web\nuser.inx.daemon: true",
    "\x1b]0;pwned\x07\x1b[31mred",
    '"; touch /srv/pwned; "',
    "/nix/store/../../etc/passwd",
    "é" * 3000,
]
KEYS = ["flake", "file", "system", "attr", "store", "daemon", "generation", "keep", "unheard-of"]


def test_hostile_values_are_refused_in_one_clean_line(incus: Incus, host: Host) -> None:
    incus.host.run(["touch", "/srv/canary"])
    name = incus.init(flake="/etc/nixos#web")
    wrong: dict[str, str] = {}
    with unchanged(host):
        # Each key meets two of the values, each value some key.
        for number, key in enumerate(KEYS):
            for value in (EVIL[number % len(EVIL)], EVIL[(3 * number + 1) % len(EVIL)]):
                config = {f"user.inx.{other}": "" for other in KEYS}
                if key == "attr":
                    config["user.inx.file"] = "/etc/nixos/default.nix"
                config[f"user.inx.{key}"] = value
                incus.set(name, *(f"{k}={v}" for k, v in config.items()))
                if start(incus, name) == 0:
                    wrong[f"{key}={value!r}"] = "started"
                    incus("stop", "-f", name)
                elif f"user.inx.{key}" not in (text := refusal(incus, name)):
                    wrong[f"{key}={value!r}"] = text
    assert wrong == {}


def test_hostile_text_where_any_is_allowed_changes_nothing(incus: Incus, host: Host) -> None:
    """user.inx.update is free text; the status keys are overwritten."""
    host.run(["touch", "/srv/canary"])
    name = incus.init(flake="/etc/nixos#web", update="\n".join(EVIL), status=EVIL[0])
    with unchanged(host):
        incus.start(name)
        incus.wait_status(name, "ready$")
        incus.wait_inside(name)


def test_a_reference_reaches_nix_as_it_is_written(incus: Incus) -> None:
    """systemd-run reads $ and % in a command in ways of its own."""
    name = incus.init(flake="nosuch:/$$LANG/%n")
    incus.start(name, check=False)
    status = incus.wait_status(name, "failed: ")
    reason = status.partition("#")[2]
    assert "nosuch:/$$LANG/%n" in reason, status


# --- Who may speak to whom --------------------------------------------------------------------


def as_nobody(host: Host, path: str, send: str) -> str:
    """What a user of the host without any rights hears from a socket, or why not."""
    program = """
import socket, sys
try:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(sys.argv[1])
        channel.sendall(sys.argv[2].encode().replace(b"|", b"\\0"))
        channel.shutdown(socket.SHUT_WR)
        print("heard", channel.recv(100))
except ConnectionError:
    print("heard b''")
except OSError as error:
    print(error.strerror)
"""
    drop = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    return host.run([*drop, "python3", "-I", "-c", program, path, send]).stdout.strip()


def test_only_root_speaks_to_the_sidecar(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    socket = "/run/inx/sidecar.sock"
    assert host.run(["stat", "-c", "%a %U", socket]).stdout.strip() == "600 root"
    request = f"stop|LXC_NAME={name}|LXC_ROOTFS_PATH={POOL}/{name}/rootfs|LXC_TARGET=stop"
    assert as_nobody(host, socket, request) == "Permission denied"
    host.run(["chmod", "666", socket])
    try:
        assert as_nobody(host, socket, request) == "heard b''"
    finally:
        host.run(["chmod", "600", socket])
    assert incus.run(name, "nix", "store", "info").returncode == 0
    for path in ("/var/log/inx", f"/var/lib/inx/{incus.uuid(name)}/auto/x"):
        done = host.run(["setpriv", "--reuid=nobody", "--clear-groups", "ls", path], check=False)
        assert "Permission denied" in done.stderr or path.endswith("x")


def test_an_instances_daemon_serves_no_user_of_the_host(incus: Incus, host: Host) -> None:
    """Who may use Nix on the host is the host's affair: Debian lets only the group nix-users."""
    name = incus.launch(flake="/etc/nixos#web")
    assert as_nobody(host, "/nix/var/nix/daemon-socket/socket", "") == "Permission denied"
    socket = f"/run/inx/{incus.uuid(name)}/daemon-socket/socket"
    assert as_nobody(host, socket, "") == "Permission denied"


@pytest.mark.parametrize("privileged", ["false", "true"])
def test_the_daemon_trusts_no_container(incus: Incus, host: Host, privileged: str) -> None:
    """Settings that only a trusted user may choose are ignored, unsigned paths refused."""
    options = ["-c", f"security.privileged={privileged}"]
    trap = f"/srv/{incus.prefix}-trap"
    host.sh(
        'mkdir -m 777 "$D"; printf "#!/bin/sh\\ntouch $D/hit" >"$D/hook"; chmod 755 "$D/hook"; '
        'echo secret >"$D/secret"',
        env={"D": trap},
    )
    name = incus.launch(*options, flake="/etc/nixos#web", daemon="true")
    told = incus.run(name, "nix", "store", "info")
    assert "Trusted: 0" in told.stderr + told.stdout
    expression = """derivation {
        name = "probe-%s"; system = "%s"; __noChroot = true; builder = builtins.storePath "%s";
        args = [ "sh" "-c" "if [ -e %s/secret ]; then echo out; else echo in; fi >$out" ]; }"""
    kind = incus.said(name, "cat", "/run/current-system/system")
    shell = incus.said(name, "readlink", "-f", "/bin/sh").strip()
    hostile = {
        "post-build-hook": f"{trap}/hook",
        "diff-hook": f"{trap}/hook",
        "run-diff-hook": "true",
        "build-hook": f"{trap}/hook",
        "builders": f"ssh-ng://x?remote-program={trap}/hook {kind}",
        "pre-build-hook": f"{trap}/hook",
        "sandbox": "relaxed",
        "sandbox-paths": trap,
        "extra-sandbox-paths": trap,
        "trusted-users": "*",
        "require-sigs": "false",
        "secret-key-files": "/etc/shadow",
    }
    settings = [word for key, value in hostile.items() for word in ("--option", key, value)]
    text = expression % (incus.prefix, kind, shell, trap)
    build = ["nix", "build", "--impure", "--expr", text, "-o", "/root/result", *settings]
    done = incus.run(name, *build, check=False)
    if done.returncode:
        # Without the sandbox, as it asks for, it is refused.
        assert "sandbox" in done.stderr, done
        done = incus.run(name, *build[:4], text.replace("__noChroot = true;", ""), *build[5:])
    assert "not a trusted user" in done.stderr
    assert incus.said(name, "cat", "/root/result") == "in\n"
    assert host.run(["ls", trap]).stdout.split() == ["hook", "secret"]

    # A path that this store does not know, with nobody's signature.
    output = incus.said(name, "readlink", "/root/result").strip()
    incus.sh(name, f"nix-store --export {output} >/root/export; rm /root/result")
    host.run(["nix-store", "--delete", output])
    done = incus.sh(name, "nix-store --import </root/export", check=False)
    assert done.returncode != 0 and "signature" in done.stderr, done
    done = incus.sh(
        name, "nix-store --import --option require-sigs false </root/export", check=False
    )
    assert done.returncode != 0 and "signature" in done.stderr, done
    assert host.run(["test", "-e", output], check=False).returncode == 1


def test_a_privileged_container_has_no_daemon_unless_asked_for(incus: Incus, host: Host) -> None:
    name = incus.launch("-c", "security.privileged=true", flake="/etc/nixos#web")
    uuid = incus.uuid(name)
    assert host.sh(f"ss -xl | grep {uuid} || :").stdout == ""
    active = host.run(["systemctl", "is-active", f"inx-nix-daemon@{uuid}.socket"], check=False)
    assert active.stdout.strip() == "inactive"
    with unchanged(host):
        assert incus.run(name, "nix", "store", "info", check=False).returncode != 0
        incus.set(name, "user.inx.daemon=true")
        incus("restart", "-f", name)
        incus.wait_ready(name)
        assert incus.run(name, "nix", "store", "info").returncode == 0


# --- Who may hold the sidecar up --------------------------------------------------------------


def never_answer(path: str) -> str:
    """Mount a FUSE file system that answers nothing but the greeting, and stay."""
    import ctypes
    import os
    import struct
    import sys

    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"stall", path.encode(), b"fuse", 0, options):
        return os.strerror(ctypes.get_errno())
    request = os.read(fd, 1 << 20)
    _, opcode, unique = struct.unpack_from("<IIQ", request)
    assert opcode == 26, opcode  # FUSE_INIT
    answer = struct.pack("<IIIIHHIIHHI7I", 7, 31, 4096, 0, 8, 8, 4096, 1, 0, 0, 0, *[0] * 7)
    os.write(fd, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
    print('"mounted"', flush=True)
    while os.read(fd, 1 << 20):
        print('"asked"', flush=True)
    sys.exit()


def popen(host: Host, argv: Sequence[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(host.enter(argv), stdin=pipe, stdout=pipe, text=True)


def test_a_file_system_that_never_answers_holds_up_nobody_else(incus: Incus, host: Host) -> None:
    """It covers the profile while a build runs; who then writes the generation gets stuck in it,
    deaf even to SIGKILL."""
    gate = f"/srv/{incus.prefix}-gate"
    flake = incus.flake()
    host.sh(f"mkfifo {gate}")
    host.sh(
        f"cat >{flake}/gated.nix",
        input=f"""{{ held = builtins.seq (builtins.readFile {gate}) (import {flake}).web; }}""",
    )
    name = incus.init(file=f"{flake}/gated.nix", attr="held")
    incus.start(name)
    incus.wait_status(name, "building$")
    with popen(host, ["python3", "-I", "-"]) as stall:
        try:
            assert stall.stdin and stall.stdout
            make = ["exec", name, "--", "/dev/.inx/busybox", "mkdir", "-p", "/nix/var/nix/profiles"]
            incus(*make)
            stall.stdin.write(attack_command(incus, name, never_answer, "/nix/var/nix/profiles"))
            stall.stdin.close()
            assert stall.stdout.readline() == '"mounted"\n'
            host.sh(f": >{gate}")
            assert stall.stdout.readline() == '"asked"\n'
            # The sidecar gives up after 20 s; a start beside it must not wait for that.
            other = incus.init(name=incus.name("b"), flake="/etc/nixos#web")
            started = incus("start", other, check=False, timeout=60)
            assert started.returncode == 0, incus.log(other)
            incus.wait_status(
                name,
                "failed: .*took over",
            )
            another = incus.init(name=incus.name("c"), flake="/etc/nixos#web")
            started = incus("start", another, check=False, timeout=60)
            assert started.returncode == 0, incus.log(another)
        finally:
            incus("stop", "-f", name, check=False)
            stall.kill()
