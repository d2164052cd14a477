"""A store of its own shows more while it is in use, and no mount is made for it."""

import asyncio
import errno
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Set
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from support.containers import MNT_DETACH, Sandbox, umount
from support.fuse import answering, hanging
from support.mounts import mount_table

from inx_sidecar.base.errors import InstanceError, MountError, SystemMissingError
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, mount, unshare
from inx_sidecar.nix import shown_record
from inx_sidecar.nix.shown_record import Record
from kernel.own import BOOTED, NEXT, Machine, Started, hidden_names
from kernel.test_mounts import descriptors
from kernel.test_overlay import fact
from kernel.views import (
    DIRECTORY,
    FILE,
    HIDDEN,
    ODD,
    SHOWN,
    below,
    make_store,
    name_of,
    steps,
    with_proc,
)

pytestmark = [pytest.mark.isolated, pytest.mark.usefixtures("run_directory")]

NAMES: Final = frozenset({DIRECTORY, name_of("program")})
MORE: Final = frozenset({FILE, HIDDEN, ODD, name_of("in"), name_of("empty"), DIRECTORY})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    make_store(path)
    return path


@pytest.fixture(params=[False, True], ids=["unprivileged", "privileged"])
def machine(request: pytest.FixtureRequest, store: Path, tmp_path: Path) -> Machine:
    return Machine.made(tmp_path, store, privileged=request.param)


@pytest.fixture
def web(store: Path, tmp_path: Path) -> Iterator[Started]:
    """A running instance, unprivileged."""
    with Machine.made(tmp_path, store).start(NAMES) as started:
        yield started


def facts_of(top: str, names: Set[str]) -> dict[str, object]:
    return {path: fact(f"{top}/{path}") for path in below(top) if path.split("/")[0] in names}


def listed(sandbox: Sandbox) -> Set[str]:
    return set(sandbox.inside(partial(os.listdir, "/nix/store")))


def valid() -> Set[str]:
    with closing(sqlite3.connect("/nix/var/nix/db/db.sqlite")) as db:
        return {os.path.basename(path) for (path,) in db.execute("select path from ValidPaths")}


def test_new_paths_are_seen_by_whoever_has_looked_for_them_before(
    machine: Machine, store: Path
) -> None:
    def life() -> Iterator[tuple[Set[str], Set[str]]]:
        unshare(CLONE_NEWNS)
        while True:
            seen = {name for name in SHOWN | {HIDDEN} if os.path.lexists(f"/nix/store/{name}")}
            yield seen, set(os.listdir("/nix/store"))

    with machine.start(NAMES) as started, steps(started.sandbox, life) as step:
        assert step() == (NAMES, NAMES)
        before = descriptors()
        started.grow(MORE)
        assert descriptors() == before
        assert step() == (NAMES | MORE, NAMES | MORE)
        assert listed(started.sandbox) == NAMES | MORE
        inside = started.sandbox.inside(lambda: facts_of("/nix/store", NAMES | MORE))
        assert inside == facts_of(str(store), NAMES | MORE)
        assert started.sandbox.inside(valid) == MORE


def test_no_mount_is_made(machine: Machine) -> None:
    def mounts() -> list[str]:
        lines = with_proc(Path("/proc/self/mountinfo").read_text).splitlines()
        return [line.split(" ", 2)[2] for line in lines]

    with machine.start(NAMES) as started:
        host, inside = mount_table(), started.sandbox.inside(mounts)
        started.grow(MORE)
        assert mount_table() == host
        # Only what makes each entry of /proc differ may differ.
        after = started.sandbox.inside(mounts)
        assert len(after) == len(inside)
        assert [line for line in after if "overlay" in line] == [
            line for line in inside if "overlay" in line
        ]


def test_what_was_made_inside_is_kept(machine: Machine) -> None:
    with machine.start(NAMES) as started:
        started.sandbox.inside(lambda: os.makedirs("/nix/store/own/bin"))
        started.grow(MORE)
        assert listed(started.sandbox) == NAMES | MORE | {"own"}
        started.sandbox.inside(Path("/nix/store/own/bin/new").touch)
        flags = started.sandbox.inside(lambda: os.statvfs("/nix/.inx").f_flag)
        assert flags & os.ST_RDONLY


