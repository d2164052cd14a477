"""Files inside are read and written as the container's own root, whatever it puts there."""

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from support.containers import Sandbox

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.container.files import read_tail, write_generation
from inx_sidecar.container.namespaces import Container
from inx_sidecar.nix import generations
from inx_sidecar.nix.generation_changes import Append, Change, Select
from inx_sidecar.nix.seals import Sealer
from kernel.test_mounts import CHANGE, SYSTEM, planted

pytestmark = pytest.mark.main

OTHER: Final = f"{SYSTEM}-other"


def write(sandbox: Sandbox, change: Change) -> int:
    with Container(sandbox.pid, "web") as container:
        return asyncio.run(write_generation(container, change))


def read(sandbox: Sandbox, path: str, max_bytes: int = 100) -> str:
    with Container(sandbox.pid, "web") as container:
        return asyncio.run(read_tail(container, path, max_bytes))


def test_a_generation_can_be_written_later(sandbox: Sandbox) -> None:
    assert write(sandbox, CHANGE) == 1
    assert write(sandbox, Append(f"{SYSTEM}-2", "second", 5)) == 2
    assert write(sandbox, Select(1, pinned=True)) == 1
    found = generations.read(str(sandbox.rootfs), "web")
    assert (found.current, found.newest, found.pinned) == (1, 2, True)
    assert (sandbox.rootfs / "nix/var/nix/profiles/system-2-link").lstat().st_uid == (
        sandbox.first_id
    )


@pytest.mark.parametrize("place", ["nix", "nix/var/nix/profiles"])
def test_a_link_that_is_planted_while_it_runs_is_refused(unprivileged: Sandbox, place: str) -> None:
    planted(unprivileged.rootfs, place, "/mnt")
    with pytest.raises(InstanceError, match=rf"/{place} of 'web' cannot be used"):
        write(unprivileged, CHANGE)
    assert os.listdir(unprivileged.rootfs / "mnt") == []


@pytest.mark.isolated
def test_a_generation_that_inx_writes_counts_and_one_made_inside_does_not(
    unprivileged: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(paths, "STATE", str(tmp_path / "state"))
    sealer = Sealer("0" * 36)
    write(unprivileged, sealer.add_seal(Append(SYSTEM, "x", 5)))
    profiles = "/nix/var/nix/profiles"

    def make() -> None:
        os.symlink(OTHER, f"{profiles}/system-2-link")
        os.symlink(os.readlink(f"{profiles}/system-1-seal"), f"{profiles}/system-2-seal")
        os.unlink(f"{profiles}/system")
        os.symlink("system-2-link", f"{profiles}/system")

    unprivileged.inside(make)
    present = generations.read(str(unprivileged.rootfs), "web")
    assert (present.links, present.current) == ({1: SYSTEM, 2: OTHER}, 2)
    usable = sealer.trusted(present)
    assert (usable.links, usable.current) == ({1: SYSTEM}, None)


def test_the_end_of_a_file_inside_is_read(sandbox: Sandbox) -> None:
    sandbox.inside(lambda: Path("/log").write_bytes(b"first\nlast \xff\n"))
    assert read(sandbox, "log") == "first\nlast \ufffd\n"
    assert read(sandbox, "log", 7) == "last \ufffd\n"


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: os.symlink("/other", "/log"),
        lambda: os.mkfifo("/log"),
        lambda: os.mkdir("/log"),
    ],
    ids=["missing", "link", "fifo", "directory"],
)
def test_what_is_no_regular_file_is_read_as_empty(
    sandbox: Sandbox, make: Callable[[], None]
) -> None:
    sandbox.inside(lambda: Path("/other").write_text("another file"))
    sandbox.inside(make)
    assert read(sandbox, "log") == ""


def test_a_device_is_read_as_empty(sandbox: Sandbox) -> None:
    os.mknod(sandbox.rootfs / "log", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    assert sandbox.inside(lambda: Path("/log").open("rb").read(3)) == bytes(3)
    assert read(sandbox, "log") == ""


def test_a_link_on_the_way_stays_inside(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of the host")
    sandbox.inside(lambda: os.symlink(str(tmp_path), "/run"))
    assert read(sandbox, "run/log") == ""
