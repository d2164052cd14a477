"""A source is evaluated as the one user who can change its files, or as the build user."""

import asyncio
import os
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.base.errors import BuildError, UnsupportedError
from inx_sidecar.builds import build_user
from inx_sidecar.builds.build_user import evaluator_for, evaluator_of
from inx_sidecar.builds.local_source import LocalSource, look_at
from inx_sidecar.builds.ownership import sole_owner
from inx_sidecar.config.settings import Settings
from inx_sidecar.config.sources import Flake, NixFile

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


def test_root_owns_a_path_whose_directories_are_all_of_root(tmp_path: Path) -> None:
    place = directory(tmp_path / "etc")
    assert sole_owner(str(place)) == 0
    assert sole_owner("/") == 0


def test_a_user_owns_their_directory(tmp_path: Path) -> None:
    place = directory(tmp_path / "alice", ALICE)
    assert sole_owner(str(place)) == ALICE
    assert sole_owner(str(directory(place / "flake", ALICE))) == ALICE


def test_a_user_owns_a_directory_of_root_below_their_directory(tmp_path: Path) -> None:
    """The user can replace this directory."""
    place = directory(directory(tmp_path / "alice", ALICE) / "roots")
    assert sole_owner(str(place)) == ALICE


def test_a_path_that_two_users_can_change_has_no_owner(tmp_path: Path) -> None:
    place = directory(directory(tmp_path / "alice", ALICE) / "bob", BOB)
    assert sole_owner(str(place)) is None
    assert sole_owner(str(link(place / "link", "/etc", BOB))) is None


def test_a_user_owns_their_link_to_a_directory_of_root(tmp_path: Path) -> None:
    place = directory(tmp_path / "roots")
    home = directory(tmp_path / "alice", ALICE)
    assert sole_owner(str(link(home / "link", place, ALICE))) == ALICE
    assert sole_owner(str(link(home / "relative", "../roots", ALICE))) == ALICE
    # The link belongs to root, but the user owns its directory.
    assert sole_owner(str(link(home / "roots", place))) == ALICE


def test_a_user_owns_a_link_of_root_to_their_directory(tmp_path: Path) -> None:
    place = directory(tmp_path / "alice", ALICE)
    assert sole_owner(str(link(tmp_path / "link", place))) == ALICE
    assert sole_owner(str(link(tmp_path / "relative", "alice"))) == ALICE
    assert sole_owner(str(link(tmp_path / "dots", "./././alice/../alice/."))) == ALICE


def test_a_chain_of_links_is_followed_to_its_end(tmp_path: Path) -> None:
    directory(tmp_path / "bob", BOB)
    place = link(tmp_path / "0", "bob")
    for number in range(1, 20):
        place = link(tmp_path / str(number), f"{tmp_path}/{number - 1}")
    assert sole_owner(str(place)) == BOB


def test_a_link_in_the_middle_of_a_path_counts(tmp_path: Path) -> None:
    directory(directory(tmp_path / "a") / "flake")
    link(tmp_path / "link", "a", ALICE)
    assert sole_owner(f"{tmp_path}/link/flake") == ALICE
    assert sole_owner(f"{tmp_path}/a/flake") == 0


def test_dots_are_resolved_as_the_kernel_does(tmp_path: Path) -> None:
    """`..` after a link is the parent of the target, not of the link."""
    directory(directory(tmp_path / "alice", ALICE) / "deep", ALICE)
    directory(tmp_path / "alice/x", ALICE)
    directory(tmp_path / "x")
    link(tmp_path / "link", "alice/deep")
    assert os.path.samefile(f"{tmp_path}/link/../x", tmp_path / "alice/x")
    assert sole_owner(f"{tmp_path}/link/../x") == ALICE
    assert sole_owner(f"{tmp_path}/../../../../../../../..") == 0


def test_a_single_dot_changes_nothing(tmp_path: Path) -> None:
    directory(directory(tmp_path / "a") / "x")
    directory(tmp_path / "x", ALICE)
    link(tmp_path / "a/link", "../x")
    assert os.path.samefile(f"{tmp_path}/a/./link", tmp_path / "x")
    assert sole_owner(f"{tmp_path}/a/./link") == ALICE
    assert sole_owner(f"{tmp_path}//a//link") == ALICE


