"""Every expected failure has a status of its own, and docs/ list what the code knows."""

import importlib
import pkgutil
import re
from dataclasses import fields

import pytest
from support.pages import read

import inx_sidecar
from inx_sidecar import hook
from inx_sidecar.base.errors import InxError, UnreachableError, one_line
from inx_sidecar.config import keys
from inx_sidecar.config.module_keys import MODULE_KEY
from inx_sidecar.config.settings import Settings
from inx_sidecar.declared import ownership
from inx_sidecar.incus import arrival, status_keys
from inx_sidecar.incus.instance import SEALED
from inx_sidecar.incus.update_key import DEALT_WITH

pytestmark = pytest.mark.main


def every_kind() -> list[type[InxError]]:
    for module in pkgutil.walk_packages(inx_sidecar.__path__, "inx_sidecar."):
        importlib.import_module(module.name)
    found, todo = [], [InxError]
    while todo:
        kinds = todo.pop().__subclasses__()
        found += kinds
        todo += kinds
    return [kind for kind in found if kind.__module__.startswith("inx_sidecar.")]


def test_every_kind_of_error_has_a_status_of_its_own() -> None:
    statuses = {kind.__name__: kind.status for kind in every_kind() if "status" in vars(kind)}
    assert all(20 <= number <= 99 for number in statuses.values()), statuses
    assert len(set(statuses.values())) == len(statuses), statuses


def test_a_hook_that_finds_no_sidecar_has_the_status_of_that_error() -> None:
    """hook.py imports nothing it can do without."""
    assert hook.UNREACHABLE == UnreachableError.status


def test_the_docs_list_the_statuses() -> None:
    listed = [
        int(number)
        for number in re.findall(r"^\| (\d+) \|", read("docs/troubleshooting.md"), re.MULTILINE)
    ]
    bug = 1
    assert sorted(listed) == sorted({bug, *(kind.status for kind in every_kind())})


def test_the_docs_list_the_keys() -> None:
    listed = re.findall(r"^\| `(user\.inx\.[a-z_.]+)`", read("docs/keys.md"), re.MULTILINE)
    written = [
        *status_keys.KEYS,
        *status_keys.KEPT,
        DEALT_WITH,
        status_keys.CHANGES_KEY,
        SEALED,
        ownership.OWNERSHIP_KEY,
        arrival.KEY,
    ]
    with_a_name = ["user.inx.config", "user.inx.module"]
    assert all(MODULE_KEY.fullmatch(f"{key}.NAME") for key in with_a_name)
    assert sorted(listed) == sorted([*keys._KEYS, *with_a_name, *written])


def test_the_docs_list_the_settings() -> None:
    names = {field.name for field in fields(Settings)}
    listed = re.findall(r"^\| `([a-z_]+)` \|", read("docs/keys.md"), re.MULTILINE)
    assert sorted(listed) == sorted(names)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("  two\n lines\t", "two lines"),
        ("\x1b[31mred\x07", "?[31mred?"),
        ("a\u202eb\u2028c", "a?b c"),
        ("\ud800", "?"),
        ("\0", "?"),
        ("x" * 5000, "x" * 1000),
        ("word " + "x" * 5000, "word " + "x" * 995),
        ("w" * 990 + " /nix/store/" + "0" * 32, "w" * 990),
    ],
)
def test_a_message_is_one_printable_line(text: str, line: str) -> None:
    assert one_line(text) == line and str(InxError(text)) == line
