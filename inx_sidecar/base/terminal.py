"""What administrators read on a terminal: tables that fit, and a line that says what takes long."""

import sys
import time
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType
from typing import Final, Self

_GAP: Final = "  "
_CUT: Final = "..."
_NARROWEST: Final = 8
# What is done sooner needs no line.
_SLOW_SECONDS: Final = 1.0
_LINE_MAX: Final = 70
# Clear to the end of the line: EL of ECMA-48, section 8.3.41.
_CLEAR: Final = "\r\x1b[K"


def table(
    rows: Sequence[Sequence[str]], width: int | None, right: Collection[int] = ()
) -> Iterator[str]:
    """The lines of a table; `rows` begin with the headings, and hold printable ASCII alone.

    No line is longer than `width` characters, unless the terminal is too narrow for any table: the
    widest cells are cut in the middle. None cuts nothing. `right` are the columns of numbers.
    """
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        columns = _narrow(columns, width)
    for row in rows:
        cells = [
            cut(cell, size).rjust(size) if number in right else cut(cell, size).ljust(size)
            for number, (cell, size) in enumerate(zip(row, columns, strict=True))
        ]
        yield _GAP.join(cells).rstrip()


def cut(text: str, size: int) -> str:
    """`text` without its middle, if it is longer than `size`: the end of a path says most."""
    if len(text) <= size:
        return text
    head = max(0, size - len(_CUT)) // 3
    tail = max(0, size - len(_CUT) - head)
    return text[:head] + _CUT + text[len(text) - tail :]


def _narrow(columns: list[int], width: int) -> list[int]:
    """The widths of the columns; the widest ones are made narrower until all fit."""
    room = width - len(_GAP) * (len(columns) - 1)
    limit = max(columns)
    while sum(min(column, limit) for column in columns) > room and limit > _NARROWEST:
        limit -= 1
    return [min(column, limit) for column in columns]


class Progress:
    """One line on a terminal, from the first second on: what is being looked at. It is cleared at
    the end. Where stderr is no terminal, nothing is printed."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def tell(self, text: str) -> None:
        """`text` says what begins now, in printable ASCII."""
        if sys.stderr.isatty() and time.monotonic() - self._begin >= _SLOW_SECONDS:
            print(f"{_CLEAR}{cut(text, _LINE_MAX)}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def clear(self) -> None:
        """The lines of a result follow."""
        if self._shown:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
            self._shown = False
