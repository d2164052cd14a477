"""A store of its own: the shown paths below, and what is made inside in the root file system."""

import asyncio
import errno
import itertools
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator, Set
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from support.containers import (
    FIRST_ID,
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_REMOUNT,
    Sandbox,
    apart,
    clear_attributes,
    make_rootfs,
    plain,
    running,
    umount,
)
from support.mounts import mount_table

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, MountError
from inx_sidecar.container.namespaces import Container
from inx_sidecar.container.own_store import open_nix
from inx_sidecar.container.upper_layer import empty_trash, has_trash
from inx_sidecar.kernel.superblocks import drop_cached_names
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_REC,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    opened,
    unshare,
)
from inx_sidecar.nix import generations, own_database, shown_record
from inx_sidecar.nix.closure import Registration
from inx_sidecar.nix.own_database import Rows, encode
from inx_sidecar.nix.shown_record import Record
from kernel.own import BOOTED, Machine, attached, hidden_names, user_namespace
from kernel.test_mounts import CHANGE, SYSTEM, descriptors
from kernel.test_overlay import fact, overlay
from kernel.views import DIRECTORY, FILE, HIDDEN, SHOWN, below, make_store, name_of, with_proc

pytestmark = [pytest.mark.isolated, pytest.mark.usefixtures("run_directory")]

NEW: Final = name_of("new")
NAMES: Final = frozenset({DIRECTORY, FILE, name_of("program"), name_of("in")})
DEEP: Final = f"{DIRECTORY}/bin/deep/file"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The host's store, with the entries of SHOWN, and with as many others."""
    path = tmp_path / "store"
    make_store(path)
    return path


@pytest.fixture(params=[False, True], ids=["unprivileged", "privileged"])
def machine(request: pytest.FixtureRequest, store: Path, tmp_path: Path) -> Machine:
    return Machine.made(tmp_path, store, privileged=request.param)


@pytest.fixture
def web(store: Path, tmp_path: Path) -> Machine:
    """An unprivileged one."""
    return Machine.made(tmp_path, store)


def build(name: str = NEW) -> None:
    """What a build leaves in the store."""
    os.makedirs(f"/nix/store/{name}/bin")
    Path(f"/nix/store/{name}/bin/tool").write_text("made inside")
    os.symlink(f"../{FILE}", f"/nix/store/{name}/link")


def facts_of(top: str, names: Set[str]) -> dict[str, object]:
    return {path: fact(f"{top}/{path}") for path in below(top) if path.split("/")[0] in names}


def test_what_is_shown_is_as_in_the_store_and_nothing_else_is(
    machine: Machine, store: Path
) -> None:
    with machine.start(NAMES) as started:
        assert started.store.mapped is True
        inside = started.sandbox.inside(lambda: facts_of("/nix/store", SHOWN | {HIDDEN}))
        assert started.sandbox.inside(lambda: set(os.listdir("/nix/store"))) == NAMES
    assert inside == facts_of(str(store), NAMES)


def test_all_belongs_to_the_containers_root_inside_and_to_its_ids_on_disk(
    machine: Machine, store: Path
) -> None:
    before = facts_of(str(store), SHOWN)

    def owners() -> set[tuple[int, int]]:
        build()
        os.chmod(f"/nix/store/{DIRECTORY}", 0o700)
        everything = [os.lstat(f"/nix/store/{path}") for path in (".", *below("/nix/store"))]
        return {(found.st_uid, found.st_gid) for found in everything}

    with machine.start(NAMES) as started:
        assert started.sandbox.inside(owners) == {(0, 0)}
    on_disk = {path.lstat().st_uid for path in machine.upper.rglob("*")}
    assert on_disk == {machine.first_id}
    assert (machine.upper / NEW / "bin/tool").read_text() == "made inside"
    assert facts_of(str(store), SHOWN) == before


