"""A view shows the named entries of a directory, the very files, and nothing else of it."""

import asyncio
import errno
import hashlib
import mmap
import os
import pickle
import re
import signal
import socket
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import pytest
from support.containers import (
    CLONE_NEWPID,
    FIRST_ID,
    MNT_DETACH,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_SHARED,
    Sandbox,
    apart,
    make_rootfs,
    plain,
    running,
    umount,
)

from inx_sidecar.base import paths
from inx_sidecar.base.errors import (
    InstanceError,
    MountError,
    SystemMissingError,
    UnsupportedError,
)
from inx_sidecar.container.mounts import Container, HostDirectory, attach, show
from inx_sidecar.container.overlay import show_only
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MS_PRIVATE,
    MS_REC,
    mount,
    open_tree,
    opened,
    unshare,
)
from inx_sidecar.nix import generations
from inx_sidecar.nix.closure import closure
from inx_sidecar.nix.generations import Append, Change, Generations
from inx_sidecar.nix.seals import seal
from kernel.test_mounts import ATTEMPTS, CHANGE, SYSTEM

pytestmark = pytest.mark.isolated

MS_SLAVE: Final = 1 << 19
LARGE: Final = 50 << 20
MTIME: Final = 1_000_000_001_234_567_890
READ_ONLY: Final = MS_RDONLY | MS_NOSUID | MS_NODEV
REPAIR: Final = "run 'nix-store --verify --check-contents --repair'"

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))


@pytest.fixture(params=["unprivileged", "privileged"])
def sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sandbox]:
    privileged = request.param == "privileged"
    rootfs = make_rootfs(tmp_path / "rootfs", 0 if privileged else FIRST_ID)
    with running(rootfs, privileged=privileged) as sandbox:
        yield sandbox


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Sandbox]:
    with running(make_rootfs(tmp_path / "rootfs")) as sandbox:
        yield sandbox


def name_of(label: str) -> str:
    return f"{'0' * 32}-{label}"


