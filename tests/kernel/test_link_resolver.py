"""What registered paths of a container lead to is told rightly, whatever it has put there."""

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from support.containers import (
    FIRST_ID,
    MS_BIND,
    Sandbox,
    apart,
    make_rootfs,
    plain,
    running,
    umount,
)

from inx_sidecar.base.errors import InstanceError, MountError
from inx_sidecar.incus.running import started
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, CLONE_NEWUSER, mount, setns, unshare
from inx_sidecar.links import indirect_roots, process_roots, resolver
from inx_sidecar.links.process_roots import INIT
from inx_sidecar.links.resolver import Process, Sight
from inx_sidecar.roots.mirror import judge

pytestmark = pytest.mark.gc

NAME: Final = "web"
PR_SET_DUMPABLE: Final = 4
COPY: Final = "nix/var/nix/gcroots/auto"


def store(digit: str) -> str:
    return f"/nix/store/{digit * 32}-{digit}"


ONE, TWO, OUTSIDE = store("1"), store("2"), store("9")


class Web:
    """A running container in a cgroup as LXC names it, and what its links lead to."""

    def __init__(self, sandbox: Sandbox, cgroup: Path) -> None:
        self.sandbox = sandbox
        self.rootfs = sandbox.rootfs
        self.cgroup = cgroup
        self.process = Process(sandbox.pid, started(sandbox.pid))
        _join(cgroup, sandbox.pid)

    def link(self, path: str, target: str = ONE) -> None:
        """As the container's root, in the view of its init."""
        self.inside(lambda: _link(path, target))

    def inside(self, function: Callable[[], object]) -> None:
        def call() -> None:
            function()

        self.sandbox.inside(call)

    def look_at_all(self, *texts: str, trouble: str = "") -> dict[str, Sight]:
        looked = asyncio.run(resolver.look(NAME, self.process, texts))
        assert trouble in looked.trouble and bool(trouble) == bool(looked.trouble)
        assert looked.hung is None
        assert list(looked.sights) == list(dict.fromkeys(texts))
        return dict(looked.sights)

    def look(self, text: str, trouble: str = "") -> Sight:
        return self.look_at_all(text, trouble=trouble)[text]

    @contextmanager
    def service(
        self, prepare: Callable[[], object], *, below: str = "", own_mounts: bool = True
    ) -> Iterator[int]:
        """A process of the container that has done `prepare`, in a mount namespace of its own."""
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                _enter(self.sandbox)
                if own_mounts:
                    unshare(CLONE_NEWNS)
                prepare()
                os.write(tell, b"r")
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        os.close(tell)
        try:
            assert os.read(told, 1) == b"r", "the service did not start"
            cgroup = self.cgroup / below
            cgroup.mkdir(parents=True, exist_ok=True)
            _join(cgroup, pid)
            yield pid
        finally:
            os.close(told)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _enter(sandbox: Sandbox) -> None:
    user = os.open(f"/proc/{sandbox.pid}/ns/user", os.O_RDONLY)
    mounts = os.open(f"/proc/{sandbox.pid}/ns/mnt", os.O_RDONLY)
    if not sandbox.privileged:
        setns(user, CLONE_NEWUSER)
    setns(mounts, CLONE_NEWNS)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _join(cgroup: Path, pid: int) -> None:
    (cgroup / "cgroup.procs").write_text(f"{pid}")


def _link(path: str, target: str = ONE) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink(target, path)


def _tmpfs(path: str) -> None:
    os.makedirs(path, exist_ok=True)
    mount("none", path, "tmpfs", 0)


def _disk(*places: str, target: str = ONE) -> None:
    """File systems, and `result` on the last of them."""
    for place in places:
        _tmpfs(place)
    _link(f"{places[-1]}/result", target)


def _remove_cgroup(cgroup: Path) -> None:
    for directory, _, _ in os.walk(cgroup, topdown=False):
        deadline = time.monotonic() + 10
        while True:
            try:
                os.rmdir(directory)
                break
            except OSError:  # its last process is not quite gone
                if time.monotonic() > deadline:
                    raise