def test_a_root_file_system_with_mapped_owners_is_written_as_the_hosts_root(
    store: Path, tmp_path: Path
) -> None:
    """As Incus mounts it, where the file system of the pool can map owners."""
    rootfs = make_rootfs(tmp_path / "on-disk", 0)
    (tmp_path / "mapped").mkdir()
    (tmp_path / "layer").mkdir()

    def host() -> tuple[str, int, int, str]:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        with user_namespace() as user, opened(open_tree(AT_FDCWD, str(rootfs))) as tree:
            mount_setattr(tree, MOUNT_ATTR_IDMAP, userns_fd=user)
            with opened(os.open(tmp_path / "mapped", os.O_PATH)) as place:
                move_mount(tree, place)
        with running(tmp_path / "mapped") as sandbox:
            attached(sandbox, store, tmp_path / "layer", NAMES)
            sandbox.inside(build)
            text = sandbox.inside(Path(f"/nix/store/{NEW}/link").read_text)
            inside = sandbox.inside(lambda: os.stat(f"/nix/store/{NEW}/bin/tool").st_uid)
        made = rootfs / f"nix/.inx/upper/{NEW}/bin/tool"
        return text, inside, made.stat().st_uid, made.read_text()

    assert apart(host) == ("of the host", 0, 0, "made inside")


def test_the_upper_layer_is_there_at_the_next_start_with_other_paths(machine: Machine) -> None:
    with machine.start(NAMES) as started:
        started.sandbox.inside(build)
    with machine.start({DIRECTORY, HIDDEN}) as started:
        assert started.sandbox.inside(lambda: set(os.listdir("/nix/store"))) == {
            DIRECTORY, HIDDEN, NEW,
        }  # fmt: skip
        text = started.sandbox.inside(Path(f"/nix/store/{NEW}/bin/tool").read_text)
        assert text == "made inside"


def test_the_state_of_nix_is_writable(machine: Machine) -> None:
    with machine.start(NAMES, change=CHANGE) as started:
        started.sandbox.inside(lambda: os.makedirs("/nix/var/nix/db"))
        started.sandbox.inside(lambda: os.mkdir("/nix/var/nix/gcroots/auto"))
        assert started.sandbox.inside(lambda: stat.S_IMODE(os.stat("/nix/store").st_mode)) == 0o1775
    assert generations.read(str(machine.rootfs), "web").system == SYSTEM


def test_nix_may_give_the_store_to_its_group(web: Machine) -> None:
    """And a start does not take it back."""
    with web.start(NAMES) as started:
        started.sandbox.inside(lambda: os.chown("/nix/store", 0, 30000))
        started.sandbox.inside(lambda: os.chmod("/nix/store", 0o1770))
    with web.start(NAMES) as started:
        found = started.sandbox.inside(partial(os.stat, "/nix/store"))
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (30000, 0o1770)


def delete(name: str) -> None:
    """As Nix deletes a path."""
    path = f"/nix/store/{name}"
    if os.path.isdir(path):
        for directory, _, _ in os.walk(path):
            os.chmod(directory, 0o755)
        os.rename(path, f"/nix/store/{name}-deleted")
        shutil.rmtree(f"/nix/store/{name}-deleted")
    else:
        os.unlink(path)


@pytest.mark.parametrize("name", [FILE, DIRECTORY])
def test_what_was_deleted_inside_stays_hidden_until_it_is_uncovered(
    machine: Machine, store: Path, name: str
) -> None:
    with machine.start(NAMES) as started:
        assert hidden_names(machine.rootfs, NAMES) == frozenset()
        try:
            started.sandbox.inside(partial(delete, name))
        except OSError as error:
            # A directory of the lower layer is not renamed; Nix deletes it in place then.
            assert error.errno == errno.EXDEV
            started.sandbox.inside(partial(shutil.rmtree, f"/nix/store/{name}"))
        assert hidden_names(machine.rootfs, NAMES) == {name}
    with machine.start(NAMES) as started:
        assert started.sandbox.inside(lambda: set(os.listdir("/nix/store"))) == NAMES - {name}
    assert hidden_names(machine.rootfs, NAMES) == {name}
    with machine.start(NAMES, uncovered={name, HIDDEN}) as started:
        assert started.sandbox.inside(lambda: facts_of("/nix/store", NAMES)) == facts_of(
            str(store), NAMES
        )
    assert list(machine.upper.iterdir()) == []


