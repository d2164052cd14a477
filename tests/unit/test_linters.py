"""ruff, mypy and sh accept the checkout."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.disposable import REPO

pytestmark = pytest.mark.main

SCRIPTS = [
    *sorted((REPO / "hooks").iterdir()),
    *(REPO / name for name in ("install", "example/run", "example/wait", ".ci/run")),
]


def run(*argv: str | Path) -> None:
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_no_problem(processes: None) -> None:
    run(sys.executable, "-m", "ruff", "check", ".")


def test_the_code_is_formatted(processes: None) -> None:
    run(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_mypy_finds_no_problem(processes: None) -> None:
    run(sys.executable, "-m", "mypy")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(REPO)))
def test_a_shell_script_has_no_syntax_error(script: Path, processes: None) -> None:
    if not script.exists():
        pytest.skip(f"there is no {script.relative_to(REPO)}")
    first = script.read_text().partition("\n")[0]
    assert first.endswith(("sh", "bash")), first
    run("bash" if first.endswith("bash") else "sh", "-n", script)
    assert script.stat().st_mode & 0o111
