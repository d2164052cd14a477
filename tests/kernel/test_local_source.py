"""A source on this host: the directories that an evaluation reads, and where they really lie."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from inx_sidecar.builds.local_source import LocalSource, look_at
from inx_sidecar.builds.shared_places import places_of
from inx_sidecar.config.sources import Flake, NixFile
from inx_sidecar.kernel.mount_table import place_of, places_below, read_mounts

pytestmark = pytest.mark.main

ALICE = 4242


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A flake of root in a subdirectory."""
    (tmp_path / "top/sub").mkdir(parents=True)
    (tmp_path / "top/sub/flake.nix").touch()
    return tmp_path / "top"


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Path]:
    """A second name of `real`."""
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "bound").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "real", tmp_path / "bound"], check=True)
    yield tmp_path / "bound"
    subprocess.run(["umount", tmp_path / "bound"], check=True)


def look(ref: object) -> LocalSource:
    return look_at(Flake(str(ref), "web", attr_given=False))


def make_git(directory: Path, owner: int = 0) -> Path:
    git = directory / ".git"
    git.mkdir()
    for name in ("config", "config.worktree", "HEAD"):
        (git / name).touch()
    os.chown(git, owner, owner)
    return git


def test_a_bind_mount_is_the_same_place(bound: Path) -> None:
    mounts = read_mounts()
    real = bound.parent / "real"
    for name in ("", "/sub"):
        assert place_of(mounts, f"{bound}{name}") == place_of(mounts, f"{real}{name}")
    assert place_of(mounts, f"{bound}/sub").is_within(place_of(mounts, str(real)))
    assert place_of(mounts, str(real)) in places_below(mounts, str(bound.parent))


def test_a_link_lies_where_it_is_and_its_target_elsewhere(bound: Path) -> None:
    link = bound.parent / "link"
    link.symlink_to(bound / "sub")
    mounts = read_mounts()
    assert place_of(mounts, str(link)).path.endswith("/link")
    assert places_of(mounts, str(link)) == places_of(mounts, str(bound.parent / "real/sub"))


def test_a_missing_source_of_a_device_has_no_place(tmp_path: Path) -> None:
    assert places_of(read_mounts(), str(tmp_path / "none")) == []


def test_the_root_of_the_host_has_a_place() -> None:
    mounts = read_mounts()
    assert place_of(mounts, "/etc").is_within(place_of(mounts, "/"))


def test_a_flake_without_a_repository_is_a_path(top: Path) -> None:
    found = look(f"{top}/sub")
    assert (found.owner, found.ref, found.repositories) == (0, f"path:{top}/sub", ())
    assert look(f"{top}?dir=sub").ref == f"path:{top}?dir=sub"
    assert look(f"path:{top}?dir=sub&narHash=x").ref == f"path:{top}?dir=sub&narHash=x"


def test_a_flake_is_found_in_its_repository(top: Path) -> None:
    make_git(top)
    wanted = f"git+file://{top}?dir=sub"
    assert look(f"{top}/sub").ref == wanted
    assert look(f"{top}?dir=sub").ref == wanted
    assert look(f"git+file:{top}?dir=sub").ref == wanted
    assert look(f"{top}/sub?submodules=1").ref == f"git+file://{top}?submodules=1&dir=sub"
    assert look(f"path:{top}/sub").ref == f"path:{top}/sub"
    assert look(f"{top}/sub").repositories == (str(top), f"{top}/.git")
    (top / ".git/shallow").touch()
    assert look(f"{top}/sub").ref == f"{wanted}&shallow=1"


def test_a_hidden_directory_keeps_its_name(top: Path) -> None:
    make_git(top)
    (top / "sub").rename(top / ".sub")
    assert look(f"{top}/.sub").ref == f"git+file://{top}?dir=.sub"