def change_what_is_shown() -> None:
    os.chmod(f"/nix/store/{FILE}", 0o666)
    Path(f"/nix/store/{FILE}").write_text("changed")
    for path in ("", "/bin", "/bin/deep"):
        os.chmod(f"/nix/store/{DIRECTORY}{path}", 0o755)
    os.unlink(f"/nix/store/{DEEP}")
    os.makedirs(f"/nix/store/{DIRECTORY}/" + "/".join(["d"] * 100))
    os.unlink(f"/nix/store/{name_of('in')}")
    os.symlink("elsewhere", f"/nix/store/{name_of('in')}")


def test_what_was_changed_inside_is_again_as_the_host_shows_it(
    machine: Machine, store: Path
) -> None:
    with machine.start(NAMES) as started:
        started.sandbox.inside(build)
        started.sandbox.inside(change_what_is_shown)
        assert started.sandbox.inside(Path(f"/nix/store/{FILE}").read_text) == "changed"
    with machine.start(NAMES) as started:
        inside = started.sandbox.inside(lambda: facts_of("/nix/store", NAMES))
        assert inside == facts_of(str(store), NAMES)
        trash = machine.rootfs / "nix/.inx/trash"
        assert {path.name for path in trash.glob("*/*")} == {FILE, DIRECTORY, name_of("in")}
        with Container(started.sandbox.pid, "web") as container:
            assert has_trash(str(machine.rootfs), "web")
            asyncio.run(empty_trash(container))
            assert list(trash.iterdir()) == []
            assert not has_trash(str(machine.rootfs), "web")
            asyncio.run(empty_trash(container))
    assert {path.name for path in machine.upper.iterdir()} == {NEW}


def test_a_path_that_was_built_inside_is_the_hosts_once_it_is_shown(
    machine: Machine, store: Path
) -> None:
    with machine.start({DIRECTORY}) as started:
        started.sandbox.inside(partial(build, HIDDEN))
        started.sandbox.inside(Path(f"/nix/store/{FILE}").touch)
    with machine.start(NAMES | {HIDDEN}) as started:
        inside = started.sandbox.inside(lambda: facts_of("/nix/store", NAMES | {HIDDEN}))
    assert inside == facts_of(str(store), NAMES | {HIDDEN})


def test_the_trash_of_any_depth_and_of_any_mode_is_emptied(web: Machine) -> None:
    def fill() -> None:
        os.makedirs("/nix/.inx/trash/x")
        os.chdir("/nix/.inx/trash/x")
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
        for number in range(50):
            Path(str(number)).touch()
            os.mkdir(f"d{number}", 0)
        os.symlink("/proc", "link")

    with running(web.rootfs) as sandbox:
        sandbox.inside(fill)
        with Container(sandbox.pid, "web") as container:
            asyncio.run(empty_trash(container))
        assert os.listdir(web.rootfs / "nix/.inx/trash") == []


def deep(work: Path) -> None:
    (work / "deep/deeper").mkdir(parents=True)


def full(work: Path) -> None:
    work.mkdir()
    for number in range(20):
        (work / str(number)).touch()


def test_what_is_left_in_the_work_directory_is_not_deleted_by_the_mount(machine: Machine) -> None:
    """The kernel would do it in mount(2), where nothing ends it, and root inside can fill it."""
    work, trash = machine.rootfs / "nix/.inx/work/work", machine.rootfs / "nix/.inx/trash"
    for make in (full, deep, Path.touch, lambda path: path.symlink_to("/mnt")):
        with machine.start(NAMES):
            assert not os.path.lexists(trash)
        shutil.rmtree(work)
        make(work)
        os.chown(work, machine.first_id, machine.first_id, follow_symlinks=False)
        with machine.start(NAMES) as started:
            (left,) = trash.glob("*/work")
            assert make is not full or len(os.listdir(left)) == 20
            started.sandbox.inside(build)
            started.sandbox.inside(partial(shutil.rmtree, f"/nix/store/{NEW}"))
        shutil.rmtree(trash)