@contextmanager
def started_web(rootfs: Path, *, privileged: bool = False) -> Iterator[Web]:
    cgroup = Path(f"{process_roots._unified()}/lxc.payload.test-{os.getpid()}")
    cgroup.mkdir()
    try:
        make_rootfs(rootfs, 0 if privileged else FIRST_ID)
        with running(rootfs, privileged=privileged) as sandbox:
            yield Web(sandbox, cgroup)
    finally:
        _remove_cgroup(cgroup)


@pytest.fixture(params=["unprivileged", "privileged"])
def either(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Web]:
    with started_web(tmp_path / "rootfs", privileged=request.param == "privileged") as web:
        yield web


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with started_web(tmp_path / "rootfs") as web:
        yield web


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Something of the host beside the root file system."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "result").symlink_to(OUTSIDE)
    return place


def test_a_link_at_home_is_found(either: Web) -> None:
    either.link("/root/result")
    view = frozenset({INIT})
    assert either.look("/root/result") == Sight({ONE: True}, view, frozenset(), True)
    either.link("/root/result", f"{TWO}/bin/sh")
    assert either.look("/root/result").targets == {TWO: True}, "what it leads to now"


def test_a_link_that_is_gone_is_missing(either: Web) -> None:
    either.link("/root/result")
    either.inside(lambda: os.unlink("/root/result"))
    view = frozenset({INIT})
    assert either.look("/root/result") == Sight({}, frozenset(), view, True)
    assert either.look("/none/such/directory") == Sight({}, frozenset(), view, True)


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "socket", "other link", "chain"])
def test_what_is_no_link_to_the_store_is_missing(web: Web, kind: str) -> None:
    def prepare() -> None:
        match kind:
            case "file":
                Path("/x").write_text(ONE)
            case "directory":
                os.mkdir("/x")
            case "fifo":
                os.mkfifo("/x")
            case "socket":
                os.mknod("/x", 0o140600)
            case "other link":
                os.symlink("/etc/passwd", "/x")
            case "chain":
                os.symlink("/y", "/x")
                os.symlink(ONE, "/y")

    web.inside(prepare)
    seen = web.look("/x")
    assert (seen.targets, seen.sure) == ({}, True) and seen.missing == {INIT}


def test_a_link_below_a_link_is_found(web: Web) -> None:
    web.link("/data/home/result")
    web.inside(lambda: os.symlink("/data/home", "/home"))
    assert web.look("/home/result").targets == {ONE: True}


def test_many_paths_are_told_apart(web: Web) -> None:
    texts = [f"/root/{number}" for number in range(1000)]

    def prepare() -> None:
        os.mkdir("/root")
        for number in range(0, 1000, 2):
            os.symlink(store(str(number % 5)), f"/root/{number}")

    web.inside(prepare)
    sights = web.look_at_all(*texts)
    for number, text in enumerate(texts):
        expected = {store(str(number % 5)): True} if number % 2 == 0 else {}
        assert sights[text].targets == expected


def test_a_link_on_another_file_system_is_away(either: Web) -> None:
    either.inside(lambda: _disk("/mnt/disk"))
    seen = either.look("/mnt/disk/result")
    assert (seen.targets, seen.sure) == ({ONE: False}, True)
    assert (seen.found, seen.missing) == (frozenset({f"{INIT}@2"}), frozenset())


def test_a_file_system_that_covers_a_link_has_none(web: Web) -> None:
    web.link("/root/sub/result")
    web.inside(lambda: _tmpfs("/root"))
    for text in ("/root/result", "/root/sub/result", "/root/a/b/c/d/e"):
        seen = web.look(text)
        assert (seen.targets, seen.missing, seen.sure) == ({}, frozenset({f"{INIT}@1"}), True)
    assert web.look("/rooted/result").missing == {INIT}
    web.inside(lambda: umount("/root"))
    assert web.look("/root/sub/result").targets == {ONE: True}


def test_a_disk_that_is_not_mounted_covers_nothing(web: Web) -> None:
    web.inside(lambda: _disk("/mnt/disk"))
    web.inside(lambda: umount("/mnt/disk"))
    seen = web.look("/mnt/disk/result")
    assert (seen.targets, seen.missing, seen.sure) == ({}, frozenset({INIT}), True)


def held_after(web: Web, text: str, change: Callable[[], object]) -> dict[str, bool]:
    """What is held for a link that is seen now, after `change` as the container's root."""
    before = web.look(text)
    assert before.targets
    web.inside(change)
    return judge(web.look(text), before.targets, before.found)