def test_what_was_deleted_inside_is_shown_again(machine: Machine, store: Path) -> None:
    def delete() -> None:
        os.unlink(f"/nix/store/{FILE}")
        shutil.rmtree(f"/nix/store/{HIDDEN}")
        assert not os.path.lexists(f"/nix/store/{FILE}")

    with machine.start(NAMES | MORE) as started:
        started.sandbox.inside(delete)
        assert hidden_names(machine.rootfs, MORE) == {FILE, HIDDEN}
        started.grow({FILE, HIDDEN})
        inside = started.sandbox.inside(lambda: facts_of("/nix/store", NAMES | MORE))
        assert inside == facts_of(str(store), NAMES | MORE)


def test_what_was_deleted_inside_while_it_was_in_use_stays_deleted(machine: Machine) -> None:
    """The kernel refuses to show it: its inode is still that of what was deleted (ESTALE)."""

    def life() -> Iterator[tuple[Set[str], Set[str]]]:
        used = os.open(f"/nix/store/{DIRECTORY}/bin/deep/file", os.O_RDONLY)
        shutil.rmtree(f"/nix/store/{DIRECTORY}")
        os.unlink(f"/nix/store/{FILE}")
        for _ in range(2):
            names = os.listdir("/nix/store")
            yield set(names), {name for name in names if os.lstat(f"/nix/store/{name}")}
        os.close(used)
        yield set(), set()

    with machine.start(NAMES | {FILE}) as started:
        with steps(started.sandbox, life) as step:
            left = NAMES - {DIRECTORY}
            assert step() == (left, left)
            with pytest.raises(MountError, match="do not appear in the store of 'web'; restart"):
                started.grow({DIRECTORY, FILE, ODD})
            assert step() == (left | {ODD}, left | {ODD})
            assert hidden_names(machine.rootfs, MORE) == {DIRECTORY, FILE}
            step()
        started.grow({DIRECTORY, FILE, ODD})
        assert listed(started.sandbox) == NAMES | {FILE, ODD}


def test_growing_again_completes_what_was_left_half_made(web: Started, store: Path) -> None:
    entries = web.layer / "entries"
    web.grow({FILE})
    (entries / HIDDEN).mkdir()
    (entries / ODD).mkdir()
    (entries / name_of("empty")).touch()
    for _ in range(2):
        web.grow(MORE)
        inside = web.sandbox.inside(lambda: facts_of("/nix/store", NAMES | MORE))
        assert inside == facts_of(str(store), NAMES | MORE)
    owners = {path.lstat().st_uid for path in (entries, *entries.iterdir())}
    assert owners == {web.sandbox.first_id}


def test_the_record_is_written(web: Started) -> None:
    path = f"/nix/store/{FILE}"

    async def grow() -> None:
        async with web.grown({FILE}, Record({path: "seal"}, ("/nix/store/other",))):
            pass

    asyncio.run(grow())
    assert shown_record.read(str(web.sandbox.rootfs), "web") == {path: "seal"}


def test_what_is_shown_is_kept_from_the_collector_inside(web: Started) -> None:
    place = web.sandbox.rootfs / "nix/var/nix/gcroots/inx"
    assert {link.name: os.readlink(link) for link in place.iterdir()} == {"booted": BOOTED}
    web.grow(MORE)
    links = {link.name: os.readlink(link) for link in place.iterdir()}
    assert links == {"booted": BOOTED, "next": NEXT}