@pytest.mark.parametrize("prefix", ["trusted.overlay", "user.overlay"])
def test_attributes_that_are_planted_in_the_upper_layer_open_nothing(
    machine: Machine, prefix: str
) -> None:
    """As in the archive of an instance from elsewhere: Incus keeps all attributes."""
    with machine.start(NAMES):
        pass
    directory, file = machine.upper / NEW, machine.upper / name_of("file-inside")
    for made in (directory, directory / "below"):
        made.mkdir()
    file.touch()
    for path in (machine.upper, directory, directory / "below"):
        os.setxattr(path, f"{prefix}.opaque", b"x")
        os.setxattr(path, f"{prefix}.redirect", f"/{HIDDEN}".encode())
    os.setxattr(file, f"{prefix}.metacopy", b"")
    os.setxattr(file, f"{prefix}.redirect", f"/{name_of('hidden-file')}".encode())
    os.setxattr(machine.upper, f"{prefix}.origin", b"\x00" * 40)
    for path in (machine.upper, directory, directory / "below", file):
        os.chown(path, machine.first_id, machine.first_id)

    def read() -> str:
        text = ""
        for path in below("/nix/store"):
            text += f"{path}\n"
            try:
                if stat.S_ISREG(os.lstat(f"/nix/store/{path}").st_mode):
                    text += Path(f"/nix/store/{path}").read_bytes()[:100].decode()
            except OSError as error:
                text += errno.errorcode[error.errno or 0]
        return text

    with machine.start(NAMES) as started:
        text = started.sandbox.inside(read)
    assert f"of {DIRECTORY}" in text
    assert "hidden" not in text


@pytest.mark.parametrize("target", ["/mnt", "../../mnt", "loop", "file"])
@pytest.mark.parametrize(
    "place", ["nix", "nix/.inx", "nix/.inx/upper", "nix/.inx/work", "nix/.inx/shown", "nix/store"]
)
def test_what_stands_in_the_place_of_a_directory_is_named(
    web: Machine, place: str, target: str
) -> None:
    path = web.rootfs / place
    path.parent.mkdir(parents=True, exist_ok=True)
    for parent in path.relative_to(web.rootfs).parents:
        os.chown(web.rootfs / parent, FIRST_ID, FIRST_ID)
    if target == "file":
        path.write_text("")
    else:
        path.symlink_to(path.name if target == "loop" else target)
    with pytest.raises(InstanceError, match=rf"^/{place} of 'web' cannot be used .*; remove it$"):
        with web.start(NAMES):
            pass
    assert os.listdir(web.rootfs / "mnt") == []
    if place == "nix/.inx/upper":
        with pytest.raises(InstanceError, match=rf"^/{place} of 'web' cannot be used"):
            hidden_names(web.rootfs, NAMES)


def test_a_link_in_the_place_of_the_trash_is_named(web: Machine) -> None:
    with web.start(NAMES) as started:
        started.sandbox.inside(change_what_is_shown)
    (web.rootfs / "nix/.inx/trash").symlink_to("/mnt")
    with pytest.raises(InstanceError, match=r"^/nix/\.inx/trash of 'web' cannot be used"):
        with web.start(NAMES):
            pass
    assert os.listdir(web.rootfs / "mnt") == []


def test_a_store_on_an_overlay_is_refused(web: Machine, store: Path, tmp_path: Path) -> None:
    def host() -> str:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        merged = overlay(tmp_path / "one", store)
        try:
            with replace(web, store=merged).start(NAMES):
                return ""
        except MountError as error:
            return str(error).replace(str(merged), "/nix/store")

    assert apart(host) == (
        "the store of 'web' cannot be writable: the host's /nix/store is on an overlay, and the "
        "kernel stacks two at most; use user.inx.store=isolated, or put the store on another file "
        "system"
    )


def on_overlay(place: Path) -> Path:
    (place / "lower").mkdir(parents=True)
    return overlay(place, place / "lower")


def on_ramfs(place: Path) -> Path:
    """It has no attributes of users."""
    place.mkdir()
    mount("none", str(place), "ramfs", 0)
    return place


@pytest.mark.parametrize(
    ("made", "kind", "reason"),
    [(on_overlay, "overlayfs", "Invalid argument"), (on_ramfs, "0x858458f6", "Operation not")],
)
def test_a_root_file_system_that_cannot_be_the_upper_layer_is_refused(
    store: Path, tmp_path: Path, made: Callable[[Path], Path], kind: str, reason: str
) -> None:
    (tmp_path / "layers").mkdir()

    def host() -> str:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        rootfs = make_rootfs(made(tmp_path / "pool"))
        try:
            with Machine(rootfs, store, tmp_path / "layers").start(NAMES):
                return ""
        except InstanceError as error:
            return str(error)

    text = apart(host)
    assert text.startswith(
        f"the root file system of 'web' ({kind}) cannot be the upper layer of an overlay ({reason}"
    )
    assert text.endswith("; move the instance to a pool on ext4, xfs, btrfs or ZFS 2.2, or use "
                         "user.inx.store=isolated")  # fmt: skip


