"""HACKING.md's table of packages is the code's: imports go only downwards, and a hook is light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.disposable import REPO

pytestmark = pytest.mark.main

SOURCE = REPO / "inx_sidecar"
# A module by its path below SOURCE, without the ending: "roots/mirror", or "cli" at the top.
MODULES = sorted(
    path.relative_to(SOURCE).with_suffix("").as_posix()
    for path in SOURCE.rglob("*.py")
    if path.name != "__init__.py"
)
HEAVY = {
    "asyncio", "click", "dataclasses", "h11", "json", "logging", "re", "subprocess", "typing",
    "yaml",
}  # fmt: skip


def packages() -> dict[str, list[str]]:
    """The table of HACKING.md, from the top: a package, and its modules."""
    text = (REPO / "HACKING.md").read_text()
    _, _, section = text.partition("### Packages\n")
    rows = re.findall(r"^\| `([a-z_]+)/` \|[^|]*\|((?: `[a-z_]+`)+) \|$", section, re.MULTILINE)
    return {
        package.removeprefix("inx_sidecar"): re.findall(r"`(\w+)`", modules)
        for package, modules in rows
    }


PACKAGES = packages()
# From the top; each package imports only from those behind it.
ORDER = list(PACKAGES)


def package_of(module: str) -> str:
    return module.rpartition("/")[0]


def imports(module: str) -> set[str]:
    """The modules of ours that `module` imports anywhere, also within a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((SOURCE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            if node.module and node.module.split(".")[0] == "inx_sidecar":
                place = "/".join(node.module.split(".")[1:])
                names = [f"{place}/{alias.name}".lstrip("/") for alias in node.names]
                found |= {place} if place in MODULES else set(names)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert not [name for name in names if name.startswith("inx_sidecar")], module
    assert found <= set(MODULES), f"{module} imports {found - set(MODULES)}"
    return found


def below(module: str) -> set[str]:
    """All that `module` imports, directly or not."""
    found: set[str] = set()
    todo = imports(module)
    while todo:
        found |= todo
        todo = set().union(*map(imports, todo)) - found
    return found


def test_the_table_lists_every_module_once() -> None:
    listed = [f"{package}/{name}".lstrip("/") for package in ORDER for name in PACKAGES[package]]
    assert sorted(listed) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_downwards(module: str) -> None:
    own = ORDER.index(package_of(module))
    for imported in imports(module):
        assert ORDER.index(package_of(imported)) >= own, f"{module} imports {imported}"
    assert module not in below(module), "it imports itself by way of others"


@pytest.mark.parametrize("init", sorted(SOURCE.rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_a_package_itself_is_empty(init: Path) -> None:
    assert init.read_bytes() == b""


def test_every_package_is_one() -> None:
    """pip and nixpkgs install what has an __init__.py."""
    assert {path.parent for path in SOURCE.rglob("*.py")} == {
        path.parent for path in SOURCE.rglob("__init__.py")
    }


def test_a_hook_imports_nothing_heavy(processes: None) -> None:
    """LXC waits for it at each start: every module counts."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import inx_sidecar.hook; print(*sys.modules)"
    )
    argv = [sys.executable, "-I", "-c", code, str(REPO)]
    loaded = subprocess.check_output(argv, text=True).split()
    assert "inx_sidecar.hook" in loaded
    assert not HEAVY & set(loaded)
    ours = {name for name in loaded if name.startswith("inx_sidecar")}
    assert ours == {
        "inx_sidecar", "inx_sidecar.hook", "inx_sidecar.base", "inx_sidecar.base.paths",
        "inx_sidecar.base.lxc_log",
    }  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_a_module_fits_in_one_head(module: str) -> None:
    text = (SOURCE / f"{module}.py").read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text)), "its first line tells its idea"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_left_undone_and_nothing_sleeps(module: str) -> None:
    text = (SOURCE / f"{module}.py").read_text()
    assert not re.findall(r"time\.sleep|\bTODO\b|\bFIXME\b|\bXXX\b|shell=True", text)


def test_only_its_own_module_spells_out_a_path_of_the_host() -> None:
    texts = {module: (SOURCE / f"{module}.py").read_text() for module in MODULES}
    named = {
        module
        for module, text in texts.items()
        if re.search(r'(?<!"")"/(?:run|var|nix/var|etc/inx)/', text) and module != "base/paths"
    }
    assert not named