def test_a_link_is_resolved_before_nix_sees_it(top: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("top/sub")
    make_git(top)
    assert look(tmp_path / "link").ref == f"git+file://{top}?dir=sub"
    assert look(f"path:{tmp_path}/link").ref == f"path:{top}/sub"


def test_a_repository_of_somebody_else_above_is_not_used(top: Path) -> None:
    git = make_git(top, ALICE)
    assert look(f"{top}/sub").ref == f"path:{top}/sub"
    assert look(f"{top}/sub").owner == 0
    os.chown(git, 0, 0)
    os.chmod(top, 0o1777)
    assert look(f"{top}/sub").ref == f"git+file://{top}?dir=sub"


def test_a_doubtful_flake_is_not_captured_either(top: Path) -> None:
    make_git(top, ALICE)
    (top / "sub").chmod(0o777)
    assert (look(f"{top}/sub").ref, look(f"{top}/sub").owner) == (f"path:{top}/sub", None)


@pytest.mark.parametrize("name", ["", "config", "config.worktree", "HEAD"])
def test_who_can_change_the_repository_counts(top: Path, name: str) -> None:
    """Its settings name programs. A reference may name a repository where Nix finds none."""
    git = make_git(top)
    os.chown(git / name, ALICE, ALICE)
    assert look(f"git+file://{top}?dir=sub").owner == ALICE
    (git / name).chmod(0o777)
    assert look(f"git+file://{top}?dir=sub").owner is None


def test_the_directory_that_a_file_or_a_link_in_the_place_of_git_names_counts(
    top: Path, tmp_path: Path
) -> None:
    """As git worktree and git init --separate-git-dir make it."""
    (tmp_path / "elsewhere").mkdir()
    git = make_git(tmp_path / "elsewhere", ALICE)
    (top / ".git").symlink_to(git)
    assert look(f"git+file:{top}?dir=sub").owner == ALICE
    (top / ".git").unlink()
    (top / ".git").write_text(f"gitdir: {git}\n")
    assert look(f"git+file:{top}?dir=sub").owner == ALICE
    assert str(git) in look(f"git+file:{top}?dir=sub").repositories
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "commondir").write_text(f"{git}\n")
    (top / ".git").write_text(f"gitdir: {inner}\n")
    assert look(f"git+file:{top}?dir=sub").owner == ALICE
    (inner / "commondir").write_text("/nowhere\n")
    found = look(f"git+file:{top}?dir=sub")
    assert found.owner is None and "/nowhere" in found.doubt


def test_a_nix_file_is_read_with_its_directory(tmp_path: Path) -> None:
    (tmp_path / "x.nix").touch()
    found = look_at(NixFile(f"{tmp_path}/x.nix", "web", attr_given=False))
    assert (found.owner, found.directory) == (0, str(tmp_path))
    (tmp_path / "default.nix").touch()
    os.chown(tmp_path / "default.nix", ALICE, ALICE)
    assert look_at(NixFile(str(tmp_path), "web", attr_given=False)).owner == ALICE


def test_a_file_system_that_others_may_write_is_doubtful() -> None:
    """proc stands for all that are neither on a disk of this host nor in its memory."""
    found = look_at(NixFile("/proc/sys/kernel/ostype", "web", attr_given=False))
    assert found.owner is None and "(proc)" in found.doubt


def test_a_look_survives_the_way_from_the_child(top: Path) -> None:
    make_git(top)
    found = look(f"{top}/sub")
    assert LocalSource.from_json(found.to_json()) == found


@pytest.mark.parametrize("scheme", ["", "path:", "git+file:"])
def test_files_of_others_in_a_flake_count(top: Path, scheme: str) -> None:
    """Nix copies all of a flake, and evaluates what it imports."""
    make_git(top)
    ref = f"{scheme}{top}?dir=sub"
    deep = top / "deep/er"
    deep.mkdir(parents=True)
    (deep / "x.nix").touch()
    (deep / "link").symlink_to("/nowhere")
    os.lchown(deep / "link", ALICE, ALICE)
    assert look(ref).owner == 0
    os.chown(deep / "x.nix", ALICE, ALICE)
    assert (look(ref).owner, look(ref).doubt) == (None, f"several users can change {deep}/x.nix")
    os.chown(deep / "x.nix", 0, 0)
    deep.chmod(0o2775)
    assert (look(ref).owner, look(ref).doubt) == (None, f"several users can change {deep}")


GIT_ENTRIES = ["hooks/post-index-change", "modules/sub/config", "refs/heads/x", "objects/ab/cd"]


@pytest.mark.parametrize("scheme", ["", "path:", "git+file:"])
@pytest.mark.parametrize("entry", GIT_ENTRIES)
def test_entries_of_others_in_a_repository_count(top: Path, scheme: str, entry: str) -> None:
    """Nix runs git, and git runs hooks and what settings name. Git reads objects unchecked."""
    file = make_git(top) / entry
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    ref = f"{scheme}{top}?dir=sub"
    assert look(ref).owner == 0
    os.chown(file, ALICE, ALICE)
    assert (look(ref).owner, look(ref).doubt) == (None, f"several users can change {file}")