@pytest.mark.parametrize("lacks", ["space", "inodes"])
def test_a_root_file_system_that_is_full_starts_or_is_named(
    store: Path, tmp_path: Path, lacks: str
) -> None:
    """With no space, what is there is shown; without inodes, the overlay has no work directory."""
    (tmp_path / "layers").mkdir()

    def fill(place: Path) -> None:
        for number in itertools.count():
            (place / str(number)).write_bytes(bytes(4096 if lacks == "space" else 0))

    def host() -> str:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        pool = tmp_path / "pool"
        pool.mkdir()
        mount("none", str(pool), "tmpfs", 0, "nr_inodes=1000,size=1m")
        machine = Machine(make_rootfs(pool), store, tmp_path / "layers")
        with machine.start(NAMES):
            pass
        with suppress(OSError):
            fill(pool)
        try:
            with machine.start(NAMES) as started:
                return started.sandbox.inside(lambda: " ".join(sorted(os.listdir("/nix/store"))))
        except InstanceError as error:
            return str(error)

    assert apart(host) == (
        " ".join(sorted(NAMES))
        if lacks == "space"
        else "the root file system of 'web' has no space for the store (No space left on device); "
        "free space, or give the root device a larger size"
    )


def test_a_second_try_in_the_same_container_is_like_the_first(
    machine: Machine, store: Path
) -> None:
    """If the system cannot be written, another one is booted."""
    with machine.start(NAMES) as started:
        other = machine.layers / "second"
        other.mkdir()
        attached(started.sandbox, store, other, NAMES | {HIDDEN})
        assert started.sandbox.inside(lambda: set(os.listdir("/nix/store"))) == NAMES | {HIDDEN}
        started.sandbox.inside(build)
        # No two overlays are over one upper layer.
        for place in ("/nix/store", "/nix/.inx"):
            started.sandbox.inside(partial(umount, place, MNT_DETACH))
            with pytest.raises(OSError, match="Invalid argument"):
                started.sandbox.inside(partial(umount, place, MNT_DETACH))
    assert (machine.upper / NEW / "bin/tool").exists()


def test_a_try_whose_store_was_not_recorded_is_unmounted(machine: Machine, store: Path) -> None:
    """The sidecar was killed: two overlays with one upper layer must not be mounted."""
    with machine.start(NAMES) as started:
        for number in range(2):
            other = machine.layers / f"again-{number}"
            other.mkdir()
            attached(started.sandbox, store, other, NAMES | {HIDDEN})
        started.sandbox.inside(build)
        assert started.sandbox.inside(lambda: set(os.listdir("/nix/.inx"))) == NAMES | {HIDDEN}
        for place in ("/nix/store", "/nix/.inx"):
            started.sandbox.inside(partial(umount, place, MNT_DETACH))
        assert started.sandbox.inside(lambda: os.listdir("/nix/store")) == []
        inside = started.sandbox.inside(lambda: os.listdir("/nix/.inx"))
        assert sorted(inside) == ["shown", "upper", "work"]
    assert (machine.upper / NEW / "bin/tool").exists()


def test_no_way_leads_to_a_path_that_is_not_shown(machine: Machine) -> None:
    def reached() -> list[str]:
        os.chdir(f"/nix/store/{DIRECTORY}")
        ways = [
            f"/nix/store/{HIDDEN}", f"../{HIDDEN}", f"/nix/.inx/{HIDDEN}", "up",
            f"/nix/store/{DIRECTORY}/up", f"/nix/.inx/../store/{HIDDEN}",
        ]  # fmt: skip
        found = [way for way in ways if os.path.exists(way)]
        for place in ("/nix/store", "/nix/.inx"):
            umount(place, MNT_DETACH)
            found += [path for path in below("/nix") if HIDDEN in path]
        found += os.listdir("/nix/store")
        return found

    with machine.start(NAMES) as started:
        assert started.sandbox.inside(reached) == []


