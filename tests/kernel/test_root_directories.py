"""The resolver looks for a link below the root directory of every process of the container."""

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Final

import pytest
from support.fuse import hanging
from support.links import ONE, TWO, Web, join_cgroup, mount_disk, remove_cgroup

from inx_sidecar.kernel import cgroups
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, CLONE_NEWUSER, unshare
from inx_sidecar.links import root_directories
from inx_sidecar.links.resolver import ResolvedLink
from inx_sidecar.links.root_directories import INIT, RootDirectory
from inx_sidecar.roots.link_roots import paths_to_hold

pytestmark = pytest.mark.gc

PR_SET_DUMPABLE: Final = 4  # include/uapi/linux/prctl.h


def test_a_root_directory_that_cannot_be_looked_at_leaves_no_descriptor(web: Web) -> None:
    """A FUSE file system is its mounter's alone."""
    with hanging(web, "/srv"):
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(PermissionError):
                RootDirectory.at(f"/proc/{web.process.pid}/root/srv")
        assert len(set(os.listdir("/proc/self/fd")) - before) < 3


def test_a_link_that_a_service_with_a_private_tmp_made_is_found(either: Web) -> None:
    with either.service(lambda: mount_disk("/tmp")):
        link = either.resolve("/tmp/result")
        assert link.targets == {ONE: False} and link.sure
        assert len(link.found) == 1 and INIT not in link.found
        assert link.missing == {INIT}
    ended = either.resolve("/tmp/result")
    assert ended == ResolvedLink({}, frozenset(), frozenset({INIT}), True)
    assert paths_to_hold(ended, link.targets, link.found) == {ONE: False}, (
        "the same file system may come back"
    )


def test_a_link_that_a_service_removed_from_its_private_tmp_holds_nothing(web: Web) -> None:
    with web.service(lambda: mount_disk("/tmp")) as pid:
        before = web.resolve("/tmp/result")
        os.unlink(f"/proc/{pid}/root/tmp/result")
        after = web.resolve("/tmp/result")
        assert after.missing == before.found | before.missing
        assert paths_to_hold(after, before.targets, before.found) == {}


def test_a_link_is_looked_up_below_each_root(web: Web) -> None:
    web.link("/tmp/result", ONE)
    with (
        web.service(lambda: mount_disk("/tmp", target=TWO), below="a.service"),
        web.service(lambda: mount_disk("/tmp", target=ONE), below="b/c.service"),
    ):
        link = web.resolve("/tmp/result")
        assert link.targets == {ONE: True, TWO: False}
        assert len(link.found) == 3 and not link.missing


def test_processes_that_share_a_root_count_once(web: Web) -> None:
    with (
        web.service(lambda: None, own_mounts=False),
        web.service(lambda: None, own_mounts=False, below="sub"),
    ):
        assert web.resolve("/x") == ResolvedLink({}, frozenset(), frozenset({INIT}), True)


def test_a_link_in_a_chroot_is_found_by_its_path_in_the_chroot(web: Web) -> None:
    web.link("/srv/jail/result")
    with web.service(lambda: os.chroot("/srv/jail"), own_mounts=False):
        link = web.resolve("/result")
        assert link.targets == {ONE: False} and link.sure
        assert link.missing == {INIT} and len(link.found) == 1


def test_the_root_of_a_process_of_another_cgroup_does_not_count(web: Web, tmp_path: Path) -> None:
    elsewhere = web.cgroup.with_name(f"{web.cgroup.name}-1")
    elsewhere.mkdir()
    try:
        with web.service(lambda: mount_disk("/tmp")) as pid:
            join_cgroup(elsewhere, pid)
            assert web.resolve("/tmp/result").targets == {}
    finally:
        remove_cgroup(elsewhere)


def test_the_resolver_is_not_sure_without_a_cgroup(web: Web) -> None:
    web.link("/root/result")
    join_cgroup(Path(cgroups.hierarchy()), web.sandbox.pid)
    try:
        found = web.resolve("/root/result", "no root is dropped")
        missing = web.resolve("/root/none", "no root is dropped")
        assert (found.targets, found.sure) == ({ONE: True}, False)
        assert (missing.targets, missing.sure) == ({}, False)
    finally:
        join_cgroup(web.cgroup, web.sandbox.pid)


@pytest.mark.parametrize("limit", ["_MAX_ROOTS", "_MAX_PROCESSES", "_MAX_CGROUPS"])
def test_the_resolver_is_not_sure_beyond_its_limits(
    web: Web, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        web.service(lambda: mount_disk("/tmp", target=TWO), below="a"),
        web.service(lambda: mount_disk("/tmp", target=TWO), below="b"),
    ):
        assert web.resolve("/tmp/result").sure
        monkeypatch.setattr(root_directories, limit, 1)
        assert not web.resolve("/tmp/result", "no root is dropped").sure
    monkeypatch.undo()
    assert web.resolve("/tmp/result").sure


def test_the_root_of_a_process_with_its_own_user_namespace_counts(web: Web) -> None:
    """A container in the container has such a process."""

    proc = os.open("/proc", os.O_PATH)  # /proc of the container does not show processes of the host

    def prepare() -> None:
        from_parent, to_child = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(from_parent, 1)
            for kind in ("uid_map", "gid_map"):
                fd = os.open(f"{os.getppid()}/{kind}", os.O_WRONLY, dir_fd=proc)
                os.write(fd, b"0 0 1000")
            os._exit(0)
        unshare(CLONE_NEWUSER)
        # Only a dumpable process owns its own uid_map and gid_map (proc_pid(5)).
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)
        os.write(to_child, b"m")
        assert os.waitpid(child, 0)[1] == 0
        unshare(CLONE_NEWNS)
        mount_disk("/tmp")

    try:
        with web.service(prepare):
            link = web.resolve("/tmp/result")
            assert link.targets == {ONE: False} and link.sure
    finally:
        os.close(proc)


def test_of_many_places_few_are_named_that_of_init_first(web: Web) -> None:
    """A container can have any number of mount namespaces."""
    web.link("/srv/result")
    with contextlib.ExitStack() as services:
        for number in range(10):
            services.enter_context(web.service(lambda: None, below=f"s{number}.service"))
        found = web.resolve("/srv/result").found
    assert len(found) == 4 and INIT in found
