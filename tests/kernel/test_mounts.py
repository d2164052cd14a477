"""A container sees directories of the host as their owner, and can never write to them."""

import asyncio
import errno
import fcntl
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.containers import (
    FIRST_ID,
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_REMOUNT,
    MS_SHARED,
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
from inx_sidecar.container.locked_mounts import HostDirectory
from inx_sidecar.container.mounts import attach_mounts
from inx_sidecar.container.namespaces import Container
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_REC,
    mount,
    move_mount,
    open_tree,
    opened,
    unshare,
)
from inx_sidecar.nix import generation_changes, generations
from inx_sidecar.nix.generation_changes import Append

pytestmark = [pytest.mark.main, pytest.mark.usefixtures("run_directory")]

SYSTEM = f"/nix/store/{'0' * 32}-nixos-system-web"
CHANGE = Append(SYSTEM, "fingerprint", 5)
LOCKED = (errno.EPERM, errno.EACCES, errno.EROFS)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory of the host; its files belong to root."""
    path = tmp_path / "store"
    path.mkdir()
    (path / "file").write_text("of the host")
    (path / "file").chmod(0o640)
    (path / "suid").touch()
    (path / "suid").chmod(0o4755)
    return path


def attached(
    sandbox: Sandbox,
    store: Path,
    change: generation_changes.Change | None = CHANGE,
    to: str = "nix/store",
) -> bool:
    with Container(sandbox.pid, "web") as container:
        return asyncio.run(attach_mounts(container, [HostDirectory(str(store), to)], change))


def test_the_containers_root_reads_and_owns_what_the_hosts_root_owns(
    sandbox: Sandbox, store: Path
) -> None:
    assert attached(sandbox, store) is True

    def look() -> tuple[str, int, int]:
        found = os.stat("/nix/store/file")
        return Path("/nix/store/file").read_text(), found.st_uid, found.st_gid

    assert sandbox.inside(look) == ("of the host", 0, 0)


def test_the_mount_is_read_only_without_devices_and_without_suid(
    sandbox: Sandbox, store: Path
) -> None:
    attached(sandbox, store)
    flags = sandbox.inside(lambda: os.statvfs("/nix/store").f_flag)
    assert flags & (MS_RDONLY | MS_NOSUID | MS_NODEV) == MS_RDONLY | MS_NOSUID | MS_NODEV
    with pytest.raises(OSError, match="Read-only"):
        sandbox.inside(lambda: Path("/nix/store/new").touch())
    with pytest.raises(OSError, match="Read-only"):
        sandbox.inside(lambda: Path("/nix/store/file").chmod(0o777))


def remount() -> None:
    plain("/nix/store", flags=MS_REMOUNT | MS_BIND)


def remount_suid() -> None:
    plain("/nix/store", flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def remount_file_system() -> None:
    plain("/nix/store", flags=MS_REMOUNT)


def clear(attribute: int, path: str = "/nix/store") -> None:
    with opened(os.open(path, os.O_PATH)) as fd:
        clear_attributes(fd, attribute)


def clear_read_only() -> None:
    clear(MOUNT_ATTR_RDONLY)


def clear_nosuid() -> None:
    clear(MOUNT_ATTR_NOSUID)


def clear_nodev() -> None:
    clear(MOUNT_ATTR_NODEV)


def bind_and_remount() -> None:
    plain("/mnt", "/nix/store", MS_BIND)
    plain("/mnt", flags=MS_REMOUNT | MS_BIND)


def bind_recursively_and_clear() -> None:
    plain("/mnt", "/nix/store", MS_BIND | MS_REC)
    clear(MOUNT_ATTR_RDONLY, "/mnt")


def clone_and_clear() -> None:
    with opened(open_tree(AT_FDCWD, "/nix/store")) as tree:
        clear_attributes(tree, MOUNT_ATTR_RDONLY)


def move_a_clone_and_clear() -> None:
    with (
        opened(open_tree(AT_FDCWD, "/nix/store")) as tree,
        opened(os.open("/mnt", os.O_PATH)) as place,
    ):
        move_mount(tree, place)
    clear(MOUNT_ATTR_RDONLY, "/mnt")


def new_mount_namespace() -> None:
    unshare(CLONE_NEWNS)
    plain("/", flags=MS_REC | MS_PRIVATE)
    remount()


def new_user_namespace() -> None:
    unshare(CLONE_NEWUSER)
    unshare(CLONE_NEWNS)
    remount()


def new_user_namespace_and_clone() -> None:
    unshare(CLONE_NEWUSER)
    unshare(CLONE_NEWNS)
    clone_and_clear()


ATTEMPTS = [
    remount, remount_suid, remount_file_system, clear_read_only, clear_nosuid, clear_nodev,
    bind_and_remount, bind_recursively_and_clear, clone_and_clear, move_a_clone_and_clear,
    new_mount_namespace, new_user_namespace, new_user_namespace_and_clone,
]  # fmt: skip


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: str(attempt.__name__))
def test_no_flag_can_be_taken_off(
    sandbox: Sandbox, store: Path, attempt: Callable[[], None]
) -> None:
    attached(sandbox, store)
    with pytest.raises(OSError) as caught:
        sandbox.inside(attempt)
    assert caught.value.errno == errno.EPERM, caught.value
    assert (store / "file").read_text() == "of the host"


def test_the_attempts_succeed_on_a_mount_that_is_not_locked(
    unprivileged: Sandbox, store: Path
) -> None:
    """Otherwise the failures of the attempts would prove nothing."""

    def inside() -> None:
        os.makedirs("/nix/store")
        plain("/nix/store", "/nix/store", MS_BIND)
        for attempt in (
            clear_read_only,
            clear_nosuid,
            clear_nodev,
            remount_suid,
            remount,
            bind_and_remount,
            clone_and_clear,
        ):
            attempt()
        Path("/nix/store/new").touch()

    unprivileged.inside(inside)


def test_under_the_mount_lies_only_an_empty_directory(sandbox: Sandbox, store: Path) -> None:
    attached(sandbox, store)

    def uncover() -> list[str]:
        umount("/nix/store", MNT_DETACH)
        return os.listdir("/nix/store")

    try:
        assert sandbox.inside(uncover) == []
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.EPERM)
    assert (store / "file").exists()


def test_the_host_never_sees_a_mount(sandbox: Sandbox, store: Path) -> None:
    before = mount_table()
    attached(sandbox, store)
    assert mount_table() == before
    assert os.listdir(paths.RUN) == []


def test_a_shared_mount_of_the_host_and_its_copy_are_no_peers(
    unprivileged: Sandbox, store: Path
) -> None:
    """systemd makes every mount shared; a mount below one copy shows below all copies."""
    for place in ("inside", "outside"):
        (store / place).mkdir()

    def host() -> tuple[bool, list[str]]:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        mount(str(store), str(store), "", MS_BIND)
        mount("none", str(store), "", MS_SHARED)
        attached(unprivileged, store)
        before = mount_table()
        unprivileged.inside(lambda: mount("tmpfs", "/nix/store/inside", "tmpfs", 0))
        unseen = mount_table() == before
        mount("tmpfs", f"{store}/outside", "tmpfs", 0)
        (store / "outside/mark").touch()
        return unseen, unprivileged.inside(lambda: os.listdir("/nix/store/outside"))

    assert apart(host) == (True, [])


def test_the_state_of_nix_is_read_only_but_for_profiles_and_roots(
    sandbox: Sandbox, store: Path
) -> None:
    attached(sandbox, store)

    def write() -> None:
        Path("/nix/var/nix/profiles/mine").touch()
        Path("/nix/var/nix/gcroots/auto").mkdir()

    sandbox.inside(write)
    assert (sandbox.rootfs / "nix/var/nix/profiles/mine").stat().st_uid == sandbox.first_id
    for path in ("/nix/var/nix/db", "/nix/var/nix/daemon-socket", "/nix/var/nix/x"):
        with pytest.raises(OSError, match="Read-only"):
            sandbox.inside(partial(os.mkdir, path))


def test_the_writable_directories_hold_no_devices_and_no_suid(
    sandbox: Sandbox, store: Path
) -> None:
    attached(sandbox, store)
    for path in ("/nix/var/nix/profiles", "/nix/var/nix/gcroots"):
        flags = sandbox.inside(partial(os.statvfs, path)).f_flag
        assert flags & (MS_RDONLY | MS_NOSUID | MS_NODEV) == MS_NOSUID | MS_NODEV


def test_the_daemon_socket_can_stand_on_the_read_only_state(sandbox: Sandbox, store: Path) -> None:
    attached(sandbox, store, to="nix/var/nix/daemon-socket")
    assert sandbox.inside(lambda: sorted(os.listdir("/nix/var/nix/daemon-socket")))[0] == "file"
    with pytest.raises(OSError, match="Read-only"):
        sandbox.inside(lambda: Path("/nix/var/nix/daemon-socket/new").touch())


def test_a_place_in_dev_leaves_the_root_file_system_clean(sandbox: Sandbox, store: Path) -> None:
    """/dev is a tmpfs of the container."""
    attached(sandbox, store, to="dev/.inx")
    assert "file" in sandbox.inside(lambda: os.listdir("/dev/.inx"))
    assert list((sandbox.rootfs / "dev").iterdir()) == []


def test_several_directories_at_once(sandbox: Sandbox, store: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mark").touch()
    directories = [
        HostDirectory(str(store), "nix/store"),
        HostDirectory(str(tmp_path / "other"), "dev/.inx"),
    ]
    with Container(sandbox.pid, "web") as container:
        asyncio.run(attach_mounts(container, directories, None))
    found = sandbox.inside(lambda: (os.listdir("/dev/.inx"), sorted(os.listdir("/nix/store"))))
    assert found == (["mark"], ["file", "suid"])


def test_nobody_inside_owns_what_is_foreign_and_so_takes_no_lease(
    unprivileged: Sandbox, store: Path
) -> None:
    """With a lease, one container could hold all others that open the same file."""
    directories = [
        HostDirectory(str(store), "nix/store"),
        HostDirectory(str(store), "dev/.inx", foreign=True),
    ]
    (store / "file").chmod(0o444)
    with Container(unprivileged.pid, "web") as container:
        assert asyncio.run(attach_mounts(container, directories, None)) is True

    def lease(path: str) -> None:
        fd = os.open(path, os.O_RDONLY)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)

    owner = unprivileged.inside(lambda: os.stat("/dev/.inx/file").st_uid)
    assert owner == 65534
    with pytest.raises(PermissionError):
        unprivileged.inside(lambda: lease("/dev/.inx/file"))


def test_a_generation_belongs_to_the_containers_root(sandbox: Sandbox, store: Path) -> None:
    attached(sandbox, store)
    profiles = sandbox.rootfs / "nix/var/nix/profiles"
    owners = {path.lstat().st_uid for path in (profiles, *profiles.iterdir())}
    assert owners == {sandbox.first_id}
    found = generations.read(str(sandbox.rootfs), "web")
    assert (found.system, found.fingerprint) == (SYSTEM, "fingerprint")
    assert oct(profiles.stat().st_mode) == oct(0o40755)


def test_without_a_change_no_generation_is_written(sandbox: Sandbox, store: Path) -> None:
    attached(sandbox, store, change=None)
    assert os.listdir(sandbox.rootfs / "nix/var/nix/profiles") == []


def planted(rootfs: Path, place: str, target: str) -> None:
    path = rootfs / place
    path.parent.mkdir(parents=True, exist_ok=True)
    for parent in path.relative_to(rootfs).parents:
        os.chown(rootfs / parent, FIRST_ID, FIRST_ID)
    if target == "file":
        path.write_text("")
    else:
        path.symlink_to(path.name if target == "loop" else target)


PLACES = [
    "nix", "nix/store", "nix/var", "nix/var/nix", "nix/var/nix/profiles", "nix/var/nix/gcroots",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", ["/mnt", "/proc/1/root", "../../../../mnt", "loop", "file"])
def test_what_stands_in_the_place_of_a_directory_is_refused_and_named(
    unprivileged: Sandbox, store: Path, place: str, target: str
) -> None:
    planted(unprivileged.rootfs, place, target)
    with pytest.raises(InstanceError, match=rf"/{place} of 'web' cannot be used"):
        attached(unprivileged, store)
    assert os.listdir(unprivileged.rootfs / "mnt") == []


@pytest.mark.parametrize("name", ["system", "system-source", "system-pinned"])
def test_a_directory_in_the_place_of_a_link_is_named(
    unprivileged: Sandbox, store: Path, name: str
) -> None:
    place = f"nix/var/nix/profiles/{name}"
    unprivileged.inside(lambda: os.makedirs(f"/{place}/x"))
    with pytest.raises(InstanceError, match=rf"/{place} of 'web' cannot be used"):
        attached(unprivileged, store)


def test_a_root_file_system_of_somebody_else_is_named(tmp_path: Path, store: Path) -> None:
    """The container's root may not write to it; Incus does not make such a rootfs."""
    rootfs = make_rootfs(tmp_path / "rootfs")
    with running(rootfs) as sandbox:
        os.chown(rootfs, 0, 0)
        with pytest.raises(InstanceError, match=r"/nix of 'web' cannot be used \(Permission"):
            attached(sandbox, store)


