"""The resolver finds the right targets of registered paths, whatever the container has made."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.links import COPY, ONE, TWO, Web, store

from inx_sidecar.links import indirect_roots
from inx_sidecar.links.resolver import ResolvedLink
from inx_sidecar.links.root_directories import INIT

pytestmark = pytest.mark.gc


def test_a_link_on_the_root_file_system_is_found(either: Web) -> None:
    either.link("/root/result")
    places = frozenset({INIT})
    assert either.resolve("/root/result") == ResolvedLink({ONE: True}, places, frozenset(), True)
    either.link("/root/result", f"{TWO}/bin/sh")
    assert either.resolve("/root/result").targets == {TWO: True}, "the present target"


def test_a_removed_link_is_missing(either: Web) -> None:
    either.link("/root/result")
    either.inside(lambda: os.unlink("/root/result"))
    places = frozenset({INIT})
    assert either.resolve("/root/result") == ResolvedLink({}, frozenset(), places, True)
    assert either.resolve("/none/such/directory") == ResolvedLink({}, frozenset(), places, True)


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "socket", "other link", "chain"])
def test_a_file_that_is_no_link_to_the_store_is_missing(web: Web, kind: str) -> None:
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
    link = web.resolve("/x")
    assert (link.targets, link.sure) == ({}, True) and link.missing == {INIT}


def test_a_link_below_a_linked_directory_is_found(web: Web) -> None:
    web.link("/data/home/result")
    web.inside(lambda: os.symlink("/data/home", "/home"))
    assert web.resolve("/home/result").targets == {ONE: True}


def test_each_of_many_paths_has_its_own_target(web: Web) -> None:
    texts = [f"/root/{number}" for number in range(1000)]

    def prepare() -> None:
        os.mkdir("/root")
        for number in range(0, 1000, 2):
            os.symlink(store(str(number % 5)), f"/root/{number}")

    web.inside(prepare)
    links = web.resolve_all(*texts)
    for number, text in enumerate(texts):
        expected = {store(str(number % 5)): True} if number % 2 == 0 else {}
        assert links[text].targets == expected


@pytest.mark.parametrize(
    "text",
    [
        "/loop", "/loop/result", "/loop/../root/result", "/self/self/result", "/a", "/a/x",
    ],
)  # fmt: skip
def test_links_in_a_loop_are_missing(web: Web, text: str) -> None:
    def prepare() -> None:
        os.symlink("loop", "/loop")
        os.symlink("self", "/self")
        os.symlink("/b", "/a")
        os.symlink("/a", "/b")

    web.inside(prepare)
    link = web.resolve(text)
    assert (link.targets, link.missing, link.sure) == ({}, frozenset({INIT}), True)


@pytest.mark.parametrize(
    "text",
    [
        "/root/../root/result", "/../../../../root/result", "//root//result", "/./root/./result",
        "root/result", "/root/sub/../result", "/..//root/result",
    ],
)  # fmt: skip
def test_a_path_with_dots_stays_below_the_root(web: Web, text: str) -> None:
    web.link("/root/result")
    web.link("/root/sub/other")
    assert web.resolve(text).targets == {ONE: True}


@pytest.mark.parametrize("text", ["", "/", ".", "..", "/..", "/root/", "/root/.", "/root/result/"])
def test_a_path_that_cannot_be_a_link_is_missing(web: Web, text: str) -> None:
    web.link("/root/result")
    link = web.resolve(text)
    assert (link.targets, link.sure) == ({}, True)


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
    links = web.resolve_all(longest, deep)
    assert links[longest].targets == {ONE: True}
    assert links[deep].targets == {TWO: True}


@pytest.mark.parametrize("text", ["/" + "n" * 256, "/" + "x/" * 2047 + "xx", "/x" * 3000])
def test_a_path_that_no_link_can_have_is_missing(web: Web, text: str) -> None:
    link = web.resolve(text)
    assert (link.targets, link.sure) == ({}, True) and link.missing == {INIT}


@pytest.mark.parametrize(
    "name", [b"a\nb", b"\xff\xfe\x80", b"\xed\xa0\x80", b" ", b"'\"\\", b"\x01\x1b[2J", b"a\rb"]
)
def test_a_name_may_be_any_bytes(web: Web, name: bytes) -> None:
    text = os.fsdecode(b"/root/" + name)
    web.link(text)
    assert web.resolve(text).targets == {ONE: True}
    copied = indirect_roots.name_of(text)
    assert os.readlink(web.rootfs / COPY / copied) == text


@pytest.mark.parametrize("by", ["absolute", "upwards", "a directory", "a mixture"])
def test_a_link_to_a_directory_outside_stays_below_the_root(
    web: Web, outside: Path, by: str
) -> None:
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
        link = web.resolve(text)
        assert (link.targets, link.found) == ({}, frozenset())
    # Below the container's root, the same path is another directory.
    web.link(str(outside / "result"), TWO)
    assert web.resolve("/out/result").targets == {TWO: True}


def test_the_magic_links_of_proc_are_not_followed(web: Web, outside: Path) -> None:
    web.link("/root/result")
    fd = os.open(outside, os.O_PATH)
    try:
        texts = [
            f"/proc/{pid}/{what}/result"
            for pid in ("1", "self", "thread-self")
            for what in ("root", "cwd", f"fd/{fd}", "root/root", "task/1/root/root")
        ]
        for text, link in web.resolve_all(*texts).items():
            assert (text, link.targets) == (text, {})
    finally:
        os.close(fd)


def test_the_resolver_is_not_sure_about_a_directory_that_it_may_not_search(web: Web) -> None:
    """The owner of the directory is not mapped into the container, so its root has no access."""
    web.link("/closed/result")
    os.chown(web.rootfs / "closed", 0, 0)
    os.chmod(web.rootfs / "closed", 0o700)
    link = web.resolve("/closed/result")
    assert (link.targets, link.sure, link.missing) == ({}, False, frozenset())


def _swap(one: str, two: str, place: str) -> None:
    """Replace a link by another one, in one step, again and again."""
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
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the function ended too early"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_link_that_changes_while_it_is_read_has_one_of_both_targets(web: Web) -> None:
    web.link("/root/result")
    place = str(web.rootfs / "root/result")
    long = f"{TWO}/{'x' * 3000}"
    results: list[dict[str, bool]] = []
    with busy(lambda: _swap(ONE, long, place)):
        deadline = time.monotonic() + 60
        while len(results) < 1000 or {ONE: True} not in results or {TWO: True} not in results:
            # Many paths lead to the same link, so that one call reads the link often.
            links = web.resolve_all(*("/" * count + "root/result" for count in range(1, 101)))
            assert all(link.sure for link in links.values())
            results += [dict(link.targets) for link in links.values()]
            assert time.monotonic() < deadline
    assert all(targets in ({ONE: True}, {TWO: True}) for targets in results)


def test_a_directory_that_becomes_a_link_to_the_outside_is_never_left(
    web: Web, outside: Path
) -> None:
    web.link("/real/result")
    web.link("/d", "real")
    place = str(web.rootfs / "d")
    upwards = "../" * 40 + str(outside).lstrip("/")
    results: list[dict[str, bool]] = []
    with busy(lambda: _swap("real", upwards, place)):
        deadline = time.monotonic() + 60
        while len(results) < 1000 or {ONE: True} not in results or {} not in results:
            links = web.resolve_all(*("/" * count + "d/result" for count in range(1, 101)))
            results += [dict(link.targets) for link in links.values()]
            assert time.monotonic() < deadline
    assert all(targets in ({ONE: True}, {}) for targets in results)
