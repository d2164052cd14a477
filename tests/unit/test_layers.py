"""One idea a module, imports only downwards, and a hook that is light."""

import ast
import re
import subprocess
import sys

import pytest
from disposable import REPO

pytestmark = pytest.mark.main

PACKAGE = REPO / "inx_sidecar"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")

# Each module imports only from the tiers before its own.
TIERS = (
    {"errors", "journal", "lxclog", "paths", "service", "syscalls"},
    {
        "addresses", "beneath", "client", "collector", "fanotify", "forked", "hook", "incus",
        "overlay", "process", "storepath",
    },
    {"declared", "events", "instance"},
    {
        "activation", "barrier", "bootstrap", "census", "closure", "config", "converge",
        "generations", "nixdaemon", "registered", "roots", "running", "status",
    },
    {"mounts", "plan", "seals", "settings", "systems", "views"},
    {"builds", "check", "looks", "start"},
    {"life", "mirror", "network"},
    {"estate", "watch"},
    {"snapshots"},
    {"fleet", "listing", "updates"},
    {"lifecycle"},
    {"follower"},
    {"server"},
    {"cli"},
)  # fmt: skip
HEAVY = {
    "asyncio", "click", "dataclasses", "h11", "json", "logging", "re", "subprocess", "typing",
    "yaml",
}  # fmt: skip


def imports(module: str) -> set[str]:
    """The modules of the package that `module` imports anywhere, also within a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            if node.module == "inx_sidecar":
                found |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("inx_sidecar."):
                found.add(node.module.removeprefix("inx_sidecar."))
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert not [name for name in names if name.startswith("inx_sidecar")], module
    return found


def test_every_module_has_its_tier() -> None:
    placed = sorted(module for tier in TIERS for module in tier)
    assert placed == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_downwards(module: str) -> None:
    below: set[str] = set()
    for tier in TIERS:
        if module in tier:
            break
        below |= tier
    assert imports(module) <= below


def test_the_package_itself_is_empty() -> None:
    assert (PACKAGE / "__init__.py").read_bytes() == b""


def test_a_hook_imports_nothing_heavy(processes: None) -> None:
    """It runs three times at each start, and LXC waits for it."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import inx_sidecar.hook; print(*sys.modules)"
    )
    argv = [sys.executable, "-I", "-c", code, str(REPO)]
    loaded = subprocess.check_output(argv, text=True).split()
    assert "inx_sidecar.hook" in loaded
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_fits_in_one_head(module: str) -> None:
    text = (PACKAGE / f"{module}.py").read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "its first line tells its idea"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_left_undone_and_nothing_sleeps(module: str) -> None:
    text = (PACKAGE / f"{module}.py").read_text()
    assert not re.findall(r"time\.sleep|\bTODO\b|\bFIXME\b|\bXXX\b|shell=True", text)


def test_only_its_own_module_spells_out_a_path_of_the_host() -> None:
    texts = {module: (PACKAGE / f"{module}.py").read_text() for module in MODULES}
    named = {
        module
        for module, text in texts.items()
        if re.search(r'"/(?:run|var|nix/var|etc/inx)/', text) and module != "paths"
    }
    assert not named