def test_what_cannot_be_mounted_is_named(unprivileged: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(MountError, match=rf"cannot mount {tmp_path}/gone: No such file"):
        attached(unprivileged, tmp_path / "gone")


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_left_open(sandbox: Sandbox, store: Path, tmp_path: Path) -> None:
    (sandbox.rootfs / "loop").symlink_to("loop")
    before = descriptors()
    attached(sandbox, store)
    with pytest.raises(InstanceError):
        attached(sandbox, store, to="loop")
    assert descriptors() == before


def test_no_descriptor_is_left_open_when_a_mount_fails(
    unprivileged: Sandbox, store: Path, tmp_path: Path
) -> None:
    before = descriptors()
    gone = HostDirectory(str(tmp_path / "gone"), "dev/.inx")
    with Container(unprivileged.pid, "web") as container:
        with pytest.raises(MountError):
            asyncio.run(
                attach_mounts(container, [HostDirectory(str(store), "nix/store"), gone], None)
            )
    assert descriptors() == before


def test_a_file_system_that_cannot_map_owners_is_mounted_plain_and_says_so(
    unprivileged: Sandbox, store: Path, tmp_path: Path
) -> None:
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    data = f"lowerdir={store},upperdir={tmp_path}/upper,workdir={tmp_path}/work"

    def host() -> tuple[bool, int]:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        mount("overlay", f"{tmp_path}/merged", "overlay", 0, data)
        mapped = attached(unprivileged, tmp_path / "merged")
        return mapped, unprivileged.inside(lambda: os.stat("/nix/store/file").st_uid)

    assert apart(host) == (False, 65534)
    with pytest.raises(OSError) as caught:
        unprivileged.inside(remount)
    assert caught.value.errno in LOCKED
