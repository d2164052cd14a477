"""What users read, README.md and docs/*.md, in the parts that tests look at."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from support.disposable import REPO

README = "README.md"
PAGES = (README, *(f"docs/{path.name}" for path in sorted((REPO / "docs").glob("*.md"))))


def read(page: str) -> str:
    return (REPO / page).read_text()


@dataclass(frozen=True)
class Block:
    """A fenced block below `heading`, the nearest one above it."""

    page: str
    heading: str
    language: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


def _lines(page: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it belongs to a fenced block."""
    fenced = False
    for line in read(page).splitlines():
        fence = line.startswith("```")
        yield line, fenced or fence
        fenced ^= fence


def headings(page: str) -> list[str]:
    """Those of every level, in order."""
    return [line.lstrip("#").strip() for line, code in _lines(page) if line[:1] == "#" and not code]


def section(page: str, heading: str) -> str:
    """What stands between `heading` and the next heading of any level."""
    found: list[str] = []
    within = seen = False
    for line, code in _lines(page):
        if line.startswith("#") and not code:
            within = line.lstrip("#").strip() == heading
            seen = seen or within
        elif within:
            found.append(line)
    assert seen, f"{page} has no section {heading}"
    return "".join(f"{line}\n" for line in found)


def blocks(page: str) -> list[Block]:
    return [
        Block(page, heading, language, tuple(text.splitlines()))
        for heading in headings(page)
        for language, text in re.findall(
            r"^```(\w*)\n(.*?)^```$", section(page, heading), re.MULTILINE | re.DOTALL
        )
    ]


def commands(page: str, heading: str) -> list[str]:
    """The lines of the `sh` blocks of a section, without comments."""
    return [
        line
        for block in blocks(page)
        if (block.heading, block.language) == (heading, "sh")
        for line in block.lines
        if not line.startswith("#")
    ]


def said(page: str, beginning: str) -> str:
    """The only command between the lines of a page that begins so."""
    (found,) = re.findall(f"`({re.escape(beginning)}[^`]*)`", read(page))
    return str(found)


def anchor(heading: str) -> str:
    """What a link to a heading says after "#", as forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
