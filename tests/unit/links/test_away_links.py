"""A new sidecar knows where links were last found."""

from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.links.away_links import AwayLinks
from inx_sidecar.links.resolver import ResolvedLink

pytestmark = pytest.mark.gc

UUID = "11111111-2222-3333-4444-555555555555"
STORE_PATH = f"/nix/store/{'0' * 32}-x"
HOME = ResolvedLink({STORE_PATH: True}, found=frozenset({"init"}))
AWAY = ResolvedLink({STORE_PATH: False}, found=frozenset({"init@2", "service"}))
NOWHERE = ResolvedLink({}, missing=frozenset({"init"}))


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "STATE", str(tmp_path))
    (tmp_path / UUID).mkdir()
    return tmp_path / UUID / "away.json"


def saved(name: str, *links: ResolvedLink) -> frozenset[str]:
    """What the next sidecar knows after this one saw `links`."""
    away = AwayLinks(UUID)
    for link in links:
        away.remember(name, link)
    away.save()
    return AwayLinks(UUID).last_found(name)


def test_the_next_sidecar_knows_the_places() -> None:
    assert saved("one", AWAY) == AWAY.found


def test_a_link_that_is_missing_was_last_found_where_it_was() -> None:
    assert saved("one", AWAY, NOWHERE) == AWAY.found


def test_a_link_that_came_home_is_not_away() -> None:
    assert saved("one", AWAY, HOME) == frozenset()


def test_what_was_forgotten_is_gone() -> None:
    saved("one", AWAY)
    away = AwayLinks(UUID)
    away.forget("one")
    away.save()
    assert AwayLinks(UUID).last_found("one") == frozenset()


@pytest.mark.parametrize("text", ["", "{", "[]x", '{"one": [', "\0"])
def test_a_file_that_cannot_be_read_is_as_if_it_were_not_there(file: Path, text: str) -> None:
    file.write_text(text)
    assert AwayLinks(UUID).last_found("one") == frozenset()


def test_nothing_is_written_without_a_change(file: Path) -> None:
    saved("one", AWAY)
    before = file.stat().st_ino
    saved("one", AWAY)
    assert file.stat().st_ino == before
