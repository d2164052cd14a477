"""Locks and leases on files of the store, which root of a container owns."""

import ctypes
import errno
import fcntl
import functools
import json
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable

from support.attacker.kernel import (
    AT_FDCWD,
    AT_RECURSIVE,
    MOVE_MOUNT,
    MS_BIND,
    OPEN_TREE,
    OPEN_TREE_CLONE,
    attempt,
    call,
    check,
    in_namespaces,
    libc,
    mount,
)

F_SETLEASE = 1024
EXIT = {"x86_64": 60, "aarch64": 93}
IO_URING_SETUP, IO_URING_ENTER = 425, 426
IN_CREATE = 0x100
FAN_REPORT_FID = 0x200
MOVE_MOUNT_F_EMPTY_PATH = 4

_KEPT: list[int] = []  # descriptors that stay open


def lock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open_and_lock(path: str, flags: int = os.O_RDONLY) -> None:
    lock(os.open(path, flags))


def _share(path: str) -> None:
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)


def _reopen(path: str) -> None:
    fd = os.open(path, os.O_PATH)
    lock(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))


def _without_a_name(path: str) -> None:
    lock(os.open(path, os.O_PATH))


def _below_a_bind(path: str) -> None:
    in_namespaces()
    mount(os.path.dirname(path), "/mnt/a", None, MS_BIND)
    _open_and_lock(f"/mnt/a/{os.path.basename(path)}")


def _bound_itself(path: str) -> None:
    in_namespaces()
    os.close(os.open("/mnt/file", os.O_CREAT))
    mount(path, "/mnt/file", None, MS_BIND)
    _open_and_lock("/mnt/file")


def _in_a_copied_mount(path: str) -> None:
    in_namespaces()
    fd = call(OPEN_TREE, AT_FDCWD, os.path.dirname(path).encode(), OPEN_TREE_CLONE | AT_RECURSIVE)
    call(MOVE_MOUNT, fd, b"", AT_FDCWD, b"/mnt/a", MOVE_MOUNT_F_EMPTY_PATH)
    _open_and_lock(f"/mnt/a/{os.path.basename(path)}")


def _in_a_user_namespace(path: str) -> None:
    in_namespaces(user=True)
    _open_and_lock(path)


def _in_a_chroot(path: str) -> None:
    os.chroot(os.path.dirname(path))
    _open_and_lock(f"/{os.path.basename(path)}")


def _through_init(path: str) -> None:
    _open_and_lock(f"/proc/1/root{path}")


def _after_the_first_thread(path: str) -> None:
    """The first thread of the process, whose PID is that of the process, has ended."""

    def run() -> None:
        me = os.getpid()
        while True:
            with open(f"/proc/{me}/stat") as file:
                if ") Z " in file.read():
                    break
        try:
            _open_and_lock(path)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)

    threading.Thread(target=run).start()
    libc.syscall(EXIT[os.uname().machine], 0)


def _by_io_uring(path: str) -> None:
    """The kernel opens the file in a thread of its own."""
    parameters = ctypes.create_string_buffer(120)
    ring = call(IO_URING_SETUP, 1, ctypes.addressof(parameters))
    (flags,) = struct.unpack_from("=I", parameters, 20)
    assert flags & 1, "one mapping for both queues"
    submit = struct.unpack_from("=7I", parameters, 40)
    complete = struct.unpack_from("=6I", parameters, 80)
    queues = mmap.mmap(ring, max(submit[6] + 4, complete[5] + 16 * 2))
    entries = mmap.mmap(ring, 64, offset=0x10000000)
    name = ctypes.create_string_buffer(os.fsencode(path))
    # IORING_OP_OPENAT; IOSQE_ASYNC: a thread of the kernel does it.
    struct.pack_into(
        "=BBHiQQIIQ", entries, 0, 18, 1 << 4, 0, AT_FDCWD, 0, ctypes.addressof(name), 0, 0, 0
    )
    struct.pack_into("=I", queues, submit[6], 0)
    struct.pack_into("=I", queues, submit[1], 1)
    call(IO_URING_ENTER, ring, 1, 1, 1, None, 0)
    (result,) = struct.unpack_from("=i", queues, complete[5] + 8)
    if result < 0:
        raise OSError(-result, "")
    lock(result)


