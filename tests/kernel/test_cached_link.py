"""A link in the root file system is found without a child, and nothing of a container is asked."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from support.fuse import hanging
from support.links import ONE, TWO, Web, join_cgroup, make_long_way, mount_disk
from support.registrations import WEB
from support.waiting import eventually

from inx_sidecar.base import paths
from inx_sidecar.incus.running_record import process_start_time
from inx_sidecar.links import indirect_roots
from inx_sidecar.links.cached_link import find_cached
from inx_sidecar.links.resolver import InitProcess, ResolvedLink
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots import direct_roots, mirror
from inx_sidecar.roots.link_roots import LINKS
from inx_sidecar.roots.mirror import Mirror

pytestmark = pytest.mark.gc


def found(web: Web, text: str) -> str | None:
    return find_cached(str(web.rootfs), {"name": text}).get("name")


def test_a_link_that_was_just_made_is_found(web: Web) -> None:
    web.link("/root/result", f"{ONE}/bin/tool")
    eventually(lambda: found(web, "/root/result") == ONE)  # a mount elsewhere ends a walk
    web.link("/home", "root")

    def is_found() -> bool:
        """Only a link that was used since it was made is in the cache."""
        os.stat(web.rootfs / "home/result", follow_symlinks=False)
        return found(web, "/home/result") == ONE

    eventually(is_found)
    for other in ("/root", "/root/none", "/none/result", "/proc/1/root/root/result", "", "/"):
        assert found(web, other) is None


@pytest.mark.parametrize("by", ["absolute", "upwards"])
def test_no_link_leads_out_of_the_root_file_system(web: Web, outside: Path, by: str) -> None:
    out = str(outside) if by == "absolute" else "../" * 40 + str(outside).lstrip("/")
    web.link("/out", out)
    for text in ("/out/result", f"/../..{outside}/result"):
        assert found(web, text) is None


def test_mounts_of_the_container_are_not_asked(web: Web) -> None:
    web.link("/root/result")
    web.inside(lambda: mount_disk("/root", target=TWO))
    assert found(web, "/root/result") is None
    web.link("/srv/dir/result")
    with hanging(web, "/srv"):
        begin = time.monotonic()
        assert found(web, "/srv/dir/result") is None
        assert time.monotonic() - begin < 0.2


def test_long_ways_do_not_keep_the_event_loop(web: Web) -> None:
    web.link("/root/result")
    web.inside(lambda: make_long_way("/way", "/root"))
    eventually(lambda: found(web, "/way/result") == ONE)  # a mount elsewhere ends a walk
    begin = time.thread_time()
    links = find_cached(str(web.rootfs), {str(n): "/way/result" for n in range(500)})
    assert time.thread_time() - begin < 0.05
    assert len(links) < 200


@pytest.mark.usefixtures("registrations")
def test_a_registered_link_has_its_root_before_a_child_looks(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(paths.NIX_DB)) as db, db:
        db.execute("insert into ValidPaths values (?)", (ONE,))
    web.link("/root/result")
    indirect_roots.put(WEB, "/root/result")
    one = Mirror("web", WEB, str(web.rootfs), web.process, 1000, GcClient())
    place = direct_roots.directory("web", WEB)
    name = indirect_roots.name_of("/root/result")
    seen = []
    resolve = one.resolver.resolve

    async def spy(texts: Iterable[str]) -> dict[str, ResolvedLink]:
        seen.append(direct_roots.read(place, LINKS))
        return await resolve(texts)

    monkeypatch.setattr(one.resolver, "resolve", spy)
    asyncio.run(one.add_registered([name]))
    assert seen == [{f"{LINKS}{name}.{ONE[11:43]}": ONE}] == [direct_roots.read(place, LINKS)]


@pytest.mark.usefixtures("registrations")
def test_nix_is_asked_once_whether_the_path_of_such_a_link_is_valid(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(paths.NIX_DB)) as db, db:
        db.executemany("insert into ValidPaths values (?)", [(ONE,), (TWO,)])
    web.link("/root/result")
    # Only the child finds this one: it lies on another file system.
    web.inside(lambda: mount_disk("/mnt", target=TWO))
    names = [indirect_roots.name_of(text) for text in ("/root/result", "/mnt/result")]
    for text in ("/root/result", "/mnt/result"):
        indirect_roots.put(WEB, text)
    asked: list[set[str]] = []

    def spy(candidates: Iterable[str]) -> frozenset[str]:
        asked.append(set(candidates))
        return valid_paths(asked[-1])

    monkeypatch.setattr(mirror, "valid_paths", spy)
    eventually(lambda: found(web, "/root/result") == ONE)  # a mount elsewhere ends a walk
    one = Mirror("web", WEB, str(web.rootfs), web.process, 1000, GcClient())
    asyncio.run(one.add_registered(names))
    assert asked == [{ONE}, {TWO}]
    place = direct_roots.directory("web", WEB)
    assert set(direct_roots.read(place, LINKS).values()) == {ONE, TWO}


@pytest.mark.usefixtures("registrations")
def test_a_root_that_the_container_does_not_see_goes_with_the_next_comparison(web: Web) -> None:
    """Its init has a root directory of its own, where the path leads elsewhere."""
    with closing(sqlite3.connect(paths.NIX_DB)) as db, db:
        db.executemany("insert into ValidPaths values (?)", [(ONE,), (TWO,)])
    web.link("/root/result")
    web.link("/jail/root/result", TWO)
    indirect_roots.put(WEB, "/root/result")

    async def may_drop() -> bool:
        return True

    async def main(init: int) -> None:
        process = InitProcess(init, process_start_time(init))
        one = Mirror("web", WEB, str(web.rootfs), process, 1000, GcClient())
        await one.add_registered([indirect_roots.name_of("/root/result")])
        assert set(direct_roots.read(place, LINKS).values()) == {ONE, TWO}
        join_cgroup(web.cgroup.parent, web.process.pid)
        await one.compare(may_drop)

    place = direct_roots.directory("web", WEB)
    with web.service(lambda: os.chroot("/jail"), own_mounts=False) as init:
        asyncio.run(main(init))
    assert list(direct_roots.read(place, LINKS).values()) == [TWO]
