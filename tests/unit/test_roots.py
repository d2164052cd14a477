"""Roots are a comparison of what is wanted and what is there."""

from pathlib import Path

import pytest

from inx_sidecar import paths, roots
from inx_sidecar.roots import Change, reconcile

pytestmark = pytest.mark.main

UUID = "11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize(
    ("wanted", "present", "add", "drop"),
    [
        ({}, {}, {}, ()),
        ({"a": "1"}, {}, {"a": "1"}, ()),
        ({"a": "1"}, {"a": "1"}, {}, ()),
        ({"a": "2"}, {"a": "1"}, {"a": "2"}, ()),
        ({}, {"b": "1", "a": "1"}, {}, ("a", "b")),
        ({"a": "1", "b": "2"}, {"b": "1", "c": "3"}, {"a": "1", "b": "2"}, ("c",)),
    ],
)
def test_a_change_adds_what_is_missing_or_differs_and_drops_what_is_not_wanted(
    wanted: dict[str, str], present: dict[str, str], add: dict[str, str], drop: tuple[str, ...]
) -> None:
    assert reconcile(wanted, present) == Change(add, drop)


def test_a_changed_root_is_replaced_and_never_dropped() -> None:
    assert reconcile({"a": "new"}, {"a": "old"}).drop == ()


def test_the_directory_tells_name_and_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path))
    assert roots.directory("project_web", UUID) == f"{tmp_path}/project_web.{UUID}"


def test_former_directories_are_those_of_the_same_uuid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path / "inx"))
    assert roots.former_directories("web", UUID) == []
    for name in (f"web.{UUID}", f"old.{UUID}", f"web.{UUID[::-1]}", UUID):
        (tmp_path / "inx" / name).mkdir(parents=True)
    assert roots.former_directories("web", UUID) == [f"{tmp_path}/inx/old.{UUID}"]


def test_without_a_directory_there_are_no_roots(tmp_path: Path) -> None:
    assert roots.read(str(tmp_path / "none")) == {}
    (tmp_path / "a").symlink_to("/nix/store/x")
    assert roots.read(str(tmp_path)) == {"a": "/nix/store/x"}