def test_a_link_on_a_disk_holds_when_the_disk_is_unmounted(web: Web) -> None:
    web.inside(lambda: _disk("/mnt/disk"))
    assert held_after(web, "/mnt/disk/result", lambda: umount("/mnt/disk")) == {ONE: False}


def test_a_link_on_a_disk_below_a_disk_holds_when_the_disk_is_unmounted(web: Web) -> None:
    web.inside(lambda: _disk("/mnt/a", "/mnt/a/b"))
    assert held_after(web, "/mnt/a/b/result", lambda: umount("/mnt/a/b")) == {ONE: False}


def test_a_link_that_was_removed_from_a_disk_holds_nothing(web: Web) -> None:
    web.inside(lambda: _disk("/mnt/disk"))
    assert held_after(web, "/mnt/disk/result", lambda: os.unlink("/mnt/disk/result")) == {}


def test_a_link_is_gone_when_another_disk_is_mounted_in_its_place(web: Web) -> None:
    web.inside(lambda: _disk("/mnt/disk"))

    def change() -> None:
        umount("/mnt/disk")
        _tmpfs("/mnt/disk")

    assert held_after(web, "/mnt/disk/result", change) == {}


def test_a_link_of_a_service_holds_when_its_disk_is_unmounted(web: Web) -> None:
    """As for init: the service itself is still there."""
    with web.service(lambda: _disk("/mnt/disk")) as pid:
        before = web.look("/mnt/disk/result")
        assert before.targets == {ONE: False}

        def change() -> None:
            with open(f"/proc/{pid}/ns/user") as user, open(f"/proc/{pid}/ns/mnt") as mounts:
                setns(user.fileno(), CLONE_NEWUSER)
                setns(mounts.fileno(), CLONE_NEWNS)
            umount("/mnt/disk")

        apart(change)
        after = web.look("/mnt/disk/result")
        assert after.targets == {} and judge(after, before.targets, before.found) == {ONE: False}


def test_a_link_that_was_removed_from_a_chroot_holds_nothing(web: Web) -> None:
    web.link("/srv/jail/result")
    with web.service(lambda: os.chroot("/srv/jail"), own_mounts=False):
        assert held_after(web, "/result", lambda: os.unlink("/srv/jail/result")) == {}


def test_a_link_that_was_removed_at_home_holds_nothing(web: Web) -> None:
    web.link("/root/result")
    assert held_after(web, "/root/result", lambda: os.unlink("/root/result")) == {}


def test_a_link_that_a_service_with_a_private_tmp_made_is_found(either: Web) -> None:
    with either.service(lambda: _disk("/tmp")):
        seen = either.look("/tmp/result")
        assert seen.targets == {ONE: False} and seen.sure
        assert len(seen.found) == 1 and INIT not in seen.found
        assert seen.missing == {INIT}
    ended = either.look("/tmp/result")
    assert ended == Sight({}, frozenset(), frozenset({INIT}), True)
    assert judge(ended, seen.targets, seen.found) == {ONE: False}, "it may come again"


def test_a_link_that_a_service_removed_from_its_private_tmp_holds_nothing(web: Web) -> None:
    with web.service(lambda: _disk("/tmp")) as pid:
        before = web.look("/tmp/result")
        os.unlink(f"/proc/{pid}/root/tmp/result")
        after = web.look("/tmp/result")
        assert after.missing == before.found | before.missing
        assert judge(after, before.targets, before.found) == {}


def test_each_view_counts(web: Web) -> None:
    web.link("/tmp/result", ONE)
    with (
        web.service(lambda: _disk("/tmp", target=TWO), below="a.service"),
        web.service(lambda: _disk("/tmp", target=ONE), below="b/c.service"),
    ):
        seen = web.look("/tmp/result")
        assert seen.targets == {ONE: True, TWO: False}
        assert len(seen.found) == 3 and not seen.missing


def test_processes_that_share_a_view_are_one_view(web: Web) -> None:
    with (
        web.service(lambda: None, own_mounts=False),
        web.service(lambda: None, own_mounts=False, below="sub"),
    ):
        assert web.look("/x") == Sight({}, frozenset(), frozenset({INIT}), True)


