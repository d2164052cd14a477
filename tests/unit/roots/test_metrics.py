"""The file of metrics is read by real parsers, and says what each instance alone keeps."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric, parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from inx_sidecar.base import paths
from inx_sidecar.roots.held_bytes import held_bytes, host_roots
from inx_sidecar.roots.metrics import InstanceFigures, render

pytestmark = pytest.mark.gc

Parser = Callable[[str], Iterable[Metric]]
OPENMETRICS: Parser = openmetrics_parser.text_string_to_metric_families
NODE_EXPORTER: Parser = parser.text_string_to_metric_families

WEB = InstanceFigures("web", "u-1", "/nix/store/x-nixos", 3, 10, 1, 4096, 7, 2)
NEW = InstanceFigures("shop_web", "u-2", "", 0, 0, 0, 0, 0, 0)


def store(digit: str) -> str:
    return f"/nix/store/{digit * 32}-x{digit}"


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    """1 needs 2; 3 and 4 need each other, and 2; 5 is alone."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript("""
            create table ValidPaths (
                id integer primary key autoincrement, path text unique not null, narSize integer);
            create table Refs (referrer integer, reference integer);
            insert into Refs values (1, 2), (1, 1), (3, 4), (4, 3), (4, 2);
        """)
        sizes = [(store(str(number)), 10**number) for number in range(1, 6)]
        connection.executemany("insert into ValidPaths (path, narSize) values (?, ?)", sizes)
        yield connection


@pytest.mark.parametrize(
    ("web", "shop", "host", "held"),
    [
        ("1", "", "", (110, 0)),
        ("1", "3", "", (10, 11000)),
        ("1", "1", "", (0, 0)),
        ("1", "3", "1", (0, 11000)),
        ("15", "3", "2", (100010, 11000)),
        ("3", "4", "", (0, 0)),
        ("9", "", "", (0, 0)),
        ("", "", "12345", (0, 0)),
    ],
)
def test_only_what_no_other_root_keeps_is_held(
    db: sqlite3.Connection, web: str, shop: str, host: str, held: tuple[int, int]
) -> None:
    roots = {"web": {store(n) for n in web}, "shop": {store(n) for n in shop}}
    found = held_bytes(db, roots, {store(n) for n in host})
    assert (found["web"], found["shop"]) == held


def test_roots_of_the_host_are_found_as_nix_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "NIX_STATE", str(tmp_path))
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path / "gcroots/inx"))
    assert host_roots() == set()
    for name in ("gcroots/auto", "gcroots/inx/web.u", "profiles/per-user/a", "home"):
        (tmp_path / name).mkdir(parents=True)
    links = {
        "home/result": f"{store('1')}/bin",
        "gcroots/auto/h": str(tmp_path / "home/result"),
        "gcroots/auto/gone": "/nowhere/result",
        "gcroots/auto/relative": "../../home/result",
        "gcroots/current-system": store("2"),
        "gcroots/profiles": str(tmp_path / "profiles"),
        "profiles/per-user/a/profile-1-link": store("3"),
        "profiles/per-user/a/profile": "profile-1-link",
        "gcroots/inx/web.u/system-1": store("4"),
    }
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    assert host_roots() == {store("1"), store("2"), store("3")}


def samples(text: str) -> dict[tuple[str, str], float]:
    """By name and instance, as both parsers read them."""
    read = [
        {
            (sample.name, sample.labels["instance"]): sample.value
            for family in families
            for sample in family.samples
        }
        for families in (OPENMETRICS(text), NODE_EXPORTER(text))
    ]
    assert read[0] == read[1]
    return read[0]


def test_both_parsers_read_the_figures() -> None:
    found = samples("".join(f"{line}\n" for line in render([WEB, NEW])))
    assert found == {
        ("inx_system", "web"): 1,
        ("inx_generations", "web"): 3, ("inx_generations", "shop_web"): 0,
        ("inx_roots", "web"): 10, ("inx_roots", "shop_web"): 0,
        ("inx_lost_roots", "web"): 1, ("inx_lost_roots", "shop_web"): 0,
        ("inx_held_bytes", "web"): 4096, ("inx_held_bytes", "shop_web"): 0,
        ("inx_builds_total", "web"): 7, ("inx_builds_total", "shop_web"): 0,
        ("inx_failed_builds_total", "web"): 2, ("inx_failed_builds_total", "shop_web"): 0,
    }  # fmt: skip


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
def test_any_text_is_one_label(text: str) -> None:
    odd = InstanceFigures(text, "u", text, 1, 1, 0, 1, 1, 0)
    lines = "".join(f"{line}\n" for line in render([odd]))
    for family in OPENMETRICS(lines):
        for sample in family.samples:
            assert sample.labels["instance"] == text
