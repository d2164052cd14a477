"""An open of a marked directory waits until it is allowed, or until the group is closed."""

import os
import time
from pathlib import Path

import pytest
from support.containers import MS_BIND, plain
from support.descriptors import open_descriptors
from support.openers import Start, marks, open_requests, opens
from support.waiting import eventually

from inx_sidecar.kernel.fanotify import PermissionGroup
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, MS_PRIVATE, MS_REC, mount, unshare

pytestmark = pytest.mark.gc


def test_an_open_waits_until_it_is_allowed(
    group: PermissionGroup, gcroots: str, start: Start
) -> None:
    group.mark(gcroots)
    opener = start(opens(gcroots))
    (opening,) = open_requests(group)
    assert opening.pid == opener.pid
    assert os.path.samestat(os.fstat(opening.fd), os.stat(gcroots))
    time.sleep(0.05)
    assert not opener.ended() and list(group.open_requests()) == []
    group.allow(opening)
    eventually(opener.succeeded)
    assert not os.path.exists(f"/proc/self/fd/{opening.fd}")


def test_each_open_is_allowed_separately(
    group: PermissionGroup, gcroots: str, start: Start
) -> None:
    group.mark(gcroots)
    one, two = start(opens(gcroots)), start(opens(gcroots))
    first, second = sorted(open_requests(group, 2), key=lambda opening: opening.pid != one.pid)
    group.allow(second)
    eventually(two.succeeded)
    assert not one.ended()
    group.allow(first)
    eventually(one.succeeded)


def test_closing_the_group_allows_all_opens(
    group: PermissionGroup, gcroots: str, start: Start
) -> None:
    group.mark(gcroots)
    read = start(opens(gcroots))
    (opening,) = open_requests(group)
    not_read = [start(opens(gcroots)) for _ in range(5)]
    time.sleep(0.05)
    assert not any(opener.ended() for opener in (read, *not_read))
    group.close()
    for opener in (read, *not_read):
        eventually(opener.succeeded)
    os.close(opening.fd)
    eventually(start(opens(gcroots)).succeeded)


def test_the_end_of_the_process_allows_all_opens(
    gcroots: str, start: Start, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"

    def hold() -> None:
        group = PermissionGroup()
        group.mark(gcroots)
        while True:
            for _ in group.open_requests():
                ready.touch()

    holder = start(hold)

    eventually(lambda: marks(holder.pid))
    opener = start(opens(gcroots))
    eventually(ready.exists)
    assert not opener.ended()
    holder.kill()
    eventually(opener.succeeded)


def test_a_process_may_be_killed_while_it_waits(
    group: PermissionGroup, gcroots: str, start: Start
) -> None:
    group.mark(gcroots)
    killed = start(opens(gcroots))
    (opening,) = open_requests(group)
    killed.kill()
    group.allow(opening)
    assert not os.path.exists(f"/proc/self/fd/{opening.fd}")
    opener = start(opens(gcroots))
    group.allow(open_requests(group)[0])
    eventually(opener.succeeded)


def test_many_opens_can_wait(group: PermissionGroup, gcroots: str, start: Start) -> None:
    group.mark(gcroots)
    before = open_descriptors()
    openers = [start(opens(gcroots)) for _ in range(200)]
    for opening in open_requests(group, 200):
        group.allow(opening)
    for opener in openers:
        eventually(opener.succeeded)
    assert open_descriptors() == before


def test_no_other_access_to_the_directory_waits(
    group: PermissionGroup, gcroots: str, temproots: str, start: Start
) -> None:
    os.symlink("/nix/store/x", f"{gcroots}/inx/link")
    os.mkdir(temproots)
    group.mark(gcroots)

    def work() -> None:
        os.stat(gcroots)
        os.readlink(f"{gcroots}/inx/link")
        os.listdir(f"{gcroots}/inx")
        os.listdir(temproots)
        os.close(os.open(gcroots, os.O_PATH))
        Path(f"{gcroots}/file").write_text("x")
        Path(f"{gcroots}/file").read_text()
        os.mkdir(f"{gcroots}/new")
        os.listdir(f"{gcroots}/new")
        os.rename(f"{gcroots}/new", f"{gcroots}/inx/new")

    eventually(start(work).succeeded)
    assert list(group.open_requests()) == []


def test_an_open_through_another_mount_waits(
    group: PermissionGroup, gcroots: str, tmp_path: Path, start: Start
) -> None:
    group.mark(gcroots)
    (tmp_path / "bound").mkdir()

    def work() -> None:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        plain(f"{tmp_path}/bound", gcroots, MS_BIND)
        os.listdir(f"{tmp_path}/bound")

    opener = start(work)
    (opening,) = open_requests(group)
    assert opening.pid == opener.pid and not opener.ended()
    group.allow(opening)
    eventually(opener.succeeded)


def test_a_directory_that_is_marked_again_gives_one_request(
    group: PermissionGroup, gcroots: str, start: Start
) -> None:
    for _ in range(3):
        group.mark(gcroots)
    opener = start(opens(gcroots))
    group.allow(open_requests(group)[0])
    eventually(opener.succeeded)
    assert list(group.open_requests()) == []


def test_only_a_directory_can_be_marked(group: PermissionGroup, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        group.mark(str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError):
        group.mark(str(tmp_path / "none"))