def test_a_link_in_a_chroot_is_found_under_its_path_there(web: Web) -> None:
    web.link("/srv/jail/result")
    with web.service(lambda: os.chroot("/srv/jail"), own_mounts=False):
        seen = web.look("/result")
        assert seen.targets == {ONE: False} and seen.sure
        assert seen.missing == {INIT} and len(seen.found) == 1


def test_a_process_of_another_cgroup_is_no_view(web: Web, tmp_path: Path) -> None:
    elsewhere = web.cgroup.with_name(f"{web.cgroup.name}-1")
    elsewhere.mkdir()
    try:
        with web.service(lambda: _disk("/tmp")) as pid:
            _join(elsewhere, pid)
            assert web.look("/tmp/result").targets == {}
    finally:
        _remove_cgroup(elsewhere)


def test_who_has_no_cgroup_to_look_at_is_not_sure(web: Web) -> None:
    web.link("/root/result")
    _join(Path(process_roots._unified()), web.sandbox.pid)
    try:
        found = web.look("/root/result", "no root is dropped")
        missing = web.look("/root/none", "no root is dropped")
        assert (found.targets, found.sure) == ({ONE: True}, False)
        assert (missing.targets, missing.sure) == ({}, False)
    finally:
        _join(web.cgroup, web.sandbox.pid)


@pytest.mark.parametrize("limit", ["_MAX_VIEWS", "_MAX_PROCESSES", "_MAX_CGROUPS"])
def test_who_does_not_look_at_all_views_is_not_sure(
    web: Web, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        web.service(lambda: _disk("/tmp", target=TWO), below="a"),
        web.service(lambda: _disk("/tmp", target=TWO), below="b"),
    ):
        assert web.look("/tmp/result").sure
        monkeypatch.setattr(process_roots, limit, 1)
        assert not web.look("/tmp/result", "no root is dropped").sure
    monkeypatch.undo()
    assert web.look("/tmp/result").sure


def test_a_view_of_its_own_user_namespace_counts(web: Web) -> None:
    """As a container within the container has it."""

    proc = os.open("/proc", os.O_PATH)  # the container's own does not show processes from here

    def prepare() -> None:
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(told, 1)
            for kind in ("uid_map", "gid_map"):
                fd = os.open(f"{os.getppid()}/{kind}", os.O_WRONLY, dir_fd=proc)
                os.write(fd, b"0 0 1000")
            os._exit(0)
        unshare(CLONE_NEWUSER)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # its maps are its own to write
        os.write(tell, b"m")
        assert os.waitpid(child, 0)[1] == 0
        unshare(CLONE_NEWNS)
        _disk("/tmp")

    try:
        with web.service(prepare):
            seen = web.look("/tmp/result")
            assert seen.targets == {ONE: False} and seen.sure
    finally:
        os.close(proc)


@pytest.mark.parametrize(
    "text",
    [
        "/loop", "/loop/result", "/loop/../root/result", "/self/self/result", "/a", "/a/x",
    ],
)  # fmt: skip
def test_links_that_lead_in_circles_are_missing(web: Web, text: str) -> None:
    def prepare() -> None:
        os.symlink("loop", "/loop")
        os.symlink("self", "/self")
        os.symlink("/b", "/a")
        os.symlink("/a", "/b")

    web.inside(prepare)
    seen = web.look(text)
    assert (seen.targets, seen.missing, seen.sure) == ({}, frozenset({INIT}), True)


@pytest.mark.parametrize(
    "text",
    [
        "/root/../root/result", "/../../../../root/result", "//root//result", "/./root/./result",
        "root/result", "/root/sub/../result", "/..//root/result",
    ],
)  # fmt: skip
def test_a_path_that_goes_up_stays_within(web: Web, text: str) -> None:
    web.link("/root/result")
    web.link("/root/sub/other")
    assert web.look(text).targets == {ONE: True}


@pytest.mark.parametrize("text", ["", "/", ".", "..", "/..", "/root/", "/root/.", "/root/result/"])
def test_a_path_that_can_be_no_link_is_missing(web: Web, text: str) -> None:
    web.link("/root/result")
    seen = web.look(text)
    assert (seen.targets, seen.sure) == ({}, True)


