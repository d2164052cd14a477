"""Attempts to read what a container must not see."""

import contextlib
import os
import re
import socket
import stat
import struct
import subprocess
from collections.abc import Callable

from support.attacker.kernel import MNT_DETACH, MS_BIND, attempt, libc, mount

# All that `reach` can do with a directory that holds a file, a program and a link.
ALL_OF_A_DIRECTORY = [
    "stat", "lstat", "statfs", "access", "hold", "open", "list", "cat", "read a link",
    "list attributes", "go there", "make it the root", "execute", "bind",
]  # fmt: skip


def names_in(directory: str) -> list[str]:
    return os.listdir(directory)


def text_of(path: str) -> str:
    with open(path) as file:
        return file.read()


def target_of(link: str) -> str:
    return os.readlink(link)


def links_below(tops: list[str]) -> dict[str, str]:
    """Every link below the directories, and its text."""
    return {
        path: os.readlink(path)
        for top in tops
        for base, directories, files in os.walk(top)
        for path in (f"{base}/{name}" for name in (*directories, *files))
        if os.path.islink(path)
    }


def reach(paths: list[str]) -> dict[str, list[str]]:
    """What root can do with each path; a path with which root can do nothing is left out."""
    os.makedirs("/reached", exist_ok=True)

    def bind(path: str) -> None:
        mount(path, "/reached", None, MS_BIND)
        libc.umount2(b"/reached", MNT_DETACH)

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


def places_of_hashes(hashes: list[str]) -> dict[str, list[str]]:
    """The places inside where each of these hashes of store paths can be read."""
    texts = _guest_api() | _readable_texts()
    # There is no listing as long as the system is not built.
    with contextlib.suppress(FileNotFoundError):
        texts["the listing of the store"] = " ".join(os.listdir("/nix/store"))
    found: dict[str, list[str]] = {}
    for place, text in texts.items():
        for wanted in hashes:
            if wanted in text:
                found.setdefault(wanted, []).append(place)
    return found


def _guest_api() -> dict[str, str]:
    """All that Incus tells a container of itself."""

    def ask(path: str) -> str:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect("/dev/incus/sock")
            channel.sendall(f"GET {path} HTTP/1.0\r\nHost: incus\r\n\r\n".encode())
            return b"".join(iter(lambda: channel.recv(65536), b"")).decode(errors="replace")

    texts = {f"guest API {path}": ask(path) for path in ("/1.0", "/1.0/devices", "/1.0/meta-data")}
    listed = ask("/1.0/config")
    keys = re.findall(r"/1\.0/config/[^\"\s]+", listed)
    return (
        texts | {f"guest API {key}": ask(key) for key in keys} | {"guest API /1.0/config": listed}
    )


def _readable_texts() -> dict[str, str]:
    """The text of each file and of each link outside the store."""
    own = f"/proc/{os.getpid()}/"
    tops = ["/proc", "/dev", "/etc", "/root", "/run", "/tmp", "/var", "/nix/var", "/usr"]
    left_out = {"kmsg", "kcore", "pagemap", "mem", "task", "net", "sysrq-trigger", "clear_refs"}
    texts = {}
    for top in tops:
        for base, directories, files in os.walk(top):
            directories[:] = [name for name in directories if name not in left_out]
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
                    if not regular or name in left_out or path.startswith(f"{own}fd"):
                        continue
                    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                    try:
                        texts[path] = os.read(fd, 1 << 20).decode(errors="replace")
                    finally:
                        os.close(fd)
    return texts


def dump(daemon: str, store_path: str) -> str:
    """The answer of a Nix daemon to NarFromPath (libstore/worker-protocol.hh), as Latin-1."""
    number = struct.Struct("<Q")
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(30)
        wire.connect(daemon)
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
