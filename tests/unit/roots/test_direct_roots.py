"""The roots of an instance are in a directory whose name has the name and uuid of the instance."""

from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.roots import direct_roots

pytestmark = pytest.mark.main

UUID = "11111111-2222-3333-4444-555555555555"


def test_the_directory_has_the_name_and_the_uuid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path))
    assert direct_roots.directory("project_web", UUID) == f"{tmp_path}/project_web.{UUID}"


def test_each_instance_with_a_directory_is_an_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path / "inx"))
    assert direct_roots.owners() == set()
    (tmp_path / "inx").mkdir()
    assert direct_roots.owners() == set()
    known = {("web", UUID), ("old", UUID), ("project_web", UUID[::-1]), ("a.b", UUID)}
    for name, uuid in known:
        (tmp_path / "inx" / f"{name}.{uuid}").mkdir()
    for other in (UUID, "web", f"web-{UUID}", f".{UUID[1:]}"):
        (tmp_path / "inx" / other).mkdir()
    assert direct_roots.owners() == known


def test_without_a_directory_there_are_no_roots(tmp_path: Path) -> None:
    assert direct_roots.read(str(tmp_path / "none")) == {}
    assert direct_roots.read(str(tmp_path / "none"), "links/") == {}
    (tmp_path / "a").symlink_to("/nix/store/x")
    assert direct_roots.read(str(tmp_path)) == {"a": "/nix/store/x"}
    assert direct_roots.read(str(tmp_path), "links/") == {}


def test_all_roots_or_the_roots_of_one_directory_are_read(tmp_path: Path) -> None:
    everything = {
        "system-1": "/nix/store/a",
        "links/one": "/nix/store/b",
        "links/two.away": "/nix/store/c",
        "snapshots/before.1.2/x": "/nix/store/d",
        "snapshots/before.1.2/y": "/nix/store/e",
        "snapshots/before/x": "/nix/store/f",
    }
    for name, path in everything.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(path)
    (tmp_path / "snapshots/none").mkdir()
    (tmp_path / "file").touch()
    assert direct_roots.read(str(tmp_path)) == everything
    for within in ("links/", "snapshots/", "snapshots/before.1.2/", "snapshots/none/"):
        expected = {name: path for name, path in everything.items() if name.startswith(within)}
        assert direct_roots.read(str(tmp_path), within) == expected


def test_a_link_to_a_directory_is_a_root_and_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x").symlink_to("/nix/store/x")
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots/link").symlink_to(tmp_path / "other")
    assert direct_roots.read(str(tmp_path / "roots")) == {"link": str(tmp_path / "other")}