def test_a_loop_of_links_has_an_end(tmp_path: Path) -> None:
    link(tmp_path / "a", "b", ALICE)
    link(tmp_path / "b", "a", ALICE)
    link(tmp_path / "self", "self/x", ALICE)
    for name in ("a", "b", "self", "self/more"):
        assert sole_owner(f"{tmp_path}/{name}") in (None, ALICE)


def test_a_path_through_too_many_links_has_an_end(tmp_path: Path) -> None:
    """Each link doubles the number of steps."""
    directory(tmp_path / "0")
    for number in range(1, 30):
        link(tmp_path / str(number), f"{number - 1}/../{number - 1}", ALICE)
    assert sole_owner(f"{tmp_path}/29") in (None, ALICE)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o2775])
@pytest.mark.parametrize("owner", [0, ALICE])
def test_a_directory_that_others_may_write_has_no_owner(
    tmp_path: Path, mode: int, owner: int
) -> None:
    place = directory(tmp_path / "shared", owner, mode)
    assert sole_owner(str(place)) is None
    assert sole_owner(str(directory(place / "flake", owner))) is None
    assert sole_owner(str(link(tmp_path / "link", place))) is None


def test_a_file_that_others_may_write_has_no_owner(tmp_path: Path) -> None:
    (tmp_path / "x.nix").touch()
    assert sole_owner(str(tmp_path / "x.nix")) == 0
    os.chown(tmp_path / "x.nix", ALICE, ALICE)
    assert sole_owner(str(tmp_path / "x.nix")) == ALICE
    (tmp_path / "x.nix").chmod(0o664)
    assert sole_owner(str(tmp_path / "x.nix")) is None
    (tmp_path / "x.nix").chmod(0o1646)
    assert sole_owner(str(tmp_path / "x.nix")) is None


def test_a_directory_in_a_sticky_directory_has_its_own_owner(tmp_path: Path) -> None:
    """No other user may replace it (inode(7))."""
    sticky = directory(tmp_path / "tmp", mode=0o1777)
    assert sole_owner(str(directory(sticky / "alice", ALICE))) == ALICE
    assert sole_owner(str(directory(sticky / "root"))) == 0


def test_a_sticky_directory_itself_has_no_owner(tmp_path: Path) -> None:
    """Any user may put a flake.nix there."""
    sticky = directory(tmp_path / "tmp", mode=0o1777)
    assert sole_owner(str(sticky)) is None
    assert sole_owner(str(link(tmp_path / "link", sticky))) is None


def test_a_missing_path_has_no_owner(tmp_path: Path) -> None:
    """The user who makes it decides its content."""
    assert sole_owner(str(tmp_path / "gone")) is None
    assert sole_owner(str(tmp_path / "gone/flake")) is None
    assert sole_owner(str(link(tmp_path / "link", "gone"))) is None
    (tmp_path / "file").touch()
    assert sole_owner(f"{tmp_path}/file/flake") is None


def looked(path: Path | str) -> int | None:
    return look_at(Flake(str(path), "web", attr_given=False)).owner


def test_a_build_runs_as_the_owner_or_as_the_build_user(tmp_path: Path) -> None:
    place = directory(tmp_path / "etc")
    shared = directory(tmp_path / "shared", mode=0o777)
    for made in (place, shared):
        (made / "flake.nix").touch()
    assert looked(place) == 0
    assert look_at(NixFile(str(place / "flake.nix"), "web", attr_given=False)).owner == 0
    assert looked(shared) is None


@pytest.mark.parametrize("ref", ["github:o/r", "nixpkgs", "https://host/etc/nixos"])
def test_what_nix_fetches_is_built_as_the_build_user(ref: str) -> None:
    source = Flake(ref, "web", attr_given=False)
    found = asyncio.run(evaluator_of(source, Settings(build_user="nobody"), "web"))
    assert (found.user.uid, found.source, found.doubt) == (65534, source, "")


