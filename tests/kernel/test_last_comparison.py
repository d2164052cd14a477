"""A comparison looks at links again only if something can have changed, and misses no change."""

import asyncio
import contextlib
import functools
import os
import select
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
from support.containers import FIRST_ID, MS_BIND, Sandbox, plain, umount
from support.fuse import hanging, hanging_below_overlay
from support.links import (
    COPY,
    ONE,
    TWO,
    Web,
    make_link,
    make_long_way,
    mount_disk,
    mount_tmpfs,
    started_web,
)
from support.registrations import WEB

from inx_sidecar.base import paths
from inx_sidecar.kernel import change_times
from inx_sidecar.kernel.syscalls import move_mount, open_tree, opened
from inx_sidecar.links import indirect_roots, link_state, resolver
from inx_sidecar.links.root_directories import RootDirectory
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.link_roots import LINKS
from inx_sidecar.roots.mirror import Mirror

pytestmark = [pytest.mark.gc, pytest.mark.usefixtures("registrations")]
PATH = "/root/dir/result"


class Compared:
    """An instance whose registered paths are compared."""

    def __init__(
        self, web: Web, monkeypatch: pytest.MonkeyPatch, margin_ns: int = 20_000_000
    ) -> None:
        self.web = web
        self.mirror = Mirror("web", WEB, str(web.rootfs), web.process, 1000, GcClient())
        self.children = 0
        fork = os.fork

        def count() -> int:
            self.children += 1
            return fork()

        monkeypatch.setattr(os, "fork", count)
        monkeypatch.setattr(change_times, "_MARGIN_NS", margin_ns)
        monkeypatch.setattr(resolver, "_SECONDS", 60)  # a busy machine is no silent file system
        with closing(sqlite3.connect(paths.NIX_DB)) as db, db:
            db.executemany("insert into ValidPaths values (?)", [(ONE,), (TWO,)])

    def compare(self) -> int:
        """Compare, and return the number of children that looked."""

        async def may_drop() -> bool:
            return True

        before = self.children
        asyncio.run(self.mirror.compare(may_drop))
        return self.children - before

    def settle(self) -> None:
        """Compare until no child looks any more."""
        deadline = time.monotonic() + 20
        while self.compare():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def roots(self) -> set[str]:
        return set(direct_roots.read(direct_roots.directory("web", WEB), LINKS).values())


@pytest.fixture
def compared(web: Web, monkeypatch: pytest.MonkeyPatch) -> Compared:
    web.link(PATH)
    indirect_roots.put(WEB, PATH)
    return Compared(web, monkeypatch)


def replaced_by(target: str) -> None:
    os.symlink(target, f"{PATH}.new")
    os.rename(f"{PATH}.new", PATH)


def with_its_old_times() -> None:
    status = os.stat("/root/dir")
    replaced_by(TWO)
    os.utime("/root/dir", ns=(status.st_atime_ns, status.st_mtime_ns))


def directory_by_a_link() -> None:
    make_link("/root/other/result", TWO)
    os.rename("/root/dir", "/root/former")
    os.symlink("other", "/root/dir")


def directory_by_another() -> None:
    make_link("/root/other/result", TWO)
    os.rename("/root/dir", "/root/former")
    os.rename("/root/other", "/root/dir")


def parent_by_another() -> None:
    make_link("/other/dir/result", TWO)
    os.rename("/root", "/former")
    os.rename("/other", "/root")


def link_by_a_mount() -> None:
    """A mount of another link over the link itself."""
    make_link("/two", TWO)
    with (
        opened(os.open("/two", os.O_PATH | os.O_NOFOLLOW)) as two,
        opened(os.open(PATH, os.O_PATH | os.O_NOFOLLOW)) as covered,
        opened(open_tree(two, "")) as tree,
    ):
        move_mount(tree, covered)