DIRECTORY: Final = name_of("directory")
FILE: Final = name_of("file")
HIDDEN: Final = name_of("hidden")
ODD: Final = name_of("a+b.c_d?e=f-g")
SHOWN: Final[Set[str]] = frozenset(
    {
        DIRECTORY, FILE, ODD, "entries", name_of("x" * 211),
        *map(name_of, ["empty", "none", "large", "program", "same", "in", "out", "dangling"]),
    }
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """What SHOWN names, and as much that it does not."""
    path = tmp_path / "store"
    path.mkdir()
    for name in (DIRECTORY, ODD, "entries", HIDDEN):
        (path / name / "bin/deep").mkdir(parents=True)
        (path / name / "bin/deep/file").write_text(f"of {name}")
        (path / name / "up").symlink_to(f"../{HIDDEN}/bin/deep/file")
        (path / name / "across").symlink_to(f"../{FILE}")
    (path / DIRECTORY / "suid").touch()
    (path / DIRECTORY / "suid").chmod(0o6755)
    os.mknod(path / DIRECTORY / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (path / name_of("none")).mkdir()
    (path / name_of("empty")).touch()
    (path / FILE).write_text("of the host")
    os.link(path / FILE, path / name_of("same"))
    (path / name_of("program")).write_text("#!/bin/sh\n")
    (path / name_of("program")).chmod(0o555)
    with open(path / name_of("large"), "wb") as file:
        file.truncate(LARGE)
        file.seek(LARGE - 3)
        file.write(b"end")
    (path / name_of("in")).symlink_to(f"{DIRECTORY}/bin/deep/file")
    (path / name_of("out")).symlink_to(HIDDEN)
    (path / name_of("dangling")).symlink_to("/gone")
    (path / name_of("x" * 211)).write_text("a name of the greatest length")
    (path / name_of("hidden-file")).write_text("hidden")
    for found in sorted(path.rglob("*"), reverse=True):
        if found.name in (FILE, name_of("same"), name_of("empty"), "file"):
            found.chmod(0o444)
        elif found.is_dir() and not found.is_symlink():
            found.chmod(0o555)
        os.utime(found, ns=(MTIME, MTIME), follow_symlinks=False)
    return path


def attached(
    sandbox: Sandbox, store: Path, names: Iterable[str] = SHOWN, change: Change | None = CHANGE
) -> bool:
    view = HostDirectory(str(store), "nix/store", only=frozenset(names))
    with Container(sandbox.pid, "web") as container:
        return asyncio.run(attach(container, [view], change))


def shown(
    sandbox: Sandbox, store: Path, names: Iterable[str], change: Change | None = None
) -> bool:
    view = HostDirectory(str(store), "nix/store", only=frozenset(names))
    with Container(sandbox.pid, "web") as container:
        return asyncio.run(show(container, view, change))


def listed(sandbox: Sandbox, path: str = "/nix/store") -> Set[str]:
    return set(sandbox.inside(partial(os.listdir, path)))


@contextmanager
def steps(sandbox: Sandbox, life: Callable[[], Iterator[T]]) -> Iterator[Callable[[], T]]:
    """Each call gives what `life`, one process inside that goes on in between, yields next."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def live() -> None:
        values = life()
        while theirs.recv(1):
            theirs.send(pickle.dumps(next(values)))

    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            sandbox.inside(live)
        finally:
            os._exit(0)
    theirs.close()

    def step() -> T:
        ours.send(b"?")
        answer = ours.recv(1 << 20)
        assert answer, "the process inside has ended"
        value: T = pickle.loads(answer)
        return value

    try:
        yield step
    finally:
        ours.close()  # the process inside reads the end, and ends
        os.waitpid(pid, 0)


def with_proc(function: Callable[[], T]) -> T:
    """What `function` gives where /proc tells of the process itself; inside."""

    def alone() -> T:
        mount("proc", "/proc", "proc", 0)
        return function()

    unshare(CLONE_NEWNS | CLONE_NEWPID)
    return apart(alone)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


Fact = tuple[str, int, int, int, str]


def fact(path: str) -> Fact:
    """Type and mode, time, size, device and content of a file, a link or a directory."""
    found = os.lstat(path)
    size, content = found.st_size, ""
    if stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    elif stat.S_ISDIR(found.st_mode):
        size = 0  # each file system has its own
    elif stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    return stat.filemode(found.st_mode), found.st_mtime_ns, size, found.st_rdev, content


def below(top: str) -> Iterator[str]:
    for directory, directories, files in os.walk(top):
        yield from (os.path.relpath(f"{directory}/{name}", top) for name in directories + files)


def facts(top: str) -> dict[str, Fact]:
    return {path: fact(f"{top}/{path}") for path in below(top)}


@pytest.mark.parametrize(
    "names", [SHOWN, {FILE}, {"entries"}, set()], ids=["all", "file", "entries", "none"]
)
def test_a_view_is_the_named_entries_as_they_are_in_the_store(
    sandbox: Sandbox, store: Path, names: Set[str]
) -> None:
    assert attached(sandbox, store, names) is True
    real = {path: told for path, told in facts(str(store)).items() if path.split("/")[0] in names}
    assert sandbox.inside(lambda: facts("/nix/store")) == real
    assert {path for path in real if "/" not in path} == names


def test_all_of_a_view_belongs_to_the_containers_root(sandbox: Sandbox, store: Path) -> None:
    attached(sandbox, store)

    def owners() -> set[tuple[int, int]]:
        all_of_it = [os.lstat(f"/nix/store/{path}") for path in (".", *below("/nix/store"))]
        return {(found.st_uid, found.st_gid) for found in all_of_it}

    assert sandbox.inside(owners) == {(0, 0)}


def test_entries_belong_to_the_user_and_the_group_that_are_given(store: Path) -> None:
    """Those of a container's root may differ."""

    def look() -> set[tuple[int, int]]:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        with opened(open_tree(AT_FDCWD, str(store))) as tree:
            with opened(show_only(SHOWN, tree, (11, 22), f"{paths.RUN}/layers")) as view:
                names = os.listdir(f"/proc/self/fd/{view}")
                all_of_it = [os.stat(name, dir_fd=view, follow_symlinks=False) for name in names]
                all_of_it.append(os.fstat(view))
        return {(found.st_uid, found.st_gid) for found in all_of_it}

    assert apart(look) == {(11, 22)}


def test_the_ids_of_a_containers_root_are_those_of_its_maps() -> None:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        unshare(CLONE_NEWUSER)
        os.write(tell, b"u")
        signal.pause()
    try:
        assert os.read(told, 1) == b"u"
        Path(f"/proc/{pid}/uid_map").write_text("5 3000 1\n0 2000 1\n")
        Path(f"/proc/{pid}/gid_map").write_text("0 8000 3\n")
        with Container(pid, "web") as container:
            assert container.root_ids() == (2000, 8000)
        with Container(os.getpid(), "web") as container:
            assert container.root_ids() == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)
        os.close(tell)


def test_three_thousand_names(unprivileged: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(6000):
        (tmp_path / "many" / name_of(str(number))).symlink_to(str(number))
    names = {name_of(str(number)) for number in range(0, 6000, 2)}
    attached(unprivileged, tmp_path / "many", names)
    assert listed(unprivileged) == names


def test_a_view_is_read_only_without_devices_and_without_suid(
    sandbox: Sandbox, store: Path
) -> None:
    attached(sandbox, store)
    for path in ("", DIRECTORY, f"{DIRECTORY}/suid", FILE):
        flags = sandbox.inside(partial(os.statvfs, f"/nix/store/{path}")).f_flag
        assert flags & READ_ONLY == READ_ONLY
    inside = Path("/nix/store")
    writes: list[Callable[[], object]] = [
        (inside / "new").touch,
        (inside / DIRECTORY / "new").mkdir,
        (inside / FILE).unlink,
        partial((inside / FILE).chmod, 0o777),
        partial((inside / FILE).write_text, ""),
        partial((inside / DIRECTORY / "bin/deep/file").write_text, ""),
        partial((inside / FILE).rename, inside / "new"),
        partial(os.setxattr, inside / FILE, "user.x", b""),
    ]
    for write in writes:
        with pytest.raises(OSError) as caught:
            sandbox.inside(write)
        assert caught.value.errno == errno.EROFS, write
    null = f"{DIRECTORY}/null"
    (store / null).read_bytes()
    with pytest.raises(PermissionError):
        sandbox.inside((inside / null).read_bytes)


@pytest.mark.parametrize("over", [False, True], ids=["attached", "shown"])
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: str(attempt.__name__))
def test_no_flag_of_a_view_can_be_taken_off(
    sandbox: Sandbox, store: Path, attempt: Callable[[], None], over: bool
) -> None:
    attached(sandbox, store, {FILE})
    if over:
        shown(sandbox, store, {FILE})
    with pytest.raises(OSError) as caught:
        sandbox.inside(attempt)
    assert caught.value.errno == errno.EPERM, caught.value


def test_under_a_view_lies_only_an_empty_directory(sandbox: Sandbox, store: Path) -> None:
    attached(sandbox, store)

    def uncover() -> list[str]:
        umount("/nix/store", MNT_DETACH)
        return os.listdir("/nix/store")

    assert sandbox.inside(uncover) == []


def test_the_host_never_sees_a_view(sandbox: Sandbox, store: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    attached(sandbox, store)
    shown(sandbox, store, {HIDDEN})
    with pytest.raises(SystemMissingError):
        shown(sandbox, store, {"gone"})
    assert Path("/proc/self/mountinfo").read_text() == before
    assert os.listdir(paths.RUN) == []


def attached_with_the_whole(sandbox: Sandbox, store: Path) -> None:
    """A view at /nix/store, and for comparison all of the store at /mnt/whole."""
    directories = [
        HostDirectory(str(store), "nix/store", only=frozenset(SHOWN)),
        HostDirectory(str(store), "mnt/whole"),
    ]
    with Container(sandbox.pid, "web") as container:
        asyncio.run(attach(container, directories, None))


def test_a_hidden_entry_cannot_be_reached(sandbox: Sandbox, store: Path) -> None:
    attached_with_the_whole(sandbox, store)

    def reached(top: str) -> list[bool]:
        os.chdir(f"{top}/{DIRECTORY}")
        with opened(os.open(f"{top}/{DIRECTORY}/bin", os.O_PATH)) as fd:
            ways = [
                f"{top}/{HIDDEN}",
                f"{top}/./{DIRECTORY}/../{HIDDEN}",
                f"{top}/{DIRECTORY}/bin/deep/../../../{HIDDEN}",
                f"{top}/{DIRECTORY}/up",
                f"{top}/{ODD}/up",
                f"../{HIDDEN}",
                f"/proc/self/root{top}/{HIDDEN}",
                f"/proc/self/cwd/../{HIDDEN}",
                f"/proc/self/fd/{fd}/../../{HIDDEN}",
            ]
            return [os.path.exists(way) for way in ways]

    ways = sandbox.inside(lambda: with_proc(lambda: reached("/mnt/whole")))
    assert all(ways)
    ways = sandbox.inside(lambda: with_proc(lambda: reached("/nix/store")))
    assert not any(ways), ways


def test_above_and_beside_a_view_are_the_containers_own_files(
    sandbox: Sandbox, store: Path
) -> None:
    attached_with_the_whole(sandbox, store)

    def names() -> tuple[list[str], list[str]]:
        with opened(os.open("/nix/store", os.O_PATH)) as fd:
            above = os.open("..", os.O_RDONLY, dir_fd=fd)
        umount("/proc")
        return sorted(os.listdir(above)), [path for path in below("/") if HIDDEN in path]

    above, found = sandbox.inside(names)
    assert above == ["store", "var"]
    assert found and all(path.startswith("mnt/whole/") for path in found)


def test_entries_that_are_added_to_the_store_later_do_not_show(
    sandbox: Sandbox, store: Path
) -> None:
    attached_with_the_whole(sandbox, store)
    (store / "late").mkdir()
    (store / "late-file").write_text("late")
    (store / HIDDEN).rename(store / "renamed")
    (store / "entries/late").touch()
    late = {"late", "late-file", "renamed"}
    assert late <= listed(sandbox, "/mnt/whole")
    assert listed(sandbox) == SHOWN
    for name in late:
        assert sandbox.inside(partial(os.path.exists, f"/mnt/whole/{name}"))
        assert not sandbox.inside(partial(os.path.exists, f"/nix/store/{name}"))


PREFIXES = ["trusted.overlay", "user.overlay"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_overlays_write_into_a_store_opens_nothing(
    sandbox: Sandbox, store: Path, prefix: str
) -> None:
    entry, plain_file = store / name_of("none"), store / name_of("empty")
    (entry / "below").mkdir()
    (entry / "file").touch()
    (entry / ".wh..wh..opq").touch()
    os.mknod(entry / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(store / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    (store / f".wh.{FILE}").touch()
    os.setxattr(store, f"{prefix}.opaque", b"y")
    for directory in (entry, entry / "below"):
        os.setxattr(directory, f"{prefix}.opaque", b"x")
        os.setxattr(directory, f"{prefix}.redirect", os.fsencode(f"/{HIDDEN}"))
    for file in (plain_file, entry / "file"):
        os.setxattr(file, f"{prefix}.metacopy", b"")
        os.setxattr(file, f"{prefix}.redirect", os.fsencode(f"/{name_of('hidden-file')}"))
    attached(sandbox, store)

    def read() -> str:
        text = ""
        for path in below("/nix/store"):
            text += f"{path}\n"
            try:
                if stat.S_ISREG(os.lstat(f"/nix/store/{path}").st_mode):
                    text += Path(f"/nix/store/{path}").read_bytes()[:100].decode()
            except OSError as error:
                text += f"{path}: {errno.errorcode[error.errno or 0]}"
        return text

    assert listed(sandbox) == SHOWN
    text = sandbox.inside(read)
    assert f"of {DIRECTORY}" in text
    assert not re.search("hidden", text), text


def test_a_view_and_the_store_are_the_same_pages(sandbox: Sandbox, store: Path) -> None:
    names = [FILE, name_of("same"), f"{DIRECTORY}/bin/deep/file", name_of("large")]

    def life() -> Iterator[list[bytes]]:
        maps = []
        for name in names:
            with open(f"/nix/store/{name}", "rb") as file:
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        while True:
            yield [pages[:11] for pages in maps]

    attached(sandbox, store)
    with steps(sandbox, life) as step:
        assert step() == [
            b"of the host",
            b"of the host",
            f"of {DIRECTORY}".encode()[:11],
            bytes(11),
        ]
        for name in names[1:]:
            with open(store / name, "r+b") as file:
                file.write(b"changed far")
        assert step() == [b"changed far"] * 4
    inside = sandbox.inside(partial(os.stat, f"/nix/store/{DIRECTORY}/bin/deep/file"))
    assert inside.st_ino == (store / DIRECTORY / "bin/deep/file").stat().st_ino


def test_no_copy_is_made_for_a_view(unprivileged: Sandbox, store: Path) -> None:
    with open(store / name_of("large"), "r+b") as file:
        file.write(os.urandom(8 << 20))
    attached(unprivileged, store)
    with open(f"/proc/{unprivileged.pid}/root/nix/store/{name_of('large')}", "rb") as shown_file:
        assert len(shown_file.read()) == LARGE
    found = unprivileged.inside(partial(os.statvfs, "/nix/store"))
    assert (found.f_blocks - found.f_bfree) * found.f_frsize < 1 << 20


def test_the_mount_table_inside_names_no_entry(sandbox: Sandbox, store: Path) -> None:
    attached(sandbox, store)
    shown(sandbox, store, {DIRECTORY, FILE})
    for table in ("/proc/self/mountinfo", "/proc/self/mounts"):
        text = sandbox.inside(partial(with_proc, Path(table).read_text))
        assert "overlay" in text and "/nix/store" in text
        assert "0" * 32 not in text
        assert str(store) not in text


@pytest.mark.parametrize("way", [attached, shown], ids=["attach", "show"])
def test_an_entry_that_is_missing_is_named_and_nothing_is_left(
    sandbox: Sandbox, store: Path, way: Callable[..., bool]
) -> None:
    before = descriptors()
    gone = name_of("gone")
    with pytest.raises(SystemMissingError) as caught:
        way(sandbox, store, {FILE, gone}, CHANGE)
    assert str(caught.value).startswith(f"{gone} is not in the store")
    assert str(caught.value).endswith(REPAIR)
    assert descriptors() == before
    assert not (sandbox.rootfs / "nix").exists()
    way(sandbox, store, {FILE}, None)
    assert descriptors() == before
    assert listed(sandbox) == {FILE}


NEXT = Append(f"{SYSTEM}-2", "second", 5)


def test_a_new_view_is_seen_and_who_uses_the_old_one_goes_on(sandbox: Sandbox, store: Path) -> None:
    def life() -> Iterator[tuple[list[bytes], Set[str], Set[str]]]:
        os.chdir(f"/nix/store/{DIRECTORY}/bin")
        files = [open(f"/nix/store/{name}", "rb") for name in (FILE, f"{DIRECTORY}/bin/deep/file")]
        maps = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in files]
        directory = os.open("/nix/store", os.O_RDONLY)
        while True:
            content = [os.pread(file.fileno(), 99, 0) for file in files]
            content += [pages[:] for pages in maps] + [Path("deep/file").read_bytes()]
            yield content, {*os.listdir("."), *os.listdir(directory)}, set(os.listdir("/nix/store"))

    attached(sandbox, store)
    with steps(sandbox, life) as step:
        content, old, new = step()
        assert (old, new) == ({"deep"} | SHOWN, SHOWN)
        assert shown(sandbox, store, {HIDDEN, ODD}) is True
        assert step() == (content, old, {HIDDEN, ODD})
        (store / HIDDEN / "late").touch()
        assert shown(sandbox, store, {FILE}) is True
        assert step() == (content, old, {FILE})
    shown(sandbox, store, {*SHOWN, HIDDEN})
    assert sandbox.inside(Path(f"/nix/store/{DIRECTORY}/up").read_text) == f"of {HIDDEN}"


def test_a_container_that_waits_without_a_store_is_shown_its_first_view(
    sandbox: Sandbox, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "boot").mkdir()
    with Container(sandbox.pid, "web") as container:
        asyncio.run(attach(container, [HostDirectory(str(tmp_path / "boot"), "dev/.inx")], None))
    assert listed(sandbox, "/nix") == {"var"}
    assert shown(sandbox, store, SHOWN, CHANGE) is True
    assert listed(sandbox) == SHOWN
    assert generations.read(str(sandbox.rootfs), "web").system == SYSTEM


@pytest.mark.parametrize(
    "namespaces", [CLONE_NEWNS, CLONE_NEWNS | CLONE_NEWUSER], ids=["mount", "user"]
)
@pytest.mark.parametrize(
    ("propagation", "seen"),
    [(MS_SLAVE, {HIDDEN}), (MS_PRIVATE, SHOWN)],
    ids=["slave", "private"],
)
def test_a_mount_namespace_inside_sees_a_new_view_if_it_is_a_slave(
    sandbox: Sandbox, store: Path, namespaces: int, propagation: int, seen: set[str]
) -> None:
    """As services are of systemd, which makes all mounts shared."""

    def service() -> Iterator[set[str]]:
        unshare(namespaces)
        plain("/", flags=MS_REC | propagation)
        while True:
            yield set(os.listdir("/nix/store"))

    attached(sandbox, store)
    sandbox.inside(lambda: plain("/", flags=MS_REC | MS_SHARED))
    with steps(sandbox, service) as step:
        assert step() == SHOWN
        for names in (SHOWN, {DIRECTORY}, {HIDDEN}):
            shown(sandbox, store, names)
        assert step() == seen


def test_ten_views_in_a_row_with_a_generation_each(sandbox: Sandbox, store: Path) -> None:
    attached(sandbox, store)
    before = descriptors()
    for number, name in enumerate(sorted(SHOWN)[:10], 2):
        shown(sandbox, store, {name}, Append(f"{SYSTEM}-{number}", "x", 5))
        assert listed(sandbox) == {name}
        assert generations.read(str(sandbox.rootfs), "web").current == number
    assert descriptors() == before


@pytest.mark.parametrize("place", ["nix", "nix/store"])
@pytest.mark.parametrize("target", ["/mnt", "../../mnt", "file"])
def test_what_is_planted_in_the_place_of_a_view_is_named_and_the_old_view_stays(
    sandbox: Sandbox, store: Path, place: str, target: str
) -> None:
    attached(sandbox, store)

    def plant() -> None:
        os.rename("/nix", "/old")
        Path("/", place).parent.mkdir(exist_ok=True)
        if target == "file":
            Path("/", place).touch()
        else:
            os.symlink(target, f"/{place}")

    sandbox.inside(plant)
    before = descriptors()
    with pytest.raises(InstanceError, match=rf"^/{place} of 'web' cannot be used .*; remove it$"):
        shown(sandbox, store, {HIDDEN}, NEXT)
    assert descriptors() == before
    assert listed(sandbox, "/old/store") == SHOWN
    assert listed(sandbox, "/mnt") == set()
    assert not sandbox.inside(partial(os.path.exists, "/nix/var"))
    profiles = listed(sandbox, "/old/var/nix/profiles")
    assert "system-1-link" in profiles and "system-2-link" not in profiles


def overlay(place: Path, lower: Path) -> Path:
    """`lower` shown by another overlay."""
    for name in ("upper", "work", "merged"):
        (place / name).mkdir(parents=True)
    data = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work"
    mount("overlay", f"{place}/merged", "overlay", 0, data)
    return place / "merged"


def test_a_store_that_cannot_map_owners_is_shown_and_belongs_to_nobody(
    unprivileged: Sandbox, store: Path, tmp_path: Path
) -> None:
    def owners() -> tuple[set[int], set[int]]:
        top = [f"/nix/store/{name}" for name in SHOWN]
        nested = [f"{path}/{name}" for path in top if os.path.isdir(path) for name in below(path)]
        return {os.lstat(path).st_uid for path in top}, {os.lstat(path).st_uid for path in nested}

    def host() -> tuple[bool, Set[str], str, tuple[set[int], set[int]]]:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        mapped = attached(unprivileged, overlay(tmp_path / "one", store))
        text = unprivileged.inside(Path(f"/nix/store/{FILE}").read_text)
        return mapped, listed(unprivileged), text, unprivileged.inside(owners)

    assert apart(host) == (False, SHOWN, "of the host", ({0}, {65534}))


def test_a_store_on_two_overlays_is_refused_and_nothing_is_attached(
    sandbox: Sandbox, store: Path, tmp_path: Path
) -> None:
    def host() -> tuple[str, bool, bool]:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        two = overlay(tmp_path / "two", overlay(tmp_path / "one", store))
        before = descriptors()
        try:
            attached(sandbox, two)
        except MountError as error:
            return str(error), descriptors() == before, (two / FILE).exists()
        return "", False, False

    text, closed, exists = apart(host)
    assert text == (
        "this kernel cannot show a part of the store (overlayfs: Invalid argument): Linux 5.19 or "
        "newer is needed, and a store on at most one overlay"
    )
    assert closed and exists
    assert not (sandbox.rootfs / "nix").exists()


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The key of a host that has none yet."""
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(paths, "STATE", str(tmp_path / "state"))
    return tmp_path / "state/seal.key"


def test_a_host_seals_a_system_always_alike_and_each_differently(key: Path) -> None:
    first = seal(SYSTEM)
    assert re.fullmatch("[0-9a-f]{64}", first)
    content = key.read_bytes()
    assert (seal(SYSTEM), key.read_bytes()) == (first, content)
    assert seal(f"{SYSTEM}-2") != first


def test_the_key_is_for_root_alone_and_nothing_lies_beside_it(key: Path) -> None:
    seal(SYSTEM)
    assert oct(key.stat().st_mode) == oct(stat.S_IFREG | 0o600)
    assert (len(key.read_bytes()), os.listdir(key.parent)) == (32, ["seal.key"])


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_replaced(key: Path, length: int) -> None:
    first = seal(SYSTEM)
    key.write_bytes(bytes(length))
    again = seal(SYSTEM)
    assert len(key.read_bytes()) == 32
    assert oct(key.stat().st_mode) == oct(stat.S_IFREG | 0o600)
    assert again != first and seal(SYSTEM) == again


def test_another_key_makes_another_seal(key: Path) -> None:
    key.write_bytes(b"a" * 32)
    first = seal(SYSTEM)
    key.write_bytes(b"b" * 32)
    second = seal(SYSTEM)
    key.write_bytes(b"a" * 32)
    assert second != first == seal(SYSTEM)


def test_a_key_that_cannot_be_read_is_named(key: Path) -> None:
    key.mkdir()
    with pytest.raises(UnsupportedError, match=f"^cannot read {key}: Is a directory$"):
        seal(SYSTEM)


OTHER: Final = f"{SYSTEM}-other"


@pytest.mark.parametrize("current", [1, 2, 3, 4, 5, None])
def test_generations_count_only_with_the_seal_of_their_own_system(
    key: Path, current: int | None
) -> None:
    links = dict.fromkeys(range(1, 6), SYSTEM)
    seals = {1: seal(SYSTEM), 2: seal(OTHER), 3: "", 5: "\udcff\u00e9", 6: seal(SYSTEM)}
    found = Generations(links, current, "fingerprint", pinned=True, seals=seals).sealed(seal)
    assert found.links == {1: SYSTEM}
    assert found.current == (1 if current == 1 else None)
    assert found.system == (SYSTEM if current == 1 else None)
    assert (found.newest, found.fingerprint, found.pinned) == (1, "fingerprint", True)


def test_no_generation_counts_on_a_host_with_another_key(key: Path) -> None:
    present = Generations({1: SYSTEM}, 1, seals={1: seal(SYSTEM)})
    assert present.sealed(seal) == present
    key.unlink()
    assert present.sealed(seal).links == {}


def test_a_generation_that_inx_writes_counts_and_one_made_inside_does_not(
    unprivileged: Sandbox, store: Path, key: Path
) -> None:
    attached(unprivileged, store, change=Append(SYSTEM, "x", 5, seal(SYSTEM)))
    profiles = "/nix/var/nix/profiles"

    def make() -> None:
        os.symlink(OTHER, f"{profiles}/system-2-link")
        os.symlink(os.readlink(f"{profiles}/system-1-seal"), f"{profiles}/system-2-seal")
        os.unlink(f"{profiles}/system")
        os.symlink("system-2-link", f"{profiles}/system")

    unprivileged.inside(make)
    present = generations.read(str(unprivileged.rootfs), "web")
    assert (present.links, present.current) == ({1: SYSTEM, 2: OTHER}, 2)
    usable = present.sealed(seal)
    assert (usable.links, usable.current) == ({1: SYSTEM}, None)


# As Nix 2 makes it (libstore/schema.sql).
SCHEMA: Final = """
    pragma journal_mode = wal;
    create table ValidPaths (
        id integer primary key autoincrement not null,
        path text unique not null,
        hash text not null,
        registrationTime integer not null,
        deriver text,
        narSize integer,
        ultimate integer,
        sigs text,
        ca text
    );
    create table Refs (
        referrer integer not null,
        reference integer not null,
        primary key (referrer, reference),
        foreign key (referrer) references ValidPaths(id) on delete cascade,
        foreign key (reference) references ValidPaths(id) on delete restrict
    );
    create index IndexReferrer on Refs(referrer);
    create index IndexReference on Refs(reference);
"""
NEEDS: Final[Mapping[str, str]] = {
    "alone": "",
    "itself": "itself",
    "first": "second",
    "second": "third",
    "third": "",
    "top": "left right",
    "left": "bottom",
    "right": "bottom right",
    "bottom": "",
    "egg": "hen",
    "hen": "egg alone",
    "deep0": "deep1",
    **{f"deep{number}": f"deep{number + 1}" for number in range(1, 2000)},
    "deep2000": "",
}


def stored(name: str) -> str:
    return f"/nix/store/{name_of(name)}"


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """Open, as the daemon's is while it writes."""
    monkeypatch.setattr(paths, "NIX_DB", str(tmp_path / "db.sqlite"))
    with closing(sqlite3.connect(paths.NIX_DB)) as db:
        db.executescript(SCHEMA)
        add = "insert into ValidPaths (path, hash, registrationTime) values (?, '', 0)"
        numbers = {name: db.execute(add, (stored(name),)).lastrowid for name in NEEDS}
        for name, needs in NEEDS.items():
            for need in needs.split():
                db.execute("insert into Refs values (?, ?)", (numbers[name], numbers[need]))
        db.commit()
        yield db


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("alone", "alone"),
        ("itself", "itself"),
        ("first", "first second third"),
        ("second", "second third"),
        ("top", "top left right bottom"),
        ("egg", "egg hen alone"),
        ("first left", "first second third left bottom"),
        ("first third", "first second third"),
        ("alone alone", "alone"),
        ("deep0", " ".join(f"deep{number}" for number in range(2001))),
    ],
    ids=str.split,
)
def test_a_closure_is_all_that_paths_need_and_no_more(wanted: str, found: str) -> None:
    closed = asyncio.run(closure([stored(name) for name in wanted.split()]))
    assert closed == {stored(name) for name in found.split()}


@pytest.mark.parametrize("wanted", [["gone"], ["first", "gone"], ["gone", "first"]])
def test_a_path_that_is_not_valid_has_no_closure(
    database: sqlite3.Connection, wanted: list[str]
) -> None:
    add = "insert into ValidPaths (path, hash, registrationTime) values (?, '', 0)"
    database.execute(add, (stored("gone"),))  # not committed: not valid yet
    with pytest.raises(SystemMissingError, match=f"^{stored('gone')} is not in the store$"):
        asyncio.run(closure([stored(name) for name in wanted]))
    database.commit()
    assert stored("gone") in asyncio.run(closure([stored(name) for name in wanted]))