def test_the_longest_names_and_paths_are_found(web: Web) -> None:
    longest = "/" + "n" * 255
    deep = ("/" + "d" * 250) * 16
    deep += "/" + "e" * (4095 - len(deep) - 1)
    assert len(deep) == 4095

    def prepare() -> None:
        os.symlink(ONE, longest)
        os.chdir("/")
        for step in deep.split("/")[1:-1]:
            os.mkdir(step)
            os.chdir(step)
        os.symlink(TWO, deep.split("/")[-1])

    web.inside(prepare)
    sights = web.look_at_all(longest, deep)
    assert sights[longest].targets == {ONE: True}
    assert sights[deep].targets == {TWO: True}


@pytest.mark.parametrize("text", ["/" + "n" * 256, "/" + "x/" * 2047 + "xx", "/x" * 3000])
def test_a_path_that_no_link_can_have_is_missing(web: Web, text: str) -> None:
    seen = web.look(text)
    assert (seen.targets, seen.sure) == ({}, True) and seen.missing == {INIT}


@pytest.mark.parametrize(
    "name", [b"a\nb", b"\xff\xfe\x80", b"\xed\xa0\x80", b" ", b"'\"\\", b"\x01\x1b[2J", b"a\rb"]
)
def test_a_name_may_be_any_bytes(web: Web, name: bytes) -> None:
    text = os.fsdecode(b"/root/" + name)
    web.link(text)
    assert web.look(text).targets == {ONE: True}
    copied = indirect_roots.name_of(text)
    assert os.readlink(web.rootfs / COPY / copied) == text


@pytest.mark.parametrize("by", ["absolute", "upwards", "a directory", "a mixture"])
def test_a_link_that_would_lead_out_stays_within(web: Web, outside: Path, by: str) -> None:
    def prepare() -> None:
        match by:
            case "absolute":
                os.symlink(outside, "/out")
            case "upwards":
                os.symlink("../" * 40 + str(outside).lstrip("/"), "/out")
            case "a directory":
                os.symlink("..", "/up")
                os.symlink("up/" * 30 + str(outside).lstrip("/"), "/out")
            case "a mixture":
                os.mkdir("/a")
                os.symlink(f"/../../a/..{outside.parent}", "/b")
                os.symlink("/b/./outside/../outside", "/out")

    web.inside(prepare)
    for text in ("/out/result", str(outside / "result"), f"/../..{outside}/result"):
        seen = web.look(text)
        assert (seen.targets, seen.found) == ({}, frozenset())
    # The same path of the container's own is another thing.
    web.link(str(outside / "result"), TWO)
    assert web.look("/out/result").targets == {TWO: True}


def test_the_magic_links_of_proc_are_not_followed(web: Web, outside: Path) -> None:
    web.link("/root/result")
    fd = os.open(outside, os.O_PATH)
    try:
        texts = [
            f"/proc/{pid}/{what}/result"
            for pid in ("1", "self", "thread-self")
            for what in ("root", "cwd", f"fd/{fd}", "root/root", "task/1/root/root")
        ]
        for text, seen in web.look_at_all(*texts).items():
            assert (text, seen.targets) == (text, {})
    finally:
        os.close(fd)


def test_a_directory_of_others_is_not_surely_empty(web: Web) -> None:
    """One that the container's root may not search: owned by nobody of its own."""
    web.link("/closed/result")
    os.chown(web.rootfs / "closed", 0, 0)
    os.chmod(web.rootfs / "closed", 0o700)
    seen = web.look("/closed/result")
    assert (seen.targets, seen.sure, seen.missing) == ({}, False, frozenset())


def _swap(one: str, two: str, place: str) -> None:
    """For ever: each of two links takes its place at once."""
    while True:
        for target in (one, two):
            os.symlink(target, f"{place}.new")
            os.rename(f"{place}.new", place)


@contextmanager
def busy(function: Callable[[], object]) -> Iterator[None]:
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(1)
    try:
        yield
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it did not go on to the end"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_link_that_changes_while_it_is_read_leads_to_one_of_both(web: Web) -> None:
    web.link("/root/result")
    place = str(web.rootfs / "root/result")
    long = f"{TWO}/{'x' * 3000}"
    seen: list[dict[str, bool]] = []
    with busy(lambda: _swap(ONE, long, place)):
        deadline = time.monotonic() + 60
        while len(seen) < 1000 or {ONE: True} not in seen or {TWO: True} not in seen:
            # The same place under many paths, so that one look reads it often.
            sights = web.look_at_all(*("/" * count + "root/result" for count in range(1, 101)))
            assert all(sight.sure for sight in sights.values())
            seen += [dict(sight.targets) for sight in sights.values()]
            assert time.monotonic() < deadline
    assert all(targets in ({ONE: True}, {TWO: True}) for targets in seen)


