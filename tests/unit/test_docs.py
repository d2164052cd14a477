"""README.md is two screens, and no page leads nowhere or has gone stale."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disposable import REPO
from support.pages import PAGES, README, anchor, headings, read, section

from inx_sidecar.base import paths

pytestmark = pytest.mark.main

DOCS = tuple(page for page in PAGES if page != README)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What stands for a value in a quoted message.
PLACEHOLDER = re.compile(r"'?\b[A-Z][A-Z_]*\b'?")
VALUE = "\0"
# Of a line for the journal.
DIRECTIVE = re.compile(r"%(?:\.\d)?[dfs]")


# --- The pages --------------------------------------------------------------------------------


def test_the_readme_is_two_screens() -> None:
    assert len(read(README).splitlines()) <= 200


def test_the_readme_has_a_question_for_every_page() -> None:
    rows = re.findall(
        r"^\| \[[^]]+\]\(([^)]+)\) \| .+\? \|$", section(README, "Documentation"), re.M
    )
    assert sorted(rows) == sorted(DOCS)


@pytest.mark.parametrize("page", DOCS)
def test_a_page_begins_with_its_question_and_its_contents(page: str) -> None:
    title, *sections = headings(page)
    assert read(page).startswith(f"# {title}\n\n")
    begin = section(page, title)
    question, _, _ = begin.strip().partition("\n\n")
    assert question.endswith("?") and len(question.splitlines()) <= 2
    listed = re.findall(r"^- \[(.+)\]\(#(.+)\)$", begin, re.MULTILINE)
    assert [text for text, _ in listed] == sections
    assert [place for _, place in listed] == [anchor(heading) for heading in sections]


@pytest.mark.parametrize("page", [*PAGES, "HACKING.md", "CHANGES.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    for link in LINK.findall(read(page)):
        if link.startswith("https://"):
            continue
        path, _, place = link.partition("#")
        target = (REPO / page).parent / path if path else REPO / page
        assert target.exists(), f"{page} links {link}"
        if place:
            name = target.resolve().relative_to(REPO).as_posix()
            found = [anchor(heading) for heading in headings(name)]
            assert found.count(place) == 1, f"{page} links {link}"


# --- Messages ---------------------------------------------------------------------------------


def messages() -> list[str]:
    """The first cells of the tables in docs/troubleshooting.md that are headed "message"."""
    tables = re.findall(
        r"^\| message \|.*\n\|[-|]+\n((?:\|.*\n)+)", read("docs/troubleshooting.md"), re.MULTILINE
    )
    return re.findall(r"^\| `([^`]+)` \|", "".join(tables), re.MULTILINE)


def templates(path: Path) -> Iterator[str]:
    """The texts of a module, with VALUE where a value is put in."""
    tree = ast.parse(path.read_text())
    constants = {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id.isupper()
        if isinstance(node.value.value, str)
    }

    def text(node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str(value)):
                return DIRECTIVE.sub(VALUE, value)
            case ast.Constant(value=bytes(value)):
                return value.decode(errors="replace")
            case ast.JoinedStr(values=values):
                return "".join(map(text, values))
            case ast.FormattedValue(value=ast.Name(id=name)) if name in constants:
                return constants[name]
            case ast.FormattedValue(value=ast.Attribute(value=ast.Name(id="paths"), attr=name)):
                return str(getattr(paths, name))
            case _:
                return VALUE

    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Constant):
            yield text(node)


TEMPLATES = [text for path in (REPO / "inx_sidecar").rglob("*.py") for text in templates(path)]


def occurs(message: str) -> bool:
    """Whether the source has a text like this: word for word, and a value for a placeholder."""
    pattern, end = "", 0
    for word in PLACEHOLDER.finditer(message):
        pattern += re.escape(message[end : word.start()])
        pattern += f"(?:'?{VALUE}'?|{re.escape(word[0])})"
        end = word.end()
    pattern += re.escape(message[end:])
    return any(re.search(pattern, text) for text in TEMPLATES)


def test_the_page_quotes_every_kind_of_message() -> None:
    assert len(messages()) == len(set(messages())) > 100


@pytest.mark.parametrize("message", messages())
def test_a_quoted_message_is_in_the_source(message: str) -> None:
    assert re.search(r"[a-z]{4}", message) and occurs(message)


def test_a_message_that_nobody_says_is_noticed() -> None:
    for message in ("there is no such message", "unknown key KEY, so stop", "cannot mount 'x'"):
        assert not occurs(message)