def lock(kind: int) -> int:
    fd = os.open("/nix/var/nix/gc.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, kind | fcntl.LOCK_NB)
    return fd


def test_no_collection_runs_inside_until_the_new_paths_are_rooted(machine: Machine) -> None:
    async def grow(started: Started) -> None:
        async with started.grown(MORE):
            with pytest.raises(BlockingIOError):
                started.sandbox.inside(partial(lock, fcntl.LOCK_EX))
            started.sandbox.inside(partial(lock, fcntl.LOCK_SH))

    with machine.start(NAMES) as started:
        started.sandbox.inside(lambda: os.makedirs("/nix/var/nix", exist_ok=True))
        asyncio.run(grow(started))
        started.sandbox.inside(partial(lock, fcntl.LOCK_EX))
        owner = (machine.rootfs / "nix/var/nix/gc.lock").stat().st_uid
        assert owner == machine.first_id


def test_the_lock_is_given_back_when_activation_fails(web: Started) -> None:
    async def grow() -> None:
        async with web.grown(MORE):
            raise InstanceError("it failed")

    with pytest.raises(InstanceError, match="it failed"):
        asyncio.run(grow())
    web.sandbox.inside(partial(lock, fcntl.LOCK_EX))


def test_a_collection_that_does_not_end_is_named(web: Started) -> None:
    def life() -> Iterator[None]:
        fd = lock(fcntl.LOCK_EX)
        yield None
        os.close(fd)
        yield None

    with steps(web.sandbox, life) as step:
        step()
        with pytest.raises(InstanceError) as caught:
            web.grow(MORE, lock_seconds=0.2)
        assert str(caught.value) == (
            "a garbage collection inside 'web' does not end, or a file system there does not "
            "answer, so the new system cannot be shown; "
            "end it, or set user.inx.update to try again"
        )
        step()
        web.grow(MORE)
    assert listed(web.sandbox) == NAMES | MORE


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_what_stands_in_the_place_of_the_lock_is_named(web: Started, kind: str) -> None:
    path = web.sandbox.rootfs / "nix/var/nix/gc.lock"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("../target")
    else:
        path.mkdir()
    with pytest.raises(InstanceError, match=r"^/nix/var/nix/gc\.lock of 'web' cannot be used"):
        web.grow(MORE)
    assert not (path.parent.parent / "target").exists()


def unmounted() -> None:
    umount("/nix/.inx", MNT_DETACH)


def covered() -> None:
    mount("mine", "/nix/.inx", "tmpfs", 0)


def covered_by_another_overlay() -> None:
    os.mkdir("/mnt/lower")
    os.mkdir("/mnt/other")
    mount("mine", "/nix/.inx", "overlay", 0, "lowerdir=/mnt/lower:/mnt/other,userxattr")


def removed() -> None:
    umount("/nix/.inx", MNT_DETACH)
    os.rename("/nix/.inx", "/nix/elsewhere")


@pytest.mark.parametrize("attack", [unmounted, covered, covered_by_another_overlay, removed])
def test_another_file_system_in_the_place_of_the_shown_layer_is_left_alone(
    web: Started, attack: Callable[[], None]
) -> None:
    """To reconfigure it would make the file system of the pool read-only for all instances."""
    web.sandbox.inside(attack)
    with pytest.raises(InstanceError) as caught:
        web.grow(MORE)
    assert str(caught.value) == (
        "/nix/.inx of 'web' was unmounted inside, so the new system cannot be shown; restart the "
        "instance"
    )
    web.sandbox.inside(Path("/mnt/writable").touch)
    (web.host_store.parent / "writable").touch()
    assert set(os.listdir(web.layer / "entries")) == NAMES
    if attack is covered:
        web.sandbox.inside(Path("/nix/.inx/writable").touch)


@pytest.mark.parametrize("kind", ["link", "file", "gone"])
@pytest.mark.parametrize("name", ["upper", "shown"])
def test_what_replaces_a_directory_of_inx_meanwhile_is_named(
    web: Started, name: str, kind: str
) -> None:
    """Root inside reaches them by another mount of its root directory."""
    place = web.sandbox.rootfs / "nix/.inx"
    (place / name).rename(place / "away")
    if kind == "link":
        (place / name).symlink_to("/mnt")
    elif kind == "file":
        (place / name).touch()
    with pytest.raises(InstanceError) as caught:
        web.grow(MORE)
    told = str(caught.value)
    if kind == "gone":
        assert told.startswith("/nix/.inx of 'web' was unmounted inside")
    else:
        assert told.startswith(f"/nix/.inx/{name} of 'web' cannot be used") and "remove it" in told
    assert os.listdir(web.sandbox.rootfs / "mnt") == []
    assert set(os.listdir(web.layer / "entries")) == NAMES


def test_a_root_directory_that_never_answers_ends_the_update(web: Started) -> None:
    web.grow([])
    with (
        hanging(web, "/"),
        pytest.raises(InstanceError, match=r"^a garbage collection inside 'web"),
    ):
        web.grow(MORE, lock_seconds=0.5)
    web.sandbox.inside(partial(umount, "/", MNT_DETACH))
    web.grow(MORE)
    assert listed(web.sandbox) == NAMES | MORE


def test_a_link_in_the_place_of_the_shown_layer_is_not_followed(web: Started) -> None:
    web.sandbox.inside(removed)
    (web.sandbox.rootfs / "nix/.inx").symlink_to("/nix/store")
    with pytest.raises(InstanceError, match=r"^/nix/\.inx of 'web' cannot be used"):
        web.grow(MORE)


@pytest.mark.parametrize("covers", [False, True], ids=["unmounted", "covered"])
def test_a_store_that_is_not_there_any_more_is_told(web: Started, covers: bool) -> None:
    def attack() -> None:
        if covers:
            mount("mine", "/nix/store", "tmpfs", 0)
        else:
            umount("/nix/store", MNT_DETACH)

    web.sandbox.inside(attack)
    with pytest.raises(MountError) as caught:
        web.grow(MORE)
    assert str(caught.value) == (
        "the new paths do not appear in the store of 'web'; restart the instance"
    )


def test_a_path_that_is_not_in_the_store_is_named(web: Started) -> None:
    with pytest.raises(SystemMissingError, match=f"^{name_of('gone')} is not in the store"):
        web.grow({name_of("gone")})


def test_a_path_that_a_build_inside_has_begun_is_named(web: Started) -> None:
    web.sandbox.inside(lambda: os.makedirs(f"/nix/store/{ODD}/bin"))
    with pytest.raises(InstanceError, match=r"^a build inside 'web' has begun to make "):
        web.grow(MORE)
    assert not web.sandbox.inside(lambda: os.path.exists(f"/nix/store/{ODD}/bin/deep"))


def test_a_path_that_was_built_inside_stays_as_it_is(web: Started) -> None:
    """Neither its files nor its registration become a mixture of both."""

    def build() -> None:
        os.makedirs(f"/nix/store/{ODD}/bin/other")
        Path(f"/nix/store/{FILE}").write_text("built inside")
        with closing(sqlite3.connect("/nix/var/nix/db/db.sqlite")) as db:
            add = "insert into ValidPaths (path, hash, registrationTime) values (?, 'own', 1)"
            for name in (ODD, FILE):
                db.execute(add, (f"/nix/store/{name}",))
            db.commit()

    web.grow(NAMES)
    web.sandbox.inside(build)
    web.grow(MORE)
    assert web.sandbox.inside(lambda: sorted(below(f"/nix/store/{ODD}"))) == ["bin", "bin/other"]
    assert web.sandbox.inside(Path(f"/nix/store/{FILE}").read_text) == "built inside"
    assert listed(web.sandbox) == NAMES | MORE
    with closing(sqlite3.connect(web.sandbox.rootfs / "nix/var/nix/db/db.sqlite")) as db:
        query = "select path from ValidPaths where hash = 'own' order by path"
        assert db.execute(query).fetchall() == [(f"/nix/store/{n}",) for n in sorted([ODD, FILE])]


def test_a_store_whose_layer_is_gone_is_told(web: Started) -> None:
    web.layer.rename(web.layer.with_name("gone"))
    with pytest.raises(MountError, match=r"^cannot open .*/entries: No such file"):
        web.grow(MORE)


def test_the_upper_layer_is_still_refused_to_be_the_hosts(web: Started, store: Path) -> None:
    """Nothing of the host is written through the store, also for a path that was added."""
    before = facts_of(str(store), SHOWN | {HIDDEN})
    web.grow(MORE)

    def write() -> None:
        os.chmod(f"/nix/store/{FILE}", 0o666)
        Path(f"/nix/store/{FILE}").write_text("changed")
        os.unlink(f"/nix/store/{name_of('in')}")
        with pytest.raises(OSError) as caught:
            Path(f"/nix/.inx/{FILE}").write_text("changed")
        assert caught.value.errno == errno.EROFS

    web.sandbox.inside(write)
    assert facts_of(str(store), SHOWN | {HIDDEN}) == before


def test_the_sidecar_itself_asks_no_file_system_of_the_container(web: Started) -> None:
    """Whoever closes a file waits for the file system, as long as that likes."""
    inside = {"nix", "var", ".inx", "shown", "upper", "store"}
    web.grow([])
    with answering(web.sandbox, "/", inside) as requests:
        with pytest.raises(InstanceError) as caught:
            web.grow(MORE)
        processes = requests.processes()
        assert processes and os.getpid() not in processes
    assert str(caught.value) == (
        "another file system is mounted over the root directory of 'web', so the new system cannot "
        "be shown; restart the instance"
    )
    web.sandbox.inside(partial(umount, "/", MNT_DETACH))
    web.grow(MORE)
    assert listed(web.sandbox) == NAMES | MORE
