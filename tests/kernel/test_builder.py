"""Nix code is evaluated with the rights of whoever alone decides what stands there."""

import os
from pathlib import Path

import pytest

from inx_sidecar.base.errors import InxError, UnsupportedError
from inx_sidecar.builds.build import builder, sole_owner
from inx_sidecar.config.keys import Flake, NixFile
from inx_sidecar.config.settings import Settings

pytestmark = pytest.mark.main

ALICE, BOB = 4242, 4243


def directory(path: Path, owner: int = 0, mode: int = 0o755) -> Path:
    path.mkdir()
    os.chown(path, owner, owner)
    path.chmod(mode)
    return path


def link(path: Path, target: str | Path, owner: int = 0) -> Path:
    path.symlink_to(target)
    os.lchown(path, owner, owner)
    return path


def test_what_is_roots_all_the_way_is_roots(tmp_path: Path) -> None:
    place = directory(tmp_path / "etc")
    assert sole_owner(str(place)) == 0
    assert sole_owner("/") == 0


def test_a_users_directory_is_the_users(tmp_path: Path) -> None:
    place = directory(tmp_path / "alice", ALICE)
    assert sole_owner(str(place)) == ALICE
    assert sole_owner(str(directory(place / "flake", ALICE))) == ALICE


def test_a_directory_of_roots_below_a_users_is_the_users(tmp_path: Path) -> None:
    """The user could exchange it."""
    place = directory(directory(tmp_path / "alice", ALICE) / "roots")
    assert sole_owner(str(place)) == ALICE


def test_what_two_users_decide_is_nobodys(tmp_path: Path) -> None:
    place = directory(directory(tmp_path / "alice", ALICE) / "bob", BOB)
    assert sole_owner(str(place)) is None
    assert sole_owner(str(link(place / "link", "/etc", BOB))) is None


def test_a_users_link_to_roots_directory_is_the_users(tmp_path: Path) -> None:
    place = directory(tmp_path / "roots")
    home = directory(tmp_path / "alice", ALICE)
    assert sole_owner(str(link(home / "link", place, ALICE))) == ALICE
    assert sole_owner(str(link(home / "relative", "../roots", ALICE))) == ALICE
    # Root's own link, but in the user's directory.
    assert sole_owner(str(link(home / "roots", place))) == ALICE


def test_roots_link_to_a_users_directory_is_the_users(tmp_path: Path) -> None:
    place = directory(tmp_path / "alice", ALICE)
    assert sole_owner(str(link(tmp_path / "link", place))) == ALICE
    assert sole_owner(str(link(tmp_path / "relative", "alice"))) == ALICE
    assert sole_owner(str(link(tmp_path / "dots", "./././alice/../alice/."))) == ALICE


def test_a_chain_of_links_is_walked_to_its_end(tmp_path: Path) -> None:
    directory(tmp_path / "bob", BOB)
    place = link(tmp_path / "0", "bob")
    for number in range(1, 20):
        place = link(tmp_path / str(number), f"{tmp_path}/{number - 1}")
    assert sole_owner(str(place)) == BOB


def test_a_link_within_the_way_is_seen(tmp_path: Path) -> None:
    directory(directory(tmp_path / "a") / "flake")
    link(tmp_path / "link", "a", ALICE)
    assert sole_owner(f"{tmp_path}/link/flake") == ALICE
    assert sole_owner(f"{tmp_path}/a/flake") == 0


def test_dots_lead_where_the_kernel_goes(tmp_path: Path) -> None:
    """Up from where a link leads, not from where it stands."""
    directory(directory(tmp_path / "alice", ALICE) / "deep", ALICE)
    directory(tmp_path / "alice/x", ALICE)
    directory(tmp_path / "x")
    link(tmp_path / "link", "alice/deep")
    assert os.path.samefile(f"{tmp_path}/link/../x", tmp_path / "alice/x")
    assert sole_owner(f"{tmp_path}/link/../x") == ALICE
    assert sole_owner(f"{tmp_path}/../../../../../../../..") == 0


def test_a_dot_is_no_step(tmp_path: Path) -> None:
    directory(directory(tmp_path / "a") / "x")
    directory(tmp_path / "x", ALICE)
    link(tmp_path / "a/link", "../x")
    assert os.path.samefile(f"{tmp_path}/a/./link", tmp_path / "x")
    assert sole_owner(f"{tmp_path}/a/./link") == ALICE
    assert sole_owner(f"{tmp_path}//a//link") == ALICE


