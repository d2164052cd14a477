"""A walk below a container's root follows no link, and names the step that stands in the way."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.descriptors import open_descriptors

from inx_sidecar.base.errors import InstanceError
from inx_sidecar.kernel.safe_open import open_directory, replace_link, unusable_path_error
from inx_sidecar.kernel.syscalls import opened

pytestmark = pytest.mark.main


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "rootfs").mkdir()
    with opened(os.open(tmp_path / "rootfs", os.O_PATH)) as fd:
        yield fd


def test_a_directory_that_is_there_is_opened(root: int, tmp_path: Path) -> None:
    (tmp_path / "rootfs/nix/var").mkdir(parents=True)
    with opened(open_directory(root, "nix/var", "web")) as fd:
        assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "rootfs/nix/var"))


def test_a_missing_directory_is_made_only_if_asked_for(root: int, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_directory(root, "nix/var", "web")
    assert os.listdir(tmp_path / "rootfs") == []
    os.close(open_directory(root, "nix/var", "web", make=True))
    assert (tmp_path / "rootfs/nix/var").is_dir()


@pytest.mark.parametrize("place", ["nix", "nix/var", "nix/var/nix"])
@pytest.mark.parametrize("make", [False, True])
def test_a_link_or_a_file_on_the_way_is_named(
    root: int, tmp_path: Path, place: str, make: bool
) -> None:
    (tmp_path / "outside/var/nix").mkdir(parents=True)
    path = tmp_path / "rootfs" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(InstanceError, match=rf"^/{place} of 'web' cannot be used \(.*; remove it$"):
        open_directory(root, "nix/var/nix", "web", make=make)
    path.unlink()
    path.touch()
    with pytest.raises(InstanceError, match=rf"^/{place} of 'web' cannot be used \(.*; remove it$"):
        open_directory(root, "nix/var/nix", "web", make=make)


def test_no_descriptor_stays_open(root: int, tmp_path: Path) -> None:
    (tmp_path / "rootfs/a").mkdir()
    (tmp_path / "rootfs/a/b").touch()
    before = open_descriptors()
    os.close(open_directory(root, "a", "web"))
    for path in ("a/b", "a/c"):
        with pytest.raises((InstanceError, FileNotFoundError)):
            open_directory(root, path, "web")
    assert open_descriptors() == before


def test_advice_is_given_only_for_what_can_be_removed() -> None:
    link = unusable_path_error("nix", "web", OSError(errno.ELOOP, "Too many levels"))
    assert str(link).endswith("a link or a file inside the instance stands in its place; remove it")
    full = unusable_path_error("nix", "web", OSError(errno.ENOSPC, "No space left on device"))
    assert str(full) == "/nix of 'web' cannot be used (No space left on device)"


def test_a_link_is_replaced_whatever_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    with opened(os.open(tmp_path, os.O_RDONLY)) as fd:
        for name in ("file", "link", "new"):
            replace_link(fd, name, "target")
            assert os.readlink(tmp_path / name) == "target"
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "new"]


def test_a_directory_is_not_replaced_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with opened(os.open(tmp_path, os.O_RDONLY)) as fd, pytest.raises(IsADirectoryError):
        replace_link(fd, "directory", "target")
    assert os.listdir(tmp_path) == ["directory"]