def test_a_directory_that_becomes_a_link_outwards_never_leads_out(web: Web, outside: Path) -> None:
    web.link("/real/result")
    web.link("/d", "real")
    place = str(web.rootfs / "d")
    upwards = "../" * 40 + str(outside).lstrip("/")
    seen: list[dict[str, bool]] = []
    with busy(lambda: _swap("real", upwards, place)):
        deadline = time.monotonic() + 60
        while len(seen) < 1000 or {ONE: True} not in seen or {} not in seen:
            sights = web.look_at_all(*("/" * count + "d/result" for count in range(1, 101)))
            seen += [dict(sight.targets) for sight in sights.values()]
            assert time.monotonic() < deadline
    assert all(targets in ({ONE: True}, {}) for targets in seen)


def _hanging(place: str, sandbox: Sandbox) -> None:
    """Mount a FUSE file system in the container that nobody answers for."""

    def prepare() -> None:
        os.makedirs(place, exist_ok=True)

    sandbox.inside(prepare)
    user = os.open(f"/proc/{sandbox.pid}/ns/user", os.O_RDONLY)
    mounts = os.open(f"/proc/{sandbox.pid}/ns/mnt", os.O_RDONLY)
    setns(user, CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    setns(mounts, CLONE_NEWNS)
    mount("hang", place, "fuse", 0, f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other")


@contextmanager
def hanging(web: Web, place: str) -> Iterator[None]:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _hanging(place, web.sandbox)
            os.write(tell, b"r")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(told, 1) == b"r", "no FUSE file system"
        yield
    finally:
        os.close(told)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_a_file_system_that_does_not_answer_keeps_nobody(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_SECONDS", 0.3)
    web.link("/root/result")
    with hanging(web, "/mnt/hang"):
        before = children()
        begin = time.monotonic()
        texts = ["/root/result", "/mnt/hang/result", "/root/other"]
        looked = asyncio.run(resolver.look(NAME, web.process, texts))
        assert looked.hung == "/mnt/hang/result" and looked.late is not None
        assert {text: sight.targets for text, sight in looked.sights.items()} == {
            "/root/result": {ONE: True}
        }
        assert time.monotonic() - begin < 5
        assert children() == before, "no child is left"
        assert web.look("/root/result").targets == {ONE: True}, "the rest can be looked at"


def test_a_file_system_that_does_not_answer_keeps_nobody_who_writes_the_copy(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_SECONDS", 0.3)
    web.link("/root/result")
    with hanging(web, f"/{COPY}"):
        looked = asyncio.run(resolver.look(NAME, web.process, ["/root/result"]))
        assert looked.sights["/root/result"].targets == {ONE: True}
        assert looked.late and looked.trouble.startswith("copies and snapshots lack roots: ")
        with pytest.raises(MountError, match="took over"):
            asyncio.run(resolver.forget_inside(NAME, web.process, ["/root/result"]))


def test_a_container_that_ended_is_told(tmp_path: Path) -> None:
    with started_web(tmp_path / "rootfs") as web:
        web.link("/root/result")
    for call in (resolver.look, resolver.forget_inside):
        with pytest.raises(InstanceError, match="of 'web' is gone"):
            asyncio.run(call(NAME, web.process, ["/root/result"]))


def test_a_process_that_has_its_number_is_not_taken_for_it(web: Web) -> None:
    web.link("/root/result")
    later = Process(web.process.pid, web.process.started + 1)
    for call in (resolver.look, resolver.forget_inside):
        with pytest.raises(InstanceError, match="of 'web' is gone"):
            asyncio.run(call(NAME, later, ["/root/result"]))
    assert not os.path.lexists(web.rootfs / "nix")


def test_no_descriptor_is_left(web: Web) -> None:
    web.link("/root/result")
    before = os.listdir("/proc/self/fd")
    web.look("/root/result")
    asyncio.run(resolver.forget_inside(NAME, web.process, ["/root/result"]))
    assert os.listdir("/proc/self/fd") == before


def copy(web: Web) -> dict[str, str]:
    place = web.rootfs / COPY
    if not place.exists():
        return {}
    return {name: os.readlink(place / name) for name in os.listdir(place)}


def test_a_path_that_was_found_is_copied_as_the_containers_root(either: Web) -> None:
    either.link("/root/result")
    either.link("/root/other", "/elsewhere")
    either.look_at_all("/root/result", "/root/other", "/root/none")
    name = indirect_roots.name_of("/root/result")
    assert copy(either) == {name: "/root/result"}
    for path in (either.rootfs / COPY / name, either.rootfs / COPY, either.rootfs / "nix"):
        status = path.lstat()
        owner = either.sandbox.first_id
        assert (status.st_uid, status.st_gid) == (owner, owner)
    inode = (either.rootfs / COPY / name).lstat().st_ino
    either.look("/root/result")
    assert (either.rootfs / COPY / name).lstat().st_ino == inode, "what is there is left alone"
    asyncio.run(resolver.forget_inside(NAME, either.process, ["/root/result", "/root/none"]))
    assert copy(either) == {}


def test_a_copy_that_says_something_else_is_put_right(web: Web) -> None:
    web.link("/root/result")
    name = indirect_roots.name_of("/root/result")
    for wrong in ("/root/other", "/etc/passwd", ONE):
        web.link(f"/{COPY}/{name}", wrong)
        web.look("/root/result")
        assert copy(web) == {name: "/root/result"}


def listing(place: Path) -> list[tuple[str, int, int]]:
    """All below it, with what would change if it were touched."""
    found = [place, *sorted(place.rglob("*"))]
    return [(str(path), path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in found]


@pytest.mark.parametrize("place", ["nix", "nix/var", "nix/var/nix", "nix/var/nix/gcroots", COPY])
@pytest.mark.parametrize("what", ["a link out", "a link within", "a file", "a fifo"])
def test_something_in_the_place_of_the_copy_is_told_and_left_alone(
    web: Web, outside: Path, place: str, what: str
) -> None:
    name = indirect_roots.name_of("/root/result")
    (outside / name).symlink_to("/root/result")
    rest = COPY.removeprefix(place).strip("/")
    (outside / rest).mkdir(parents=True, exist_ok=True)
    web.link("/root/result")
    web.inside(lambda: os.makedirs(f"/inside/{rest}"))

    def prepare() -> None:
        os.makedirs(os.path.dirname(f"/{place}"), exist_ok=True)
        match what:
            case "a link out":
                os.symlink("../" * 40 + str(outside).lstrip("/"), f"/{place}")
            case "a link within":
                os.symlink("/inside", f"/{place}")
            case "a file":
                Path(f"/{place}").write_text("mine")
            case "a fifo":
                os.mkfifo(f"/{place}")

    web.inside(prepare)
    before = listing(outside), listing(web.rootfs / "inside"), listing(web.rootfs / "nix")
    looked = asyncio.run(resolver.look(NAME, web.process, ["/root/result"]))
    sights, trouble = looked.sights, looked.trouble
    assert sights["/root/result"].targets == {ONE: True}
    assert f"/{place}"[1:] in trouble or place.rpartition("/")[2] in trouble
    assert "'web'" in trouble and "\n" not in trouble
    asyncio.run(resolver.forget_inside(NAME, web.process, ["/root/result"]))
    assert (listing(outside), listing(web.rootfs / "inside"), listing(web.rootfs / "nix")) == before


def test_a_directory_in_the_place_of_a_copied_link_is_told_and_left_alone(web: Web) -> None:
    web.link("/root/result")
    name = indirect_roots.name_of("/root/result")
    web.inside(lambda: os.makedirs(f"/{COPY}/{name}/x"))
    looked = asyncio.run(resolver.look(NAME, web.process, ["/root/result"]))
    sights, trouble = looked.sights, looked.trouble
    assert sights["/root/result"].targets == {ONE: True} and "directory" in trouble
    assert os.listdir(web.rootfs / COPY) == [name], "no unfinished link is left"
    assert os.listdir(web.rootfs / COPY / name) == ["x"]


def test_a_copy_that_cannot_be_written_is_told(web: Web) -> None:
    def prepare() -> None:
        os.makedirs(f"/{COPY}")
        plain(f"/{COPY}", f"/{COPY}", MS_BIND)
        plain(f"/{COPY}", "none", 32 | MS_BIND | 1)

    web.inside(prepare)
    web.link("/root/result")
    looked = asyncio.run(resolver.look(NAME, web.process, ["/root/result"]))
    sights, trouble = looked.sights, looked.trouble
    assert sights["/root/result"].targets == {ONE: True} and "Read-only" in trouble


def test_a_copy_is_read_with_distrust(web: Web) -> None:
    """What another made of it, or what the container's root wrote, holds nothing by itself."""

    def prepare() -> None:
        os.makedirs(f"/{COPY}")
        os.symlink("/root/result", f"/{COPY}/{indirect_roots.name_of('/root/result')}")
        os.symlink("/root/other", f"/{COPY}/{'0' * 32}")
        os.symlink("/root/other", f"/{COPY}/other")
        os.mkdir(f"/{COPY}/{indirect_roots.name_of('/root/directory')}")
        os.mkfifo(f"/{COPY}/{indirect_roots.name_of('/root/fifo')}")

    web.inside(prepare)
    root = os.open(web.rootfs, os.O_PATH)
    try:
        assert indirect_roots.read_inside(root, NAME, 10) == ["/root/result"]
        assert indirect_roots.read_inside(root, NAME, 0) == []
    finally:
        os.close(root)


@pytest.mark.parametrize("place", ["nix", "nix/var/nix/gcroots", COPY])
def test_a_copy_that_is_a_link_is_not_read(tmp_path: Path, outside: Path, place: str) -> None:
    name = indirect_roots.name_of("/root/result")
    rest = COPY.removeprefix(place).strip("/")
    (outside / rest).mkdir(parents=True, exist_ok=True)
    (outside / rest / name).symlink_to("/root/result")
    rootfs = tmp_path / "stopped"
    (rootfs / place).parent.mkdir(parents=True)
    (rootfs / place).symlink_to(outside)
    root = os.open(rootfs, os.O_PATH)
    try:
        assert indirect_roots.read_inside(root, NAME, 10) == []
    finally:
        os.close(root)


def test_a_stopped_container_is_looked_at_and_left_alone(tmp_path: Path, outside: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    (rootfs / "root").mkdir()
    (rootfs / "root/result").symlink_to(ONE)
    (rootfs / "out").symlink_to("../" * 40 + str(outside).lstrip("/"))
    (rootfs / "absolute").symlink_to(outside)
    (rootfs / "link").symlink_to("/root")
    before = listing(rootfs)
    texts = ["/root/result", "/link/result", "/out/result", "/absolute/result", "/none"]
    sights = asyncio.run(resolver.look_below(NAME, str(rootfs), texts)).sights
    found = [sights[text].targets for text in texts]
    assert found == [{ONE: True}, {ONE: True}, {}, {}, {}]
    assert all(sight.sure for sight in sights.values())
    assert listing(rootfs) == before


def test_a_root_file_system_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="No such file or directory"):
        asyncio.run(resolver.look_below(NAME, str(tmp_path / "none"), ["/root/result"]))


def test_a_look_is_done_as_the_containers_root(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps none of the host's rights."""

    namespace = os.readlink(f"/proc/{web.sandbox.pid}/ns/user")

    def spy(*_: object) -> dict[str, object]:
        lines = Path("/proc/self/status").read_text().splitlines()
        ids = [line.split()[1:] for line in lines if line.startswith(("Uid:", "Gid:", "Groups:"))]
        raise AssertionError(f"{ids} {os.readlink('/proc/self/ns/user') == namespace}")

    monkeypatch.setattr(resolver, "_look", spy)
    with pytest.raises(RuntimeError) as caught:
        web.look("/root/result")
    assert str(caught.value).rstrip().endswith(f"{[['0'] * 4] * 2 + [[]]} True")


def test_the_child_that_looks_is_forked(web: Web) -> None:
    """Nothing of this process changes its namespaces."""
    kinds = ("user", "mnt", "pid", "net")
    before = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds], os.getuid(), os.getcwd()
    web.look("/root/result")
    after = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds], os.getuid(), os.getcwd()
    assert before == after