def test_loops_come_to_an_end(tmp_path: Path) -> None:
    link(tmp_path / "a", "b", ALICE)
    link(tmp_path / "b", "a", ALICE)
    link(tmp_path / "self", "self/x", ALICE)
    for name in ("a", "b", "self", "self/more"):
        assert sole_owner(f"{tmp_path}/{name}") in (None, ALICE)


def test_a_way_through_many_links_comes_to_an_end(tmp_path: Path) -> None:
    """Each would double the way."""
    directory(tmp_path / "0")
    for number in range(1, 30):
        link(tmp_path / str(number), f"{number - 1}/../{number - 1}", ALICE)
    assert sole_owner(f"{tmp_path}/29") in (None, ALICE)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o2775])
@pytest.mark.parametrize("owner", [0, ALICE])
def test_what_others_may_write_to_is_nobodys(tmp_path: Path, mode: int, owner: int) -> None:
    place = directory(tmp_path / "shared", owner, mode)
    assert sole_owner(str(place)) is None
    assert sole_owner(str(directory(place / "flake", owner))) is None
    assert sole_owner(str(link(tmp_path / "link", place))) is None


def test_a_file_that_others_may_write_to_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "x.nix").touch()
    assert sole_owner(str(tmp_path / "x.nix")) == 0
    os.chown(tmp_path / "x.nix", ALICE, ALICE)
    assert sole_owner(str(tmp_path / "x.nix")) == ALICE
    (tmp_path / "x.nix").chmod(0o664)
    assert sole_owner(str(tmp_path / "x.nix")) is None
    (tmp_path / "x.nix").chmod(0o1646)
    assert sole_owner(str(tmp_path / "x.nix")) is None


def test_what_stands_in_a_sticky_directory_is_its_owners(tmp_path: Path) -> None:
    """Nobody else may exchange it (inode(7))."""
    sticky = directory(tmp_path / "tmp", mode=0o1777)
    assert sole_owner(str(directory(sticky / "alice", ALICE))) == ALICE
    assert sole_owner(str(directory(sticky / "root"))) == 0


def test_a_sticky_directory_itself_is_nobodys(tmp_path: Path) -> None:
    """Anyone may put a flake.nix there."""
    sticky = directory(tmp_path / "tmp", mode=0o1777)
    assert sole_owner(str(sticky)) is None
    assert sole_owner(str(link(tmp_path / "link", sticky))) is None


def test_what_is_missing_is_nobodys(tmp_path: Path) -> None:
    """Whoever makes it decides."""
    assert sole_owner(str(tmp_path / "gone")) is None
    assert sole_owner(str(tmp_path / "gone/flake")) is None
    assert sole_owner(str(link(tmp_path / "link", "gone"))) is None
    (tmp_path / "file").touch()
    assert sole_owner(f"{tmp_path}/file/flake") is None


def test_a_build_runs_as_the_owner_or_as_the_build_user(tmp_path: Path) -> None:
    settings = Settings(build_user="nobody")
    place = directory(tmp_path / "etc")
    shared = directory(tmp_path / "shared", mode=0o777)
    for made in (place, shared):
        (made / "flake.nix").touch()
    assert builder(Flake(str(place), "web", attr_given=False), settings).uid == 0
    assert builder(NixFile(str(place), "web", attr_given=False), settings).uid == 0
    for ref in (str(shared), "github:o/r", "nixpkgs", f"https://host{place}"):
        assert builder(Flake(ref, "web", attr_given=False), settings).uid == 65534


def test_a_flake_that_nix_would_look_for_above_is_not_built_as_the_owner(tmp_path: Path) -> None:
    """Nix 2.26: "path '/tmp/d' does not contain a 'flake.nix', searching up", to /tmp/flake.nix."""
    place = directory(directory(tmp_path / "tmp", mode=0o1777) / "roots")
    source = Flake(str(place), "web", attr_given=False)
    settings = Settings(build_user="nobody")
    try:
        assert builder(source, settings).uid == 65534
    except InxError as error:
        assert "flake.nix" in str(error)
    (place / "flake.nix").touch()
    assert builder(source, settings).uid == 0


def test_an_owner_without_a_name_cannot_build(tmp_path: Path) -> None:
    place = directory(tmp_path / "alice", ALICE)
    (place / "flake.nix").touch()
    with pytest.raises(UnsupportedError, match=f"no user {ALICE}, who owns {place}"):
        builder(Flake(str(place), "web", attr_given=False), Settings(build_user="nobody"))
    with pytest.raises(UnsupportedError, match="there is no user inx-nobody"):
        builder(Flake("github:o/r", "web", attr_given=False), Settings(build_user="inx-nobody"))