def test_the_store_has_neither_devices_nor_suid(machine: Machine) -> None:
    with machine.start(NAMES) as started:
        flags = started.sandbox.inside(lambda: os.statvfs("/nix/store").f_flag)
        assert flags & (MS_RDONLY | MS_NOSUID | MS_NODEV) == MS_NOSUID | MS_NODEV
        with pytest.raises(PermissionError):
            started.sandbox.inside(Path(f"/nix/store/{DIRECTORY}/null").read_bytes)


def remount() -> None:
    plain("/nix/.inx", flags=MS_REMOUNT | MS_BIND)


def clear() -> None:
    with opened(os.open("/nix/.inx", os.O_PATH)) as fd:
        clear_attributes(fd, MOUNT_ATTR_RDONLY)


def remount_file_system() -> None:
    plain("/nix/.inx", flags=MS_REMOUNT)


@pytest.mark.parametrize("attempt", [remount, clear, remount_file_system])
def test_the_shown_layer_cannot_be_made_writable(
    machine: Machine, attempt: Callable[[], None]
) -> None:
    with machine.start(NAMES) as started:
        with pytest.raises(OSError) as caught:
            started.sandbox.inside(attempt)
        assert caught.value.errno == errno.EPERM


def test_the_mount_table_inside_names_nothing_of_the_host(machine: Machine, store: Path) -> None:
    with machine.start(NAMES) as started:
        for table in ("/proc/self/mountinfo", "/proc/self/mounts"):
            text = started.sandbox.inside(partial(with_proc, Path(table).read_text))
            lines = [line for line in text.splitlines() if "overlay" in line]
            assert len(lines) == 2
            assert any("lowerdir=/nix/shown,upperdir=/nix/root/nix/.inx/upper" in line
                       and "userxattr" in line for line in lines)  # fmt: skip
            assert "0" * 32 not in text and str(store) not in text
            assert not any(str(machine.layers) in line for line in lines)


def test_the_host_sees_no_mount_and_no_descriptor_is_left(
    machine: Machine,
) -> None:
    before = mount_table()
    with machine.start(NAMES):
        assert mount_table() == before
        assert os.listdir(paths.RUN) == []
    open_before = descriptors()
    with machine.start(NAMES):
        pass
    (machine.rootfs / "nix/.inx/work").rename(machine.rootfs / "nix/.inx/other")
    (machine.rootfs / "nix/.inx/work").touch()
    with pytest.raises(InstanceError):
        with machine.start(NAMES):
            pass
    assert descriptors() == open_before


def test_what_is_shown_is_recorded(machine: Machine) -> None:
    first, second = (f"/nix/store/{name_of(name)}" for name in ("first", "second"))
    with machine.start(NAMES, record=Record({first: "seal"})):
        pass
    assert shown_record.read(str(machine.rootfs), "web") == {first: "seal"}
    with machine.start(NAMES, record=Record({second: "other"}, (first,))):
        pass
    assert shown_record.read(str(machine.rootfs), "web") == {second: "other"}
    owners = {path.lstat().st_uid for path in (machine.rootfs / "nix/.inx/shown").iterdir()}
    assert owners == {machine.first_id}
    assert stat.S_IMODE((machine.rootfs / "nix/.inx").stat().st_mode) == 0o700


def test_what_stands_in_the_place_of_a_link_of_the_record_is_named(web: Machine) -> None:
    with web.start(NAMES):
        pass
    (web.rootfs / "nix/.inx/shown" / name_of("first")).mkdir()
    message = rf"^/nix/\.inx/shown/{name_of('first')} of 'web' cannot be used .*; remove it$"
    with pytest.raises(InstanceError, match=message):
        with web.start(NAMES, record=Record({f"/nix/store/{name_of('first')}": "seal"})):
            pass