def test_a_directory_without_a_flake_is_not_built(tmp_path: Path) -> None:
    """Nix searches the parent directories for a flake.nix, up to /tmp/flake.nix for example.

    Nix 2.26 says: "path '/tmp/d' does not contain a 'flake.nix', searching up".
    """
    place = directory(directory(tmp_path / "tmp", mode=0o1777) / "roots")
    (tmp_path / "tmp/flake.nix").touch()
    for missing in (place, f"{place}?dir=sub", f"path:{place}", f"git+file://{place}"):
        with pytest.raises(BuildError, match=r"there is no .*flake.nix"):
            looked(missing)
    (place / "flake.nix").touch()
    assert looked(place) == 0


def test_an_owner_without_a_name_cannot_build(tmp_path: Path) -> None:
    place = directory(tmp_path / "alice", ALICE)
    (place / "flake.nix").touch()
    source = Flake(str(place), "web", attr_given=False)
    with pytest.raises(UnsupportedError, match=f"no user {ALICE}, who owns {place}"):
        evaluator_for(source, look_at(source), [], Settings(build_user="nobody"))
    with pytest.raises(UnsupportedError, match="there is no user inx-nobody"):
        evaluator_for(source, look_at(source), "why", Settings(build_user="inx-nobody"))


def test_incus_that_does_not_answer_is_a_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "INCUS_SOCKET", str(tmp_path / "none"))
    place = directory(tmp_path / "etc")
    (place / "flake.nix").touch()
    source = Flake(str(place), "web", attr_given=False)
    found = asyncio.run(evaluator_of(source, Settings(build_user="nobody"), "web"))
    assert (found.user.uid, found.is_owner) == (65534, False)
    assert "it is not known which directories instances can write: Incus does not" in found.doubt


@pytest.mark.parametrize(
    "source",
    [
        Flake("/proc/42/root/srv/x", "web", attr_given=False),
        Flake("path:/proc/42/cwd?dir=x", "web", attr_given=False),
        Flake("git+file:///proc/42/root", "web", attr_given=False),
        Flake("git+file:////proc/42/root", "web", attr_given=False),
        NixFile("//proc/42/root/srv/x.nix", "web", attr_given=False),
        NixFile("/proc/self/cwd/x.nix", "web", attr_given=False),
    ],
)
def test_a_source_in_proc_is_not_looked_at(
    source: Flake | NixFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lead to a file system that never answers."""
    monkeypatch.delattr(build_user, "run_in_child")
    with pytest.raises(BuildError, match="lies in /proc, which leads into processes"):
        asyncio.run(evaluator_of(source, Settings(build_user="nobody"), "web"))


ODD_NAMES = [b"two\nlines", b"\x1b[31mred", b"no utf-8 \xff", "\u202egnp.exe".encode()]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_of_files_are_shown_on_one_printable_line(tmp_path: Path, name: bytes) -> None:
    file = os.fsencode(directory(tmp_path / "etc")) + b"/" + name
    for path in (os.fsencode(tmp_path / "etc/flake.nix"), file):
        with open(path, "w"):
            pass
    os.chown(file, ALICE, ALICE)
    source = Flake(str(tmp_path / "etc"), "web", attr_given=False)
    settings = Settings(build_user="nobody")
    looked = LocalSource.from_json(look_at(source).to_json())
    for doubt in (
        evaluator_for(source, looked, [], settings).doubt,
        asyncio.run(evaluator_of(source, settings, "web")).doubt,
    ):
        assert doubt.startswith("several users can change ") and doubt.isprintable()
        doubt.encode()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_directory_may_have_any_name(tmp_path: Path, name: bytes) -> None:
    """A link leads there; its own name is one that a key takes."""
    real = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    os.mkdir(real)
    (tmp_path / "link").symlink_to(real)
    settings = Settings(build_user="nobody")
    flake = Flake(str(tmp_path / "link"), "web", attr_given=False)
    file = NixFile(f"{tmp_path}/link/flake.nix", "web", attr_given=False)
    with pytest.raises(BuildError, match="there is no") as caught:
        asyncio.run(evaluator_of(flake, settings, "web"))
    assert str(caught.value).isprintable()
    (tmp_path / "link/flake.nix").touch()
    for source in (flake, file):
        asyncio.run(evaluator_of(source, settings, "web"))
    reference = evaluator_for(flake, look_at(flake), "why", settings).source
    assert isinstance(reference, Flake) and reference.ref.isascii()
