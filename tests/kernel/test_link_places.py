"""Which links still hold a root after their file system is unmounted, covered or replaced."""

import os
from collections.abc import Callable

import pytest
from support.containers import apart, umount
from support.links import ONE, Web, mount_disk, mount_tmpfs

from inx_sidecar.kernel.syscalls import CLONE_NEWNS, CLONE_NEWUSER, setns
from inx_sidecar.links.root_directories import INIT
from inx_sidecar.roots.link_roots import paths_to_hold

pytestmark = pytest.mark.gc


def test_a_link_on_another_file_system_is_away(either: Web) -> None:
    either.inside(lambda: mount_disk("/mnt/disk"))
    link = either.resolve("/mnt/disk/result")
    assert (link.targets, link.sure) == ({ONE: False}, True)
    assert (link.found, link.missing) == (frozenset({f"{INIT}@2"}), frozenset())


def test_a_link_is_missing_while_a_mount_covers_it(web: Web) -> None:
    web.link("/root/sub/result")
    web.inside(lambda: mount_tmpfs("/root"))
    for text in ("/root/result", "/root/sub/result", "/root/a/b/c/d/e"):
        link = web.resolve(text)
        assert (link.targets, link.missing, link.sure) == ({}, frozenset({f"{INIT}@1"}), True)
    assert web.resolve("/rooted/result").missing == {INIT}
    web.inside(lambda: umount("/root"))
    assert web.resolve("/root/sub/result").targets == {ONE: True}


def test_a_link_on_a_disk_is_missing_while_the_disk_is_not_mounted(web: Web) -> None:
    web.inside(lambda: mount_disk("/mnt/disk"))
    web.inside(lambda: umount("/mnt/disk"))
    link = web.resolve("/mnt/disk/result")
    assert (link.targets, link.missing, link.sure) == ({}, frozenset({INIT}), True)


def held_after(web: Web, text: str, change: Callable[[], object]) -> dict[str, bool]:
    """The paths to hold for a link that exists now, after the container's root did `change`."""
    before = web.resolve(text)
    assert before.targets
    web.inside(change)
    return paths_to_hold(web.resolve(text), before.targets, before.found)


def test_a_link_on_a_disk_holds_its_path_after_the_disk_is_unmounted(web: Web) -> None:
    web.inside(lambda: mount_disk("/mnt/disk"))
    assert held_after(web, "/mnt/disk/result", lambda: umount("/mnt/disk")) == {ONE: False}


def test_a_link_on_a_nested_disk_holds_its_path_after_the_disk_is_unmounted(web: Web) -> None:
    web.inside(lambda: mount_disk("/mnt/a", "/mnt/a/b"))
    assert held_after(web, "/mnt/a/b/result", lambda: umount("/mnt/a/b")) == {ONE: False}


def test_a_link_that_was_removed_from_a_disk_holds_nothing(web: Web) -> None:
    web.inside(lambda: mount_disk("/mnt/disk"))
    assert held_after(web, "/mnt/disk/result", lambda: os.unlink("/mnt/disk/result")) == {}


def test_a_link_holds_nothing_after_another_disk_replaced_its_disk(web: Web) -> None:
    web.inside(lambda: mount_disk("/mnt/disk"))

    def change() -> None:
        umount("/mnt/disk")
        mount_tmpfs("/mnt/disk")

    assert held_after(web, "/mnt/disk/result", change) == {}


def test_a_link_of_a_service_holds_its_path_after_its_disk_is_unmounted(web: Web) -> None:
    """The mount namespace of the service still exists. The same is true for a disk of init."""
    with web.service(lambda: mount_disk("/mnt/disk")) as pid:
        before = web.resolve("/mnt/disk/result")
        assert before.targets == {ONE: False}

        def change() -> None:
            with open(f"/proc/{pid}/ns/user") as user, open(f"/proc/{pid}/ns/mnt") as mounts:
                setns(user.fileno(), CLONE_NEWUSER)
                setns(mounts.fileno(), CLONE_NEWNS)
            umount("/mnt/disk")

        apart(change)
        after = web.resolve("/mnt/disk/result")
        assert after.targets == {} and paths_to_hold(after, before.targets, before.found) == {
            ONE: False
        }


def test_a_link_that_was_removed_from_a_chroot_holds_nothing(web: Web) -> None:
    web.link("/srv/jail/result")
    with web.service(lambda: os.chroot("/srv/jail"), own_mounts=False):
        assert held_after(web, "/result", lambda: os.unlink("/srv/jail/result")) == {}


def test_a_link_that_was_removed_from_the_root_file_system_holds_nothing(web: Web) -> None:
    web.link("/root/result")
    assert held_after(web, "/root/result", lambda: os.unlink("/root/result")) == {}