WAYS: dict[str, Callable[[str], None]] = {
    "open": _open_and_lock,
    "open to write": lambda path: _open_and_lock(path, os.O_RDWR),
    "open without waiting": lambda path: _open_and_lock(path, os.O_RDONLY | os.O_NONBLOCK),
    "a shared lock": _share,
    "a descriptor of the name alone": _without_a_name,
    "a descriptor of the name, opened again": _reopen,
    "below another mount": _below_a_bind,
    "the file as a mount": _bound_itself,
    "in a copied mount": _in_a_copied_mount,
    "in a user namespace": _in_a_user_namespace,
    "in a chroot": _in_a_chroot,
    "through init": _through_init,
    "after the first thread": _after_the_first_thread,
    "by io_uring": _by_io_uring,
}


def lock_in_every_way(path: str) -> dict[str, str]:
    """What came of each way to lock the file at `path`; "done" only if it is locked."""
    return {name: attempt(functools.partial(way, path)) for name, way in WAYS.items()}


def lock_and_stay(path: str, copies: int) -> None:
    """Lock the file, and tell `"locked"`; this process and `copies` children keep the lock."""
    _open_and_lock(path)
    for _ in range(copies):
        if os.fork() == 0:
            break
    else:
        print('"locked"', flush=True)
    signal.pause()


def lock_in_an_overlay(path: str) -> None:
    """Lock the file as an overlay over its directory shows it; tell the outcome, and stay."""

    def work() -> None:
        in_namespaces()
        layers = f"lowerdir={os.path.dirname(path)},upperdir=/mnt/upper,workdir=/mnt/work"
        mount("overlay", "/mnt/merged", "overlay", 0, f"{layers},userxattr")
        print('"mounted"', flush=True)
        _open_and_lock(f"/mnt/merged/{os.path.basename(path)}")
        print('"locked"', flush=True)
        signal.pause()

    print(json.dumps(attempt(work)), flush=True)


def lock_new_files(directory: str, processes: int) -> None:
    """Lock each lock file in `directory`, new ones as soon as they are made, and stay.

    Tells `"ready"`, then the name of each file that is locked.
    """
    watches = []
    for _ in range(processes):
        watch = check(libc.inotify_init())
        check(libc.inotify_add_watch(watch, directory.encode(), IN_CREATE))
        watches.append(watch)
    for name in os.listdir(directory):
        _grab(directory, name)
    print('"ready"', flush=True)
    watch = next((watch for watch in watches[1:] if os.fork() == 0), watches[0])
    while events := os.read(watch, 1 << 16):
        while events:
            (length,) = struct.unpack_from("=12xI", events)
            _grab(directory, os.fsdecode(events[16 : 16 + length].rstrip(b"\0")))
            events = events[16 + length :]


def _grab(directory: str, name: str) -> None:
    if name.endswith(".lock"):
        try:
            _KEPT.append(os.open(f"{directory}/{name}", os.O_RDONLY))
            lock(_KEPT[-1])
            os.write(1, json.dumps(name).encode() + b"\n")
        except OSError:
            pass


def open_without_end(path: str, threads: int) -> None:
    """Open the file over and over in many threads; tells `"ready"`."""

    def run() -> None:
        while True:
            try:
                os.close(os.open(path, os.O_RDONLY))
            except OSError:
                pass

    print('"ready"', flush=True)
    for _ in range(threads):
        threading.Thread(target=run, daemon=True).start()
    signal.pause()


def take_leases(paths: list[str]) -> None:
    """Take a write lease on each file, and keep the leases.

    Tells what came of each: "done", or the name of the error.
    """
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    outcome = {}
    for path in paths:
        _KEPT.append(os.open(path, os.O_RDONLY))
        try:
            fcntl.fcntl(_KEPT[-1], F_SETLEASE, fcntl.F_WRLCK)
            outcome[path] = "done"
        except OSError as error:
            outcome[path] = errno.errorcode[error.errno or 0]
    print(json.dumps(outcome), flush=True)
    signal.pause()


def take_groups() -> None:
    """Make groups of fanotify without end, and keep them; tell once when there are no more."""
    _take(lambda: libc.fanotify_init(FAN_REPORT_FID, 0))


def take_instances() -> None:
    """As `take_groups`, instances of inotify."""
    _take(lambda: libc.inotify_init1(0))


def _take(make: Callable[[], int]) -> None:
    told = False
    while True:
        if make() < 0:
            if not told:
                print('"begun"', flush=True)
                told = True
            time.sleep(0.0002)
