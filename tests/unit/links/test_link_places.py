"""A restarted sidecar knows the places where links were last found."""

from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.links.link_places import LinkPlaces
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
    """The places that the next sidecar knows after this one resolved `links`."""
    away = LinkPlaces(UUID)
    for link in links:
        away.remember(name, link)
    away.save()
    return LinkPlaces(UUID).last_found(name)


def test_the_next_sidecar_knows_the_places() -> None:
    assert saved("one", AWAY) == AWAY.found


def test_a_missing_link_keeps_the_places_where_it_was_last_found() -> None:
    assert saved("one", AWAY, NOWHERE) == AWAY.found


def test_a_link_that_is_found_at_home_has_no_places() -> None:
    assert saved("one", AWAY, HOME) == frozenset()


def test_a_forgotten_link_has_no_places() -> None:
    saved("one", AWAY)
    away = LinkPlaces(UUID)
    away.forget("one")
    away.save()
    assert LinkPlaces(UUID).last_found("one") == frozenset()


@pytest.mark.parametrize("text", ["", "{", "[]x", '{"one": [', "\0"])
def test_a_damaged_file_counts_as_missing(file: Path, text: str) -> None:
    file.write_text(text)
    assert LinkPlaces(UUID).last_found("one") == frozenset()


def test_the_file_is_not_written_without_a_change(file: Path) -> None:
    saved("one", AWAY)
    before = file.stat().st_ino
    saved("one", AWAY)
    assert file.stat().st_ino == before


def test_the_file_names_a_place_once_for_many_links(file: Path) -> None:
    """A container can make any number of links, and of places."""
    away = LinkPlaces(UUID)
    for number in range(1000):
        away.remember(f"link-{number}", AWAY)
    away.save()
    assert file.read_text().count("init@2") == 1
    assert LinkPlaces(UUID).last_found("link-999") == AWAY.found


def test_a_file_of_the_former_version_is_read(file: Path) -> None:
    file.write_text('{"one": ["init@2", "service"]}')
    assert LinkPlaces(UUID).last_found("one") == AWAY.found


@pytest.mark.parametrize(
    "text", ['{"places": [], "links": {"one": [0]}}', '{"links": {}}', '{"one": 1}', "[]", "1"]
)
def test_a_file_of_another_form_counts_as_missing(file: Path, text: str) -> None:
    file.write_text(text)
    assert LinkPlaces(UUID).last_found("one") == frozenset()
