"""A view shows the named entries of a directory, the same files, and nothing else of it."""

import asyncio
import errno
import hashlib
import mmap
import os
import re
import signal
import stat
from collections.abc import Callable, Iterator, Set
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from support.containers import (
    MNT_DETACH,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    Sandbox,
    apart,
    umount,
)
from support.mounts import mount_table

from inx_sidecar.base import paths
from inx_sidecar.base.errors import MountError, SystemMissingError
from inx_sidecar.container import overlay as overlay_module
from inx_sidecar.container.locked_mounts import HostDirectory
from inx_sidecar.container.mounts import attach_mounts
from inx_sidecar.container.namespaces import Container
from inx_sidecar.container.overlay import mount_entries
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    MS_PRIVATE,
    MS_REC,
    mount,
    open_tree,
    opened,
    unshare,
)
from kernel.test_mounts import ATTEMPTS, descriptors
from kernel.views import (
    DIRECTORY,
    FILE,
    HIDDEN,
    LARGE,
    ODD,
    SHOWN,
    attached,
    below,
    listed,
    make_store,
    name_of,
    shown,
    steps,
    with_proc,
)

pytestmark = [pytest.mark.isolated, pytest.mark.usefixtures("run_directory")]

READ_ONLY: Final = MS_RDONLY | MS_NOSUID | MS_NODEV
Fact = tuple[str, int, int, int, str]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with the entries of SHOWN, and with as many others."""
    path = tmp_path / "store"
    make_store(path)
    return path


def fact(path: str) -> Fact:
    """Type and mode, time, size, device and content of a file, a link or a directory."""
    found = os.lstat(path)
    size, content = found.st_size, ""
    if stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    elif stat.S_ISDIR(found.st_mode):
        size = 0  # the size of a directory depends on the file system
    elif stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    return stat.filemode(found.st_mode), found.st_mtime_ns, size, found.st_rdev, content


def facts(top: str) -> dict[str, Fact]:
    return {path: fact(f"{top}/{path}") for path in below(top)}


@pytest.mark.parametrize(
    "names", [SHOWN, {FILE}, {"entries"}, set()], ids=["all", "file", "entries", "none"]
)
def test_a_view_is_the_named_entries_as_they_are_in_the_store(
    sandbox: Sandbox, store: Path, names: Set[str]
) -> None:
    assert attached(sandbox, store, names) is True
    real = {path: found for path, found in facts(str(store)).items() if path.split("/")[0] in names}
    assert sandbox.inside(lambda: facts("/nix/store")) == real
    assert {path for path in real if "/" not in path} == names


def test_all_of_a_view_belongs_to_the_containers_root(sandbox: Sandbox, store: Path) -> None:
    attached(sandbox, store)

    def owners() -> set[tuple[int, int]]:
        all_of_it = [os.lstat(f"/nix/store/{path}") for path in (".", *below("/nix/store"))]
        return {(found.st_uid, found.st_gid) for found in all_of_it}

    assert sandbox.inside(owners) == {(0, 0)}


def test_entries_belong_to_the_user_and_the_group_that_are_given(store: Path) -> None:
    """The user id and the group id of a container's root may differ."""

    def look() -> set[tuple[int, int]]:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        with opened(open_tree(AT_FDCWD, str(store))) as tree:
            with opened(mount_entries(SHOWN, tree, (11, 22), f"{paths.RUN}/layers")) as view:
                names = os.listdir(f"/proc/self/fd/{view}")
                all_of_it = [os.stat(name, dir_fd=view, follow_symlinks=False) for name in names]
                all_of_it.append(os.fstat(view))
        return {(found.st_uid, found.st_gid) for found in all_of_it}

    assert apart(look) == {(11, 22)}


def test_three_thousand_names(unprivileged: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(6000):
        (tmp_path / "many" / name_of(str(number))).symlink_to(str(number))
    names = {name_of(str(number)) for number in range(0, 6000, 2)}
    attached(unprivileged, tmp_path / "many", names)
    assert listed(unprivileged) == names


def no_process() -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.mark.parametrize("helper", ["works", "is refused", "dies", "dies in the middle"])
def test_many_entries_are_made_by_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helper: str
) -> None:
    """Whatever happens to the second one, all entries are there."""
    store = tmp_path / "many"
    store.mkdir()
    names = [name_of(str(number)) for number in range(400)]
    for number, name in enumerate(names):
        (store / name).mkdir() if number % 3 else (store / name).write_text(name)
    make_entry = overlay_module._make_entry
    made: list[str] = []

    def look() -> tuple[set[str], bool, set[str]]:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        first = os.getpid()

        def make(name: str, directory: int) -> None:
            if os.getpid() != first and helper.startswith("dies"):
                if helper == "dies" or len(made) == 50:
                    os.kill(os.getpid(), signal.SIGKILL)
                if len(made) == 49:  # between two steps
                    os.mkdir(name)
            made.append(name)
            make_entry(name, directory)

        monkeypatch.setattr(overlay_module, "_make_entry", make)
        if helper == "is refused":
            monkeypatch.setattr(os, "fork", no_process)
        with opened(open_tree(AT_FDCWD, str(store))) as tree:
            with opened(mount_entries(names, tree, (0, 0), f"{paths.RUN}/layers")) as view:
                shown = set(os.listdir(f"/proc/self/fd/{view}"))
                alike = all(
                    os.stat(name, dir_fd=view).st_mode == os.stat(store / name).st_mode
                    for name in names
                )
        return shown, alike, set(made)

    shown, alike, by_first = apart(look)
    assert shown == set(names) and alike
    assert (by_first == set(names[200:])) == (helper == "works")


def test_a_name_that_only_the_second_process_misses_is_told(tmp_path: Path) -> None:
    store = tmp_path / "many"
    store.mkdir()
    names = [name_of(str(number)) for number in range(400)]
    for name in names[1:]:
        (store / name).mkdir()

    def look() -> None:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        with opened(open_tree(AT_FDCWD, str(store))) as tree:
            with pytest.raises(SystemMissingError, match=names[0]):
                mount_entries(names, tree, (0, 0), f"{paths.RUN}/layers")

    apart(look)


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
    before = mount_table()
    attached(sandbox, store)
    shown(sandbox, store, {HIDDEN})
    with pytest.raises(SystemMissingError):
        shown(sandbox, store, {"gone"})
    assert mount_table() == before
    assert os.listdir(paths.RUN) == []


def attached_with_the_whole(sandbox: Sandbox, store: Path) -> None:
    """A view at /nix/store, and for comparison all of the store at /mnt/whole."""
    directories = [
        HostDirectory(str(store), "nix/store", entries=frozenset(SHOWN)),
        HostDirectory(str(store), "mnt/whole"),
    ]
    with Container(sandbox.pid, "web") as container:
        asyncio.run(attach_mounts(container, directories, None))


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


def overlay(place: Path, lower: Path) -> Path:
    """The merged directory of another overlay over `lower`."""
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
