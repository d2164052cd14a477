"""A running container gets another view of the store, and a generation."""

import asyncio
import mmap
import os
from collections.abc import Callable, Iterator, Set
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from support.containers import MS_SHARED, Sandbox, plain

from inx_sidecar.base.errors import InstanceError, SystemMissingError
from inx_sidecar.container.locked_mounts import HostDirectory
from inx_sidecar.container.mounts import attach_mounts
from inx_sidecar.container.namespaces import Container
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, CLONE_NEWUSER, MS_PRIVATE, MS_REC, unshare
from inx_sidecar.nix import generations
from inx_sidecar.nix.generation_changes import Append
from kernel.test_mounts import CHANGE, SYSTEM, descriptors
from kernel.views import (
    DIRECTORY,
    FILE,
    HIDDEN,
    ODD,
    SHOWN,
    attached,
    listed,
    make_store,
    name_of,
    shown,
    steps,
)

pytestmark = [pytest.mark.isolated, pytest.mark.usefixtures("run_directory")]

MS_SLAVE: Final = 1 << 19
REPAIR: Final = "run 'nix-store --verify --check-contents --repair'"
NEXT = Append(f"{SYSTEM}-2", "second", 5)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with the entries of SHOWN, and with as many others."""
    path = tmp_path / "store"
    make_store(path)
    return path


@pytest.mark.parametrize("way", [attached, shown], ids=["attach", "show"])
def test_an_entry_that_is_missing_is_named_and_nothing_is_left(
    sandbox: Sandbox, store: Path, way: Callable[..., bool]
) -> None:
    before = descriptors()
    gone = name_of("gone")
    with pytest.raises(SystemMissingError) as caught:
        way(sandbox, store, {FILE, gone}, CHANGE)
    assert str(caught.value).startswith(f"{gone} is not in the store")
    assert str(caught.value).endswith(REPAIR)
    assert descriptors() == before
    assert not (sandbox.rootfs / "nix").exists()
    way(sandbox, store, {FILE}, None)
    assert descriptors() == before
    assert listed(sandbox) == {FILE}


def test_a_new_view_is_seen_and_who_uses_the_old_one_goes_on(sandbox: Sandbox, store: Path) -> None:
    def life() -> Iterator[tuple[list[bytes], Set[str], Set[str]]]:
        os.chdir(f"/nix/store/{DIRECTORY}/bin")
        files = [open(f"/nix/store/{name}", "rb") for name in (FILE, f"{DIRECTORY}/bin/deep/file")]
        maps = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in files]
        directory = os.open("/nix/store", os.O_RDONLY)
        while True:
            content = [os.pread(file.fileno(), 99, 0) for file in files]
            content += [pages[:] for pages in maps] + [Path("deep/file").read_bytes()]
            yield content, {*os.listdir("."), *os.listdir(directory)}, set(os.listdir("/nix/store"))

    attached(sandbox, store)
    with steps(sandbox, life) as step:
        content, old, new = step()
        assert (old, new) == ({"deep"} | SHOWN, SHOWN)
        assert shown(sandbox, store, {HIDDEN, ODD}) is True
        assert step() == (content, old, {HIDDEN, ODD})
        (store / HIDDEN / "late").touch()
        assert shown(sandbox, store, {FILE}) is True
        assert step() == (content, old, {FILE})
    shown(sandbox, store, {*SHOWN, HIDDEN})
    assert sandbox.inside(Path(f"/nix/store/{DIRECTORY}/up").read_text) == f"of {HIDDEN}"


def test_a_container_that_waits_without_a_store_is_shown_its_first_view(
    sandbox: Sandbox, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "boot").mkdir()
    with Container(sandbox.pid, "web") as container:
        asyncio.run(
            attach_mounts(container, [HostDirectory(str(tmp_path / "boot"), "dev/.inx")], None)
        )
    assert listed(sandbox, "/nix") == {"var"}
    assert shown(sandbox, store, SHOWN, CHANGE) is True
    assert listed(sandbox) == SHOWN
    assert generations.read(str(sandbox.rootfs), "web").system == SYSTEM


@pytest.mark.parametrize(
    "namespaces", [CLONE_NEWNS, CLONE_NEWNS | CLONE_NEWUSER], ids=["mount", "user"]
)
@pytest.mark.parametrize(
    ("propagation", "seen"),
    [(MS_SLAVE, {HIDDEN}), (MS_PRIVATE, SHOWN)],
    ids=["slave", "private"],
)
def test_a_mount_namespace_inside_sees_a_new_view_if_it_is_a_slave(
    sandbox: Sandbox, store: Path, namespaces: int, propagation: int, seen: set[str]
) -> None:
    """systemd makes all mounts shared, so the mount namespaces of its services are slaves."""

    def service() -> Iterator[set[str]]:
        unshare(namespaces)
        plain("/", flags=MS_REC | propagation)
        while True:
            yield set(os.listdir("/nix/store"))

    attached(sandbox, store)
    sandbox.inside(lambda: plain("/", flags=MS_REC | MS_SHARED))
    with steps(sandbox, service) as step:
        assert step() == SHOWN
        for names in (SHOWN, {DIRECTORY}, {HIDDEN}):
            shown(sandbox, store, names)
        assert step() == seen


def test_ten_views_in_a_row_with_a_generation_each(sandbox: Sandbox, store: Path) -> None:
    attached(sandbox, store)
    before = descriptors()
    for number, name in enumerate(sorted(SHOWN)[:10], 2):
        shown(sandbox, store, {name}, Append(f"{SYSTEM}-{number}", "x", 5))
        assert listed(sandbox) == {name}
        assert generations.read(str(sandbox.rootfs), "web").current == number
    assert descriptors() == before


@pytest.mark.parametrize("place", ["nix", "nix/store"])
@pytest.mark.parametrize("target", ["/mnt", "../../mnt", "file"])
def test_what_is_planted_in_the_place_of_a_view_is_named_and_the_old_view_stays(
    sandbox: Sandbox, store: Path, place: str, target: str
) -> None:
    attached(sandbox, store)

    def plant() -> None:
        os.rename("/nix", "/old")
        Path("/", place).parent.mkdir(exist_ok=True)
        if target == "file":
            Path("/", place).touch()
        else:
            os.symlink(target, f"/{place}")

    sandbox.inside(plant)
    before = descriptors()
    with pytest.raises(InstanceError, match=rf"^/{place} of 'web' cannot be used .*; remove it$"):
        shown(sandbox, store, {HIDDEN}, NEXT)
    assert descriptors() == before
    assert listed(sandbox, "/old/store") == SHOWN
    assert listed(sandbox, "/mnt") == set()
    assert not sandbox.inside(partial(os.path.exists, "/nix/var"))
    profiles = listed(sandbox, "/old/var/nix/profiles")
    assert "system-1-link" in profiles and "system-2-link" not in profiles
