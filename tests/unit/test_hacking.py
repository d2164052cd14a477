"""Every module, name and test that HACKING.md mentions exists."""

import importlib
import re

import pytest
from support.disposable import REPO

pytestmark = pytest.mark.main

TEXT = (REPO / "HACKING.md").read_text()
PACKAGES = {path.parent.name for path in (REPO / "inx_sidecar").glob("*/__init__.py")}
TOP = {path.stem for path in (REPO / "inx_sidecar").glob("*.py")} - {"__init__"}
CODE = set(re.findall(r"`([\w./-]+)`", TEXT))
DIRECTORIES = ("tests", "hooks", "docs", "profiles", "example")
# The directory nix/ has the NixOS modules, the package nix of inx_sidecar/ has Python modules.
FILES = sorted(
    text
    for text in CODE
    if text.startswith(tuple(f"{name}/" for name in DIRECTORIES))
    or re.fullmatch(r"nix/([a-z]+\.nix|tests)", text)
)
# PACKAGE/MODULE, PACKAGE/MODULE.NAME, or MODULE.NAME of the top level.
NAMES = sorted(
    text
    for text in CODE - set(FILES)
    if (re.match(r"[a-z]+/[a-z_]+(\.|$)", text) and text.split("/")[0] in PACKAGES)
    or ("." in text and text.split(".")[0] in TOP)
)


def test_many_names_and_files_are_found() -> None:
    assert len(NAMES) > 50 and len(FILES) > 20


@pytest.mark.parametrize("name", NAMES)
def test_a_name_exists(name: str) -> None:
    package, _, rest = name.rpartition("/")
    module, *attributes = rest.split(".")
    found = importlib.import_module(".".join(filter(None, ["inx_sidecar", package, module])))
    for attribute in attributes:
        found = getattr(found, attribute)


@pytest.mark.parametrize("path", FILES)
def test_a_file_exists(path: str) -> None:
    assert (REPO / path).exists()