def test_roots_of_the_collector_inside_are_those_of_this_start(machine: Machine) -> None:
    place = machine.rootfs / "nix/var/nix/gcroots/inx"
    with machine.start(NAMES) as started:
        assert os.listdir(place) == ["booted"]
        started.sandbox.inside(lambda: os.symlink("/old", "/nix/var/nix/gcroots/inx/old"))
        started.sandbox.inside(Path("/nix/var/nix/gcroots/inx/file").touch)
    with machine.start(NAMES):
        assert {path.name for path in place.iterdir()} == {"booted", "file"}
        assert os.readlink(place / "booted") == BOOTED
        assert (place / "booted").lstat().st_uid == machine.first_id
    (place / "booted").unlink()
    (place / "booted").mkdir()
    message = r"^/nix/var/nix/gcroots/inx/booted of 'web' cannot be used"
    with pytest.raises(InstanceError, match=message):
        with machine.start(NAMES):
            pass


def test_an_entry_that_is_added_to_the_layer_appears_in_the_running_container(
    machine: Machine, store: Path
) -> None:
    def seen() -> bool:
        return os.path.exists(f"/nix/store/{HIDDEN}/bin")

    with machine.start(NAMES) as started:
        assert not started.sandbox.inside(seen)
        entries = started.layer / "entries"
        assert set(os.listdir(entries)) == NAMES
        (entries / HIDDEN).mkdir()
        os.setxattr(entries / HIDDEN, "trusted.overlay.redirect", f"/{HIDDEN}".encode())
        device = started.store.view_device
        with opened(os.open(f"/proc/{started.sandbox.pid}/root/nix/.inx", os.O_RDONLY)) as view:
            drop_cached_names(view, device, read_only=True)

        def drop() -> None:
            unshare(CLONE_NEWNS)
            with opened(os.open("/nix/store", os.O_RDONLY)) as merged:
                drop_cached_names(merged, os.fstat(merged).st_dev)

        started.sandbox.inside(drop)
        assert started.sandbox.inside(seen)


@contextmanager
def with_database(
    machine: Machine, names: frozenset[str], uncovered: frozenset[str] = frozenset()
) -> Iterator[Sandbox]:
    """A start that registers what is shown and not deleted inside."""
    hidden = hidden_names(machine.rootfs, names) - uncovered
    rows = encode(
        [Registration(name, "sha256:x", 1, None, "", "", ()) for name in sorted(names - hidden)],
        "uuid",
    )
    with machine.start(names, uncovered=uncovered) as started:
        with Container(started.sandbox.pid, "web") as container:
            asyncio.run(written(container, rows))
        assert own_database.is_registered(str(machine.rootfs), "web", rows)
        yield started.sandbox


async def written(container: Container, rows: Rows) -> None:
    with opened(await open_nix(container)) as nix:
        user = None if container.privileged else container.user
        await own_database.write(nix, user, rows, container.name, starts=True)


def valid_and_there() -> tuple[Set[str], Set[str]]:
    with closing(sqlite3.connect("/nix/var/nix/db/db.sqlite")) as db:
        valid = {os.path.basename(path) for (path,) in db.execute("select path from ValidPaths")}
    return valid, set(os.listdir("/nix/store"))


def register(name: str) -> None:
    with closing(sqlite3.connect("/nix/var/nix/db/db.sqlite")) as db:
        add = "insert into ValidPaths (path, hash, registrationTime) values (?, 'x', 1)"
        db.execute(add, (f"/nix/store/{name}",))
        db.commit()


def test_the_database_names_what_is_there_after_each_start(machine: Machine) -> None:
    with with_database(machine, NAMES) as sandbox:
        assert sandbox.inside(valid_and_there) == (NAMES, NAMES)
        sandbox.inside(build)
        sandbox.inside(partial(register, NEW))
        sandbox.inside(partial(os.unlink, f"/nix/store/{FILE}"))
    expected = NAMES - {FILE} | {NEW}
    with with_database(machine, NAMES) as sandbox:
        assert sandbox.inside(valid_and_there) == (expected, expected)
        sandbox.inside(partial(shutil.rmtree, f"/nix/store/{NEW}"))
    with with_database(machine, NAMES | {HIDDEN}, frozenset({FILE})) as sandbox:
        assert sandbox.inside(valid_and_there) == (NAMES | {HIDDEN}, NAMES | {HIDDEN})
    with with_database(machine, frozenset({HIDDEN})) as sandbox:
        assert sandbox.inside(valid_and_there) == ({HIDDEN}, {HIDDEN})
