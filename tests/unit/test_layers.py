"""The code follows the table of packages in HACKING.md, and a hook imports few modules."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.disposable import REPO

pytestmark = pytest.mark.main

SOURCE = REPO / "inx_sidecar"
# Modules by their paths below SOURCE, without the suffix: "roots/mirror", or "cli" at the top.
MODULES = sorted(
    path.relative_to(SOURCE).with_suffix("").as_posix()
    for path in SOURCE.rglob("*.py")
    if path.name != "__init__.py"
)


def packages() -> dict[str, list[str]]:
    """The table of HACKING.md, from the top: packages, and their modules."""
    text = (REPO / "HACKING.md").read_text()
    _, _, section = text.partition("### Packages\n")
    rows = re.findall(r"^\| `([a-z_]+)/` \|[^|]*\|((?: `[a-z_]+`)+) \|$", section, re.MULTILINE)
    return {
        package.removeprefix("inx_sidecar"): re.findall(r"`(\w+)`", modules)
        for package, modules in rows
    }


PACKAGES = packages()
# From the top: a package imports only from packages below it.
ORDER = list(PACKAGES)


def package_of(module: str) -> str:
    return module.rpartition("/")[0]


def imports(module: str) -> set[str]:
    """The modules of inx that `module` imports, also in a function."""
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
    """The modules that `module` imports, directly or indirectly."""
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
    assert module not in below(module), "the module imports itself indirectly"


@pytest.mark.parametrize("init", sorted(SOURCE.rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_a_package_itself_is_empty(init: Path) -> None:
    assert init.read_bytes() == b""


def test_every_directory_with_modules_is_a_package() -> None:
    """pip and nixpkgs install only directories with an __init__.py."""
    assert {path.parent for path in SOURCE.rglob("*.py")} == {
        path.parent for path in SOURCE.rglob("__init__.py")
    }


def test_a_hook_imports_only_modules_in_c(processes: None) -> None:
    """LXC waits for the hook at each start, so each imported module costs time."""
    code = (
        "import sys; before = set(sys.modules); sys.path.append(sys.argv[1]); import hook; "
        "print(*set(sys.modules) - before)"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, str(SOURCE)]
    loaded = subprocess.check_output(argv, text=True).split()
    assert set(loaded) <= {"hook", "_socket", *sys.builtin_module_names}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short_and_has_a_docstring(module: str) -> None:
    text = (SOURCE / f"{module}.py").read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text)), "the first line of a module says its idea"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_no_open_task_no_sleep_and_no_shell(module: str) -> None:
    text = (SOURCE / f"{module}.py").read_text()
    assert not re.findall(r"time\.sleep|\bTODO\b|\bFIXME\b|\bXXX\b|shell=True", text)


def test_only_the_module_paths_has_literal_paths_of_the_host() -> None:
    """And the hook, which imports no module: test_hook.py compares them."""
    texts = {module: (SOURCE / f"{module}.py").read_text() for module in MODULES}
    named = {
        module
        for module, text in texts.items()
        if re.search(r'(?<!"")"/(?:run|var|nix/var|etc/inx)/', text)
    }
    assert named == {"base/paths", "hook"}
