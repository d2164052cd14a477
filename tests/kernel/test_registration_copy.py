"""The container's copy of its registrations. The container can change the copy in any way."""

import asyncio
import os
from pathlib import Path

import pytest
from support.containers import MS_BIND, make_rootfs, plain
from support.links import COPY, NAME, ONE, Web

from inx_sidecar.base.errors import MountError
from inx_sidecar.links import indirect_roots, registration_copy, resolver

pytestmark = pytest.mark.gc


def copy(web: Web) -> dict[str, str]:
    place = web.rootfs / COPY
    if not place.exists():
        return {}
    return {name: os.readlink(place / name) for name in os.listdir(place)}


def test_a_path_with_a_link_is_copied_as_the_containers_root(either: Web) -> None:
    either.link("/root/result")
    either.link("/root/other", "/elsewhere")
    either.resolve_all("/root/result", "/root/other", "/root/none")
    name = indirect_roots.name_of("/root/result")
    assert copy(either) == {name: "/root/result"}
    for path in (either.rootfs / COPY / name, either.rootfs / COPY, either.rootfs / "nix"):
        status = path.lstat()
        owner = either.sandbox.first_id
        assert (status.st_uid, status.st_gid) == (owner, owner)
    inode = (either.rootfs / COPY / name).lstat().st_ino
    either.resolve("/root/result")
    assert (either.rootfs / COPY / name).lstat().st_ino == inode, (
        "an entry that is right is not written again"
    )
    asyncio.run(
        resolver.remove_registrations_inside(NAME, either.process, ["/root/result", "/root/none"])
    )
    assert copy(either) == {}


def test_a_wrong_entry_of_the_copy_is_corrected(web: Web) -> None:
    web.link("/root/result")
    name = indirect_roots.name_of("/root/result")
    for wrong in ("/root/other", "/etc/passwd", ONE):
        web.link(f"/{COPY}/{name}", wrong)
        web.resolve("/root/result")
        assert copy(web) == {name: "/root/result"}


def listing(place: Path) -> list[tuple[str, int, int]]:
    """All files below `place`, with the times that any change of them would set."""
    found = [place, *sorted(place.rglob("*"))]
    return [(str(path), path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in found]


@pytest.mark.parametrize("place", ["nix", "nix/var", "nix/var/nix", "nix/var/nix/gcroots", COPY])
@pytest.mark.parametrize("what", ["a link out", "a link within", "a file", "a fifo"])
def test_another_file_in_the_place_of_the_copy_is_reported_and_left_unchanged(
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
    resolved = asyncio.run(resolver.resolve_links(NAME, web.process, ["/root/result"]))
    links, problem = resolved.links, resolved.problem
    assert links["/root/result"].targets == {ONE: True}
    assert f"/{place}"[1:] in problem or place.rpartition("/")[2] in problem
    assert "'web'" in problem and "\n" not in problem
    asyncio.run(resolver.remove_registrations_inside(NAME, web.process, ["/root/result"]))
    assert (listing(outside), listing(web.rootfs / "inside"), listing(web.rootfs / "nix")) == before


def test_a_directory_in_the_place_of_an_entry_is_reported_and_left_unchanged(web: Web) -> None:
    web.link("/root/result")
    name = indirect_roots.name_of("/root/result")
    web.inside(lambda: os.makedirs(f"/{COPY}/{name}/x"))
    resolved = asyncio.run(resolver.resolve_links(NAME, web.process, ["/root/result"]))
    links, problem = resolved.links, resolved.problem
    assert links["/root/result"].targets == {ONE: True} and "directory" in problem
    assert os.listdir(web.rootfs / COPY) == [name], "no unfinished link is left"
    assert os.listdir(web.rootfs / COPY / name) == ["x"]


def test_a_read_only_copy_is_reported(web: Web) -> None:
    def prepare() -> None:
        os.makedirs(f"/{COPY}")
        plain(f"/{COPY}", f"/{COPY}", MS_BIND)
        plain(f"/{COPY}", "none", 32 | MS_BIND | 1)

    web.inside(prepare)
    web.link("/root/result")
    resolved = asyncio.run(resolver.resolve_links(NAME, web.process, ["/root/result"]))
    links, problem = resolved.links, resolved.problem
    assert links["/root/result"].targets == {ONE: True} and "Read-only" in problem


def test_only_correct_entries_of_a_copy_are_read(web: Web) -> None:
    """The container's root may write anything there."""

    def prepare() -> None:
        os.makedirs(f"/{COPY}")
        os.symlink("/root/result", f"/{COPY}/{indirect_roots.name_of('/root/result')}")
        os.symlink("/root/other", f"/{COPY}/{'0' * 32}")
        os.symlink("/root/other", f"/{COPY}/other")
        os.mkdir(f"/{COPY}/{indirect_roots.name_of('/root/directory')}")
        os.mkfifo(f"/{COPY}/{indirect_roots.name_of('/root/fifo')}")

    web.inside(prepare)
    assert read_inside(web.rootfs, 10) == ["/root/result"]
    assert read_inside(web.rootfs, 0) == []


@pytest.mark.parametrize("place", ["nix", "nix/var/nix/gcroots", COPY])
def test_the_host_follows_no_link_to_read_a_copy(tmp_path: Path, outside: Path, place: str) -> None:
    name = indirect_roots.name_of("/root/result")
    rest = COPY.removeprefix(place).strip("/")
    (outside / rest).mkdir(parents=True, exist_ok=True)
    (outside / rest / name).symlink_to("/root/result")
    rootfs = tmp_path / "stopped"
    (rootfs / place).parent.mkdir(parents=True)
    (rootfs / place).symlink_to(outside)
    assert read_inside(rootfs, 10) == []


@pytest.mark.parametrize("others", [0, 3000])
def test_a_copy_with_many_entries_is_read_up_to_the_limit(web: Web, others: int) -> None:
    """A child reads what the event loop would take long for. The others come first or last."""
    texts = [f"/root/{number}" for number in range(2000)]

    def prepare() -> None:
        os.makedirs(f"/{COPY}")
        for text in texts:
            os.symlink(text, f"/{COPY}/{indirect_roots.name_of(text)}")
        for number in range(others):
            os.symlink("/x", f"/{COPY}/other-{number}")

    web.inside(prepare)
    assert sorted(read_inside(web.rootfs, 10_000)) == sorted(texts)
    assert len(read_inside(web.rootfs, 1000)) <= 1000


def read_inside(rootfs: str | Path, most: int) -> list[str]:
    return asyncio.run(registration_copy.read_copy(str(rootfs), NAME, most))


def test_the_links_of_a_stopped_container_are_resolved_without_a_change(
    tmp_path: Path, outside: Path
) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    (rootfs / "root").mkdir()
    (rootfs / "root/result").symlink_to(ONE)
    (rootfs / "out").symlink_to("../" * 40 + str(outside).lstrip("/"))
    (rootfs / "absolute").symlink_to(outside)
    (rootfs / "link").symlink_to("/root")
    before = listing(rootfs)
    texts = ["/root/result", "/link/result", "/out/result", "/absolute/result", "/none"]
    links = asyncio.run(resolver.resolve_links_offline(NAME, str(rootfs), texts)).links
    found = [links[text].targets for text in texts]
    assert found == [{ONE: True}, {ONE: True}, {}, {}, {}]
    assert all(link.sure for link in links.values())
    assert listing(rootfs) == before


def test_a_missing_root_file_system_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="No such file or directory"):
        asyncio.run(resolver.resolve_links_offline(NAME, str(tmp_path / "none"), ["/root/result"]))
