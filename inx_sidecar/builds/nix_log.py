"""What Nix prints with --log-format internal-json: the plain text, and how far the build is.

Each line is "@nix " and a JSON object (nix, src/libutil/logging.cc, JSONLogger). The numbers are
those of Nix 2.18 to 2.34 (logging.hh). Of the activities, 104, Builds, counts derivations, and 103,
CopyPaths, counts store paths that are fetched; 105, Build, is one derivation, and 108, Substitute,
one path. Of the results, 101 is a line of a builder, 107 one of the post-build hook, and 105,
Progress, has what is done, expected, running and failed.

The text is that of the format raw-with-logs. A builder may print "@nix " itself: Nix takes its
messages and file transfers, but lets it start no other activity. Programs that Nix runs, as git,
print what they like. So any line may come in any number; what is kept has a bound, and forged
numbers are only shown.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Final

_PREFIX: Final = "@nix "
_BUILD: Final = 105
# Messages of a higher level are for those who debug Nix (lvlInfo).
_INFO: Final = 3
_COUNTERS_MAX: Final = 100
_COUNT_MAX: Final = 1_000_000
_NAME_MAX: Final = 60
# As long as base.process takes a line.
_LINE_MAX: Final = 1 << 13
# Where the text of a message or of a builder begins. Nix sorts the keys.
_TEXT: Final = re.compile(
    r'@nix \{"action":"(?:msg",(?:"(?:column|file|level|line)":(?:"[^"]*"|[^",]*),){0,4}"msg":"'
    r'|result","fields":\[")'
)
_ESCAPE_MAX: Final = 6
_NAME: Final = re.compile(r"/nix/store/[0-9a-z]{32}-([0-9A-Za-z+._?=-]{1,211}?)(?:\.drv)?")
# Sequences that colour a terminal or set its title, and what moves its cursor: Nix leaves them out
# if it does not write to a terminal (src/libutil/terminal.cc, filterANSIEscapes).
_ESCAPES: Final = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?|[\r\x07]"
)


@dataclass(frozen=True)
class Progress:
    """How many derivations are built of those that have to be, how many paths are fetched, and the
    name of what has begun last; none of it before Nix has planned what to do."""

    built: int = 0
    builds: int = 0
    fetched: int = 0
    fetches: int = 0
    name: str = ""

    def text(self, *, names: bool = True) -> str:
        """As a status says it; without the name of a package if `names` is false."""
        parts = [f"building {self.built}/{self.builds}" if self.builds else "building"]
        if self.fetches:
            parts.append(f"{self.fetched} of {self.fetches} fetched")
        if names and self.name:
            parts.append(self.name)
        return ", ".join(parts)

    @property
    def work(self) -> str:
        """What there is to do, after Nix has planned it."""
        return f"{_count(self.builds, 'build')}, {_count(self.fetches, 'fetch')}"

    @property
    def done(self) -> str:
        return f"{self.built} built, {self.fetched} fetched"


class NixLog:
    """Reads the lines of one run of Nix."""

    def __init__(self, *, names: bool = True) -> None:
        self._progress = Progress()
        self._names = names
        self._counters: dict[int, int] = {}  # the type of each activity that counts, by its id
        self._planned = False

    @property
    def progress(self) -> Progress:
        return self._progress if self._planned else Progress()

    def read(self, line: str) -> list[str]:
        """The lines of text in a line that Nix has printed."""
        if not line.startswith(_PREFIX):
            return _lines(line)
        try:
            event = json.loads(line[len(_PREFIX) :])
        except (ValueError, RecursionError):
            return _lines(_text_of_cut(line))
        match event:
            case {"action": "msg", "msg": str(text)}:
                return _lines(text) if _level(event) <= _INFO else []
            case {"action": "result", "type": 101 | 107, "fields": [str(text), *_]}:
                return _lines(text)
            case {"action": "result", "type": 105, "id": int(number), "fields": [*fields]}:
                self._count(number, fields)
            case {"action": "start", "type": 104 | 103 as kind, "id": int(number)}:
                if len(self._counters) < _COUNTERS_MAX:
                    self._counters[number] = kind
            case {"action": "start", "type": 105 | 108 as kind,
                  "fields": [str(path), *_]}:  # fmt: skip
                return self._begin(kind, path)
            case {"action": "start", "type": 100}:
                pass  # the Substitute that it belongs to has begun before
            case {"action": "start", "text": str(text)} if text and _level(event) <= _INFO:
                return _lines(f"{text}...")
            case {"action": "stop", "id": int(number)}:
                self._counters.pop(number, None)
        return []

    def _count(self, number: int, fields: list[Any]) -> None:
        match fields:
            case [int(done), int(expected), *_] if 0 <= done <= expected <= _COUNT_MAX:
                match self._counters.get(number):
                    case 104:
                        before = self._progress
                        # Nix 2.34 counts what has just been built also among what is expected.
                        if done > before.built and expected - done == before.builds - before.built:
                            expected = before.builds
                        self._progress = replace(before, built=done, builds=expected)
                    case 103:
                        self._progress = replace(self._progress, fetched=done, fetches=expected)

    def _begin(self, kind: int, path: str) -> list[str]:
        found = _NAME.fullmatch(path)
        if found is None:
            return []
        progress = self._progress = replace(self._progress, name=found[1][:_NAME_MAX])
        lines = [] if self._planned else [f"inx: to do: {progress.work}"]
        self._planned = True
        name = f" {progress.name}" if self._names else ""
        if kind == _BUILD:
            lines.append(f"inx: building{name}, {progress.built} of {progress.builds} built")
        else:
            lines.append(f"inx: fetching{name}, {progress.fetched} of {progress.fetches} fetched")
        return lines


def _level(event: dict[str, Any]) -> int:
    level = event.get("level")
    return level if isinstance(level, int) else _INFO + 1


def _text_of_cut(line: str) -> str:
    """The text in a line whose end is missing, as base.process cuts long ones; else the line."""
    if begin := _TEXT.match(line):
        for missing in range(_ESCAPE_MAX):
            try:
                return str(json.loads(f'"{line[begin.end() : len(line) - missing]}"'))
            except ValueError:
                pass  # it ends within an escape
    return line


def _lines(text: str) -> list[str]:
    """The lines of `text` without escapes; a line that is too long becomes several."""
    text = text.encode(errors="replace").decode()  # JSON may have half a character
    lines = []
    for line in _ESCAPES.sub("", text).split("\n"):
        lines += [line[i : i + _LINE_MAX] for i in range(0, len(line), _LINE_MAX)] or [""]
    return lines


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("h") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"