CHANGES: dict[str, tuple[Callable[[], object], set[str]]] = {
    "another target": (lambda: replaced_by(TWO), {TWO}),
    "the same target": (lambda: replaced_by(ONE), {ONE}),
    "another target with the old times": (with_its_old_times, {TWO}),
    "removed": (lambda: os.unlink(PATH), set()),
    "moved with its directory": (lambda: os.rename("/root/dir", "/root/other"), set()),
    "moved with the directory above": (lambda: os.rename("/root", "/other"), set()),
    "in a directory that became a link": (directory_by_a_link, {TWO}),
    "in a directory that became another": (directory_by_another, {TWO}),
    "below a directory that became another": (parent_by_another, {TWO}),
    "covered": (lambda: mount_tmpfs("/root/dir"), set()),
    "covered by a disk with a link": (lambda: mount_disk("/root/dir", target=TWO), {TWO}),
    "covered above": (lambda: mount_disk("/root", "/root/dir", target=TWO), {TWO}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(compared: Compared, change: str) -> None:
    compared.settle()
    assert compared.roots() == {ONE}
    act, wanted = CHANGES[change]
    compared.web.inside(act)
    assert compared.compare() > 0
    assert compared.roots() == wanted
    compared.settle()
    assert compared.roots() == wanted


@pytest.fixture
def whole_seconds(tmp_path: Path) -> Iterator[Web]:
    """A container whose root file system keeps change times in whole seconds."""
    image, rootfs = tmp_path / "image", tmp_path / "disk"
    rootfs.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-I", "128", image, "2M"], check=True)
    subprocess.run(["mount", "-o", "loop", image, rootfs], check=True)
    for directory in ("root", "root/dir"):
        (rootfs / directory).mkdir()
        os.chown(rootfs / directory, FIRST_ID, FIRST_ID)
    subprocess.run(["umount", rootfs], check=True)  # and so nothing of it is in a cache
    subprocess.run(["mount", "-o", "loop", image, rootfs], check=True)
    try:
        with started_web(rootfs) as web:
            yield web
    finally:
        subprocess.run(["umount", "--lazy", rootfs], check=True)


def test_two_changes_in_a_second_are_noticed(
    whole_seconds: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_seconds.link(PATH)
    indirect_roots.put(WEB, PATH)
    compared = Compared(whole_seconds, monkeypatch, change_times._MARGIN_NS)
    compared.compare()
    assert os.stat(whole_seconds.rootfs / "root/dir").st_ctime_ns % 1_000_000_000 == 0
    in_one_second = False
    while not in_one_second:
        whole_seconds.inside(functools.partial(replaced_by, TWO))
        begin = time.time()
        while compared.compare() and time.time() < begin + 0.4:
            time.sleep(0.01)
        whole_seconds.inside(functools.partial(replaced_by, ONE))
        in_one_second = int(begin) == int(time.time())
        compared.compare()
        assert compared.roots() == {ONE}


def test_after_a_boot_of_the_host_it_settles(
    whole_seconds: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_seconds.link(PATH)
    indirect_roots.put(WEB, PATH)
    Compared(whole_seconds, monkeypatch).settle()


def test_a_mount_over_the_link_itself_is_noticed(compared: Compared) -> None:
    compared.settle()
    compared.web.inside(link_by_a_mount)
    assert compared.compare() > 0
    assert compared.roots() == {TWO}


def test_a_link_that_a_mount_hid_is_noticed(compared: Compared) -> None:
    """The mount is there first, and a process without it keeps the path registered."""
    web = compared.web
    with web.service(lambda: mount_disk("/root/dir", target=TWO)) as pid:
        compared.settle()
        assert compared.roots() == {ONE, TWO}
        make_link(f"{web.rootfs}/root/dir/next", TWO)
        os.rename(f"{web.rootfs}/root/dir/next", web.rootfs / PATH[1:])
        compared.settle()
        assert compared.roots() == {TWO}
        os.unlink(f"/proc/{pid}/root{PATH}")
        assert compared.compare() > 0


@pytest.mark.parametrize("own_mounts", [True, False], ids=["own mounts", "a chroot"])
def test_a_process_that_sees_another_link_is_noticed(compared: Compared, own_mounts: bool) -> None:
    compared.settle()

    def prepare() -> None:
        if own_mounts:
            mount_disk("/root/dir", target=TWO)
        else:
            make_link(f"/jail{PATH}", TWO)
            os.chroot("/jail")

    with compared.web.service(prepare, own_mounts=own_mounts, below="a.service"):
        assert compared.compare() > 0
        assert compared.roots() == {ONE, TWO}
        if own_mounts:
            compared.settle()
        else:
            assert all(compared.compare() for _ in range(5)), "the mount of a chroot is not listed"
    assert compared.compare() > 0, "the process ended"


def test_a_root_directory_below_another_with_the_same_path_is_noticed(compared: Compared) -> None:
    web = compared.web

    def enter_jail() -> None:
        os.chroot("/jail")

    web.inside(lambda: mount_tmpfs("/jail"))
    with web.service(enter_jail, own_mounts=False):
        web.inside(lambda: mount_disk("/jail", f"/jail{os.path.dirname(PATH)}", target=TWO))
        compared.settle()
        assert compared.roots() == {ONE}
        with web.service(enter_jail, own_mounts=False):
            compared.compare()
            assert compared.roots() == {ONE, TWO}


def test_beside_a_file_system_that_may_ask_a_server_a_child_looks(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared.settle()
    monkeypatch.setattr(link_state, "_QUIET", link_state._QUIET - {b"proc"})
    compared.web.link("/root/dir/other")
    compared.compare()
    time.sleep(0.1)
    assert all(compared.compare() for _ in range(5))


def test_a_service_that_starts_again_is_noticed(compared: Compared) -> None:
    """Its new mount namespace has mounts with the same ids: only the place of the link is new."""
    web = compared.web
    os.unlink(web.rootfs / PATH[1:])
    web.link("/data/result", TWO)

    def prepare() -> None:
        plain("/root/dir", "/data", MS_BIND)

    with web.service(prepare, below="a.service"):
        compared.settle()
        assert compared.roots() == {TWO}
    with web.service(prepare, below="a.service"):
        compared.compare()
        web.inside(lambda: os.unlink("/data/result"))
        compared.compare()
        assert compared.roots() == set()


def test_a_link_behind_a_directory_that_comes_later_is_noticed(compared: Compared) -> None:
    """A service sees no link at first: the way has a link that leads nowhere."""
    web = compared.web

    def prepare() -> None:
        mount_tmpfs("/root")
        os.symlink("/later/dir", "/root/dir")

    with web.service(prepare) as pid:
        for _ in range(5):
            compared.compare()
        assert compared.roots() == {ONE}
        service = Sandbox(web.rootfs, pid, privileged=False)
        service.inside(lambda: make_link("/later/dir/result", TWO))
        compared.compare()
        assert compared.roots() == {ONE, TWO}


def test_a_directory_of_a_service_that_comes_later_is_noticed(compared: Compared) -> None:
    """A tmpfs keeps no names of missing files in the cache."""
    with compared.web.service(lambda: mount_tmpfs("/root")) as pid:
        compared.settle()
        assert compared.roots() == {ONE}
        Sandbox(compared.web.rootfs, pid, privileged=False).inside(lambda: make_link(PATH, TWO))
        assert compared.compare() > 0
        assert compared.roots() == {ONE, TWO}


def test_what_the_sidecar_keeps_on_the_host_is_compared(compared: Compared) -> None:
    compared.settle()
    place = Path(f"{direct_roots.directory('web', WEB)}/{LINKS}")
    for root in place.iterdir():
        root.unlink()
    compared.compare()
    assert compared.roots() == {ONE}, "an administrator removed the root"
    compared.web.link("/root/other", TWO)
    compared.settle()
    indirect_roots.put(WEB, "/root/other")
    compared.compare()
    assert compared.roots() == {ONE, TWO}, "no event told of the registration"


def test_the_copy_of_the_registrations_is_completed_again(compared: Compared) -> None:
    compared.settle()
    entry = compared.web.rootfs / COPY / indirect_roots.name_of(PATH)
    entry.unlink()
    compared.compare()
    assert os.readlink(entry) == PATH


def test_a_link_that_changes_at_every_look_has_its_last_target(compared: Compared) -> None:
    compared.settle()
    for target in (TWO, ONE, TWO, TWO, ONE, TWO):
        compared.web.inside(functools.partial(replaced_by, target))
        compared.compare()
        assert compared.roots() == {target}


@pytest.mark.parametrize("place", ["/root/dir", "/root"])
def test_the_sidecar_waits_for_no_file_system_over_known_links(
    compared: Compared, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """No process answers the requests of the file system; the names below it are in the cache."""
    monkeypatch.setattr(resolver, "_SECONDS", 0.3)
    compared.settle()
    with hanging(compared.web, place):
        states = compared.mirror._last._states
        assert states, "it had settled"
        process = compared.web.process
        begin = time.monotonic()
        assert not link_state.is_unchanged(process.pid, process.started, states)
        assert time.monotonic() - begin < 0.2
        compared.compare()
        assert compared.roots() == {ONE}
        assert compared.mirror.resolver.unresponsive
    compared.web.inside(lambda: umount(place, 2))
    compared.mirror.resolver = type(compared.mirror.resolver)("web", "", process)
    compared.settle()
    assert compared.roots() == {ONE}


def test_long_ways_do_not_keep_the_event_loop(compared: Compared) -> None:
    for number in range(200):
        compared.web.link(f"/srv/dir/{number}/result")
        indirect_roots.put(WEB, f"/srv/dir/{number}/result")
    compared.settle()

    def make_ways_longer() -> None:
        os.rename("/srv/dir", "/srv/other")
        make_long_way("/srv/dir", "/srv/other")

    states, process = compared.mirror._last._states, compared.web.process
    assert states and link_state.is_unchanged(process.pid, process.started, states)
    compared.web.inside(make_ways_longer)
    begin = time.thread_time()
    assert not link_state.is_unchanged(process.pid, process.started, states)
    assert time.thread_time() - begin < 0.05


@pytest.mark.parametrize("place", ["/root/dir", "/root"])
@pytest.mark.parametrize("by", [hanging, hanging_below_overlay])
def test_a_look_at_what_is_in_the_cache_asks_no_file_system(
    compared: Compared, by: Callable[..., AbstractContextManager[int | None]], place: str
) -> None:
    compared.settle()
    with by(compared.web, place) as requests:
        root = RootDirectory.at(f"/proc/{compared.web.process.pid}/root")
        for _ in range(20):
            begin = time.monotonic()
            with contextlib.suppress(PermissionError):  # a FUSE file system is its mounter's alone
                link_state._find(root, ["root", "dir", "sub"], cached=True)
            assert time.monotonic() - begin < 0.2
        assert requests is None or not select.select([requests], [], [], 0)[0]
        os.close(root.fd)


def test_a_root_whose_path_was_collected_is_told_of(
    compared: Compared, caplog: pytest.LogCaptureFixture
) -> None:
    compared.settle()
    with closing(sqlite3.connect(paths.NIX_DB)) as db, db:
        db.execute("delete from ValidPaths")
    for _ in range(3):
        compared.compare()
    assert caplog.text.count("root lost: '/root/dir/result'") == 1