def test_entries_of_others_in_a_repository_elsewhere_count(top: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    git = make_git(tmp_path / "elsewhere")
    (top / ".git").write_text(f"gitdir: {git}\n")
    (git / "hooks").mkdir()
    (git / "hooks/x").touch()
    os.chown(git / "hooks/x", ALICE, ALICE)
    found = look(f"git+file:{top}?dir=sub")
    assert (found.owner, found.doubt) == (None, f"several users can change {git}/hooks/x")


def test_where_the_links_of_hooks_lead_counts(top: Path, tmp_path: Path) -> None:
    git = make_git(top)
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/x").touch()
    (git / "hooks").symlink_to(tmp_path / "hooks")
    assert look(top / "sub").owner == 0
    os.chown(tmp_path / "hooks", ALICE, ALICE)
    assert look(top / "sub").doubt == f"several users can change {git}/hooks"
    (git / "hooks").unlink()
    (git / "hooks").mkdir()
    (git / "hooks/post-index-change").symlink_to(tmp_path / "hooks/x")
    assert look(top / "sub").doubt == f"several users can change {git}/hooks/post-index-change"
    os.chown(tmp_path / "hooks", 0, 0)
    assert look(top / "sub").owner == 0
    assert place_of(read_mounts(), str(tmp_path / "hooks/x")) in look(top / "sub").steps
    (tmp_path / "hooks").chmod(0o777)
    assert look(top / "sub").owner is None


def test_the_repository_of_a_submodule_counts(top: Path) -> None:
    (top / "module").mkdir()
    git = make_git(top / "module")
    make_git(top)
    os.chown(git / "config", ALICE, ALICE)
    assert look(top / "sub").doubt == f"several users can change {git}/config"


def test_objects_of_git_may_have_hard_links(top: Path, tmp_path: Path) -> None:
    """A clone of a directory makes them."""
    objects = make_git(top) / "objects/ab"
    objects.mkdir(parents=True)
    (objects / "cd").touch()
    (tmp_path / "clone").hardlink_to(objects / "cd")
    assert look(top / "sub").owner == 0
    # Only there: no other directory of that name is left out.
    (top / "objects").mkdir()
    (top / "objects/x").hardlink_to(objects / "cd")
    assert (
        look(top / "sub").doubt == f"several users can change {top}/objects/x, which has hard links"
    )


@pytest.mark.parametrize("name", ["flake.nix", "deep/x.nix"])
def test_a_file_with_hard_links_has_no_owner(top: Path, tmp_path: Path, name: str) -> None:
    """cp -al, and a disk device that shares the copy."""
    file = top / "sub" / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    assert look(top / "sub").owner == 0
    (tmp_path / "copy").hardlink_to(file)
    assert look(top / "sub").owner is None
    assert look_at(NixFile(str(file), "web", attr_given=False)).owner is None


@pytest.fixture
def overlay(top: Path, tmp_path: Path) -> Iterator[Path]:
    """An overlay below the flake, which shows files of another directory."""
    point = top / "sub/more"
    for path in (point, tmp_path / "lower"):
        path.mkdir()
    (tmp_path / "lower/x.nix").touch()
    options = f"lowerdir={tmp_path}/lower:{top}/sub"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", point], check=True)
    yield point
    subprocess.run(["umount", point], check=True)


def test_a_file_system_below_that_others_may_write_is_doubtful(overlay: Path) -> None:
    doubt = f"others may write the file system {overlay} of {overlay.parent} (overlay)"
    for source in (overlay.parent, f"path:{overlay.parent}"):
        assert (look(source).owner, look(source).doubt) == (None, doubt)
    file = NixFile(f"{overlay.parent}/flake.nix", "web", attr_given=False)
    assert (look_at(file).owner, look_at(file).doubt) == (None, doubt)


def test_a_link_on_such_a_file_system_is_doubtful(overlay: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/flake.nix").touch()
    (tmp_path / "lower/link").symlink_to(tmp_path / "real")
    found = look(overlay / "link")
    assert (found.owner, found.directory) == (None, str(tmp_path / "real"))
    assert f"the file system {overlay}" in found.doubt
