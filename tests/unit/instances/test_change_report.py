"""The log of changes has a section for each update, and a bounded size."""

import asyncio
import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.instances import change_report
from inx_sidecar.instances.change_report import ChangeReport, begin_report, bounded
from inx_sidecar.nix.package_changes import compare

pytestmark = pytest.mark.life

WEB = Instance("web", "default", "uuid", LxcFacts("web", "", ""), privileged=False, config={})
VAULT = Instance(
    "web", "default", "uuid", LxcFacts("web", "", ""), privileged=False,
    config={"user.inx.store": "isolated"},
)  # fmt: skip
ONE, TWO = (f"/nix/store/{letter * 32}-nixos-system-web-1" for letter in "01")
NGINX = f"/nix/store/{'2' * 32}-nginx-"
CHANGES = compare({ONE: 1, f"{NGINX}1": 9}, {TWO: 1, f"{NGINX}2": 9})


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "LOG", str(tmp_path))
    return tmp_path / "uuid.changes"


def test_a_section_has_all_that_is_known(log: Path) -> None:
    ChangeReport(WEB, "switch", ONE, TWO, CHANGES, ["restarting a.service"]).write("generation 2")
    ChangeReport(WEB, "start", "", TWO).write("generation 1")
    time, _, rest = log.read_text().partition(" ")
    assert time.startswith("20") and "T" in time
    assert rest.partition("\n\n")[0].splitlines() == [
        "switch, generation 2: nginx 1 -> 2, 1 rebuilt, +0.0 KiB",
        f"  before: {ONE}", f"  after: {TWO}", "  restarting a.service",
        "  nginx: 1 -> 2", "  nixos-system-web: rebuilt", "  size: 0.0 KiB -> 0.0 KiB",
    ]  # fmt: skip
    last = log.read_text().split("\n\n")[1].splitlines()
    assert last[0].endswith(" start, generation 1: its changes are not known")
    assert last[1:] == ["  before: no system", f"  after: {TWO}"]


def test_an_isolated_instance_is_told_numbers(log: Path) -> None:
    assert ChangeReport(WEB, "switch", ONE, TWO, CHANGES).line.startswith("nginx 1 -> 2, ")
    isolated = ChangeReport(VAULT, "switch", ONE, TWO, CHANGES)
    assert isolated.line == "1 changed, 1 rebuilt, +0.0 KiB"
    isolated.write("generation 2")
    assert "nginx" in log.read_text()
    assert ChangeReport(WEB, "switch", ONE, TWO).line == ""


def test_the_log_is_bounded(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_report, "_LOG_MAX_BYTES", 1000)
    monkeypatch.setattr(change_report, "_SECTION_MAX_CHARACTERS", 500)
    report = ChangeReport(WEB, "switch", ONE, TWO, CHANGES, ["restarting a.service"] * 100)
    for number in range(20):
        report.write(f"generation {number}")
        assert os.stat(log).st_size < 2000
    assert sorted(os.listdir(log.parent)) == ["uuid.changes", "uuid.changes.old"]
    assert "generation 19:" in log.read_text() and re.search(
        r"\n  \d+ more lines\n", log.read_text()
    )


def test_no_log_keeps_an_update_from_its_end(log: Path) -> None:
    log.mkdir()
    ChangeReport(WEB, "switch", ONE, TWO, CHANGES).write("generation 2")


def test_lines_are_cut_by_their_characters() -> None:
    assert bounded(["abc", "de"], 5) == ["abc", "de"]
    assert bounded(["abc", "de", "f"], 4) == ["abc", "2 more lines"]
    assert bounded(["abcdef"], 5) == ["1 more lines"]


async def _begin(before: str, after: str) -> ChangeReport:
    return await begin_report(WEB, "switch", before, after)


def test_changes_that_are_not_known_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(paths, "NIX_DB", str(tmp_path / "db.sqlite"))
    assert asyncio.run(_begin(ONE, TWO)).changes is None
    with closing(sqlite3.connect(paths.NIX_DB)) as db:
        db.execute("create table ValidPaths (id integer primary key, path text, narSize integer)")
        db.execute("create table Refs (referrer integer, reference integer)")
        db.execute("insert into ValidPaths values (1, ?, 5)", (TWO,))
        db.commit()
    assert asyncio.run(_begin(ONE, TWO)).changes is None
    assert caplog.messages[-1] == f"web: what it changes is not known: {ONE} is not in the store"
    report = asyncio.run(_begin("", TWO))
    assert report.line == "first system: 1 packages, 0.0 KiB"
    assert caplog.messages[-2] == f"web: changes: {report.line}"
