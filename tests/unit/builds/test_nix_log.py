"""The text and the progress in what Nix prints, recorded from Nix 2.26 and 2.34."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from inx_sidecar.base.process import Completed
from inx_sidecar.builds.failure_reason import failure_reason
from inx_sidecar.builds.nix_log import NixLog, Progress

pytestmark = pytest.mark.main

LOGS: Final = Path(__file__).parent / "nix_logs"
VERSIONS: Final = ("2.26", "2.34")
DRV: Final = f"/nix/store/{'0' * 32}-nginx-1.28.0.drv"


def recorded(name: str, version: str) -> list[str]:
    return (LOGS / f"{name}-{version}.log").read_text().splitlines()


def line(**event: Any) -> str:
    return f"@nix {json.dumps(event)}"


def planned(builds: int, fetches: int) -> NixLog:
    """A log of Nix that begins its first build."""
    log = NixLog()
    for number, kind, expected in ((1, 104, builds), (2, 103, fetches)):
        log.read(line(action="start", id=number, level=0, parent=0, text="", type=kind))
        log.read(line(action="result", id=number, type=105, fields=[0, expected, 0, 0]))
    assert log.progress == Progress(), "not all is known yet"
    log.read(line(action="start", id=3, level=3, text=f"building '{DRV}'", type=105,
                  fields=[DRV, "", 1, 1]))  # fmt: skip
    return log


@pytest.mark.parametrize("version", VERSIONS)
def test_a_build_is_text_and_progress(version: str) -> None:
    log = NixLog()
    lines, shown = [], []
    for each in recorded("built", version):
        lines += log.read(each)
        shown.append(log.progress.text())
    assert [text for text in lines if "@nix" in text or "\x1b" in text] == []
    for part in "01":
        begins = lines.index(f"building part {part}")
        assert lines[begins - 1] == f"inx: building part-{part}-1.{part}, {part} of 3 built"
    assert "inx: to do: 3 builds, 0 fetches" in lines
    assert shown[0] == "building" and "building 1/3, part-1-1.1" in shown
    assert shown[-1] == "building 3/3, all-1"
    assert log.progress.done == "3 built, 0 fetched"


@pytest.mark.parametrize("version", VERSIONS)
def test_fetches_are_counted(version: str) -> None:
    log = NixLog()
    lines = [text for each in recorded("fetched", version) for text in log.read(each)]
    assert "inx: to do: 0 builds, 2 fetches" in lines
    assert sum(text.startswith("inx: fetching part-") for text in lines) == 2
    assert log.progress.text().startswith("building, 2 of 2 fetched, part-")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "reason"), [("failed", "failed with exit code 3"), ("thrown", "no such luck")]
)
def test_the_reason_of_a_failure_is_found(name: str, reason: str, version: str) -> None:
    log = NixLog()
    lines = [text for each in recorded(name, version) for text in log.read(each)]
    assert reason in failure_reason(Completed(("nix",), 1, "\n".join(lines)))
    if name == "thrown":
        assert "       … while calling the 'throw' builtin" in lines


def test_the_progress_is_one_short_line() -> None:
    log = planned(40, 17)
    assert log.progress.text() == "building 0/40, 0 of 17 fetched, nginx-1.28.0"
    log.read(line(action="result", id=1, type=105, fields=[12, 40, 1, 0]))
    log.read(line(action="result", id=2, type=105, fields=[3, 17, 1, 0]))
    assert log.progress.text() == "building 12/40, 3 of 17 fetched, nginx-1.28.0"
    assert log.progress.text(names=False) == "building 12/40, 3 of 17 fetched"
    assert planned(1, 1).progress.work == "1 build, 1 fetch"


def test_an_isolated_instance_learns_no_name_of_a_package() -> None:
    log = NixLog(names=False)
    lines = log.read(line(action="start", id=3, level=3, text="x", type=105, fields=[DRV]))
    assert lines == ["inx: to do: 0 builds, 0 fetches", "inx: building, 0 of 0 built"]


def test_text_that_is_no_json_stays_as_it_is() -> None:
    texts = ["hello", "fatal: no git", "@nix", "@nix {", '@nix {"action":', "@nix []", "@nix 1",
             "@nix " + "[" * 100_000, "@nix " + "9" * 100_000]  # fmt: skip
    for text in texts:
        lines = NixLog().read(text)
        assert "".join(lines) in (text, "") and all(len(each) <= 8192 for each in lines)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"action": []},
        {"action": "msg"},
        {"action": "msg", "msg": 1},
        {"action": "msg", "msg": "x", "level": 7},
        {"action": "result", "type": 101, "id": 3, "fields": []},
        {"action": "result", "type": 101, "id": 3, "fields": [1]},
        {"action": "result", "type": 105, "id": [], "fields": [1, 2]},
        {"action": "result", "type": 105, "id": 1, "fields": [-1, 40]},
        {"action": "result", "type": 105, "id": 1, "fields": [41, 40]},
        {"action": "result", "type": 105, "id": 1, "fields": [1, 10**30]},
        {"action": "result", "type": 105, "id": 1, "fields": ["1", "2"]},
        {"action": "result", "type": 105, "id": 1, "fields": 5},
        {"action": "start", "type": 105, "id": 9, "fields": ["/etc/passwd"]},
        {"action": "start", "type": 105, "id": 9, "fields": [f"{DRV}\n"]},
        {"action": "start", "type": 108, "id": 9, "fields": []},
        {"action": "start", "type": {}, "id": {}},
        {"action": "stop", "id": "x"},
    ],
)
def test_what_nix_never_prints_changes_nothing(event: dict[str, Any]) -> None:
    log = planned(40, 17)
    assert log.read(line(**event)) == []
    assert log.progress.text() == "building 0/40, 0 of 17 fetched, nginx-1.28.0"


def test_what_is_kept_has_a_bound() -> None:
    log = NixLog()
    for number in range(10_000):
        log.read(line(action="start", id=number, type=104, text=""))
        log.read(line(action="start", id=number, type=105, fields=[DRV]))
    assert len(log._counters) <= 100
    name = f"/nix/store/{'0' * 32}-{'x' * 211}"
    log.read(line(action="start", id=1, type=108, fields=[name]))
    assert len(log.progress.text()) < 100


@pytest.mark.parametrize("length", range(150, 165))
def test_a_line_that_is_cut_keeps_its_text(length: int) -> None:
    """As when a builder has printed a line of megabytes: the error says it again."""
    error = "\x1b[31;1merror:\x1b[0m builder for 'x' failed;\n> " + "\x1b\\ä\n" * 20
    msg = line(action="msg", column=None, file=None, level=0, line=None, msg=error, raw_msg="x")
    cut = msg.replace(", ", ",").replace(": ", ":", 6)[:length]
    lines = NixLog().read(cut)
    assert lines[0] == "error: builder for 'x' failed;" and not any("@nix" in x for x in lines)
    cut = cut.replace('"file":null', '"file":"/srv/x"')
    assert NixLog().read(cut)[0] == lines[0]
    said = '@nix {"action":"result","fields":["hello \\u00e4 and more'
    assert NixLog().read(said) == ["hello ä and more"]


def test_half_a_character_is_replaced() -> None:
    assert NixLog().read('@nix {"action":"msg","level":0,"msg":"a\\ud800b"}') == ["a?b"]


def test_escapes_are_left_out_and_long_lines_divided() -> None:
    red = "\x1b[31;1merror:\x1b[0m \x1b]0;title\x07no\r\nmore\x1b"
    assert NixLog().read(line(action="msg", level=0, msg=red)) == ["error: no", "more"]
    parts = NixLog().read(line(action="result", type=101, id=1, fields=["x" * 20_000]))
    assert "".join(parts) == "x" * 20_000 and max(map(len, parts)) == 8192
