"""What modules name on this host: is it there, and what is Nix given?"""

import json
import os
from pathlib import Path

import pytest

from inx_sidecar.base.errors import BuildError
from inx_sidecar.builds.local_modules import LocalModules, check_paths, look_at_modules
from inx_sidecar.config.sources import Flake, Modules

pytestmark = pytest.mark.main

SETTING = "user.inx.nixpkgs"


@pytest.fixture
def nixpkgs(tmp_path: Path) -> Path:
    place = tmp_path / "nixpkgs"
    (place / "nixos/lib").mkdir(parents=True)
    (place / "nixos/lib/eval-config.nix").touch()
    return place


def modules(*files: object, base: str = "") -> Modules:
    flake = Flake(base, "web", attr_given=True) if base else None
    return Modules((), tuple(("user.inx.module", str(file)) for file in files), "web", flake)


def look(source: Modules, nixpkgs: object = "flake:nixpkgs") -> LocalModules:
    return look_at_modules(source, str(nixpkgs), SETTING)


def refusal(source: Modules, nixpkgs: object = "flake:nixpkgs") -> str:
    with pytest.raises(BuildError) as error:
        look(source, nixpkgs)
    return str(error.value)


def test_what_nix_fetches_is_given_as_it_is() -> None:
    assert look(modules()) == LocalModules(nixpkgs="flake:nixpkgs")
    assert look(modules(), "nixos-26.05").nixpkgs == "nixpkgs/nixos-26.05"
    assert look(modules(base="github:o/r"), "").base == "github:o/r"


def test_nixpkgs_in_a_directory(nixpkgs: Path) -> None:
    link = nixpkgs.parent / "link"
    link.symlink_to(nixpkgs)
    for text in (nixpkgs, link, f"path:{nixpkgs}", f"path:{nixpkgs.parent}?dir=nixpkgs"):
        assert look(modules(), text) == LocalModules(nixpkgs=str(nixpkgs))
    assert f"{SETTING} is {nixpkgs}/nixos, but there is no {nixpkgs}/nixos/nixos/lib/" in refusal(
        modules(), f"{nixpkgs}/nixos"
    )


def test_nixpkgs_in_the_store(nixpkgs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel is a link to a directory in a store path."""
    store = f"/nix/store/{'a' * 32}-nixos-26.05"
    real = os.path.realpath
    monkeypatch.setattr(
        os.path, "realpath", lambda path: real(path).replace(str(nixpkgs.parent), store)
    )
    found = look(modules(), nixpkgs)
    assert found == LocalModules(nixpkgs=f"path:{store}", below="/nixpkgs")


def test_a_module_is_a_file_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "x.nix").touch()
    (tmp_path / "dir").mkdir()
    assert look(modules(tmp_path / "x.nix")).files == (f"{tmp_path}/x.nix",)
    assert f"no {tmp_path}/dir/default.nix" in refusal(modules(tmp_path / "dir"))
    (tmp_path / "dir/default.nix").touch()
    assert look(modules(tmp_path / "dir")).files == (f"{tmp_path}/dir",)
    assert "none.nix: correct user.inx.module" in refusal(modules(tmp_path / "none.nix"))


def test_a_link_to_temporary_files_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation has other names for them."""
    for name in "tmp", "srv":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.nix").touch()
        (tmp_path / f"to-{name}").symlink_to(tmp_path / name / "x.nix")
    monkeypatch.setattr("inx_sidecar.base.paths.TMP", str(tmp_path / "tmp"))
    found = look(modules(tmp_path / "to-tmp", tmp_path / "to-srv"))
    assert found.files == (f"{tmp_path}/tmp/x.nix", f"{tmp_path}/to-srv")
    assert LocalModules.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_local_flake_is_looked_at_as_always(tmp_path: Path) -> None:
    assert f"there is no {tmp_path}/flake.nix" in refusal(modules(base=str(tmp_path)))
    (tmp_path / "flake.nix").touch()
    assert look(modules(base=str(tmp_path))) == LocalModules(base=f"path:{tmp_path}")


def test_no_look_goes_into_processes() -> None:
    path = "/proc/1/root/x"
    for source, nixpkgs in (
        (modules(path), ""),
        (modules(), path),
        (modules(base=f"path:{path}"), ""),
    ):
        with pytest.raises(BuildError, match="lies in /proc"):
            check_paths(source, nixpkgs)
