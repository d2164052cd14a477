"""Tables fit a terminal, and what takes long is told in one line there."""

import io
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inx_sidecar.base import terminal

pytestmark = pytest.mark.main

_CELLS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=200)
_ROWS = st.integers(1, 6).flatmap(
    lambda columns: st.lists(
        st.lists(_CELLS, min_size=columns, max_size=columns), min_size=1, max_size=8
    )
)


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("NAME", "SIZE", "PATH"), ("a", "1 B", "/x"), ("longer", "100 B", "/y")]
    assert list(terminal.table(rows, None, right=(1,))) == [
        "NAME     SIZE  PATH",
        "a         1 B  /x",
        "longer  100 B  /y",
    ]


def test_the_widest_cells_lose_their_middle() -> None:
    path = "/nix/store/00000000000000000000000000000000-nginx-1.28.0"
    rows = [("NAME", "PATH", "BY"), ("web", path, "/root/result"), ("shop", "/x", "y")]
    assert list(terminal.table(rows, 40)) == [
        "NAME  PATH                  BY",
        "web   /nix/...nginx-1.28.0  /root/result",
        "shop  /x                    y",
    ]


@given(_ROWS, st.integers(0, 200))
def test_a_table_is_no_wider_than_the_terminal(rows: list[list[str]], width: int) -> None:
    lines = list(terminal.table(rows, width))
    assert len(lines) == len(rows)
    columns = len(rows[0])
    assert max(map(len, lines)) <= max(width, 8 * columns + 2 * (columns - 1))


@given(_ROWS)
def test_nothing_is_cut_where_the_width_is_not_limited(rows: list[list[str]]) -> None:
    for row, line in zip(rows, terminal.table(rows, None), strict=True):
        assert line.split() == [cell for cell in row if cell]


@given(_CELLS, st.integers(3, 100))
def test_a_cut_text_has_its_begin_and_its_end(text: str, size: int) -> None:
    shown = terminal.cut(text, size)
    assert len(shown) == min(size, len(text))
    if len(text) > size:
        head = (size - 3) // 3
        assert shown[head : head + 3] == "..."
        assert text.startswith(shown[:head]) and text.endswith(shown[head + 3 :])


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.9, ""), (1.0, "looking at web"), (60.0, "looking at web")]
)
def test_what_takes_longer_than_a_second_is_told(
    seconds: float, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [5.0]
    monkeypatch.setattr(sys, "stderr", screen := _Terminal())
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with terminal.Progress() as progress:
        now[0] += seconds
        progress.tell("looking at web")
        assert screen.getvalue().endswith(shown)
    assert screen.getvalue().endswith("\r\x1b[K" if shown else "")
    assert bool(screen.getvalue()) is bool(shown)


def test_a_file_gets_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    monkeypatch.setattr(terminal, "_SLOW_SECONDS", 0.0)
    with terminal.Progress() as progress:
        progress.tell("looking at web")
    assert file.getvalue() == ""
