"""The exit status of CI, whatever happens on each of the two hosts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.disposable import REPO
from support.host_files import NO_HOST

pytestmark = pytest.mark.main


@pytest.mark.parametrize(
    ("release", "sid", "status"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (0, 1, 1),
        (2, 1, 2),
        (0, NO_HOST, 0),
        (1, NO_HOST, 1),
        (0, 5, 1),  # no test is marked
        (NO_HOST, 0, NO_HOST),
        (137, 0, 137),
    ],
)
def test_ci_fails_if_a_test_fails_and_not_for_want_of_a_host_of_sid(
    tmp_path: Path, release: int, sid: int, status: int, processes: None
) -> None:
    for directory in ".ci", "tests":
        (tmp_path / directory).mkdir()
    ci, run = tmp_path / ".ci/run", tmp_path / "tests/run"
    shutil.copy(REPO / ".ci/run", ci)
    run.write_text(f'#!/bin/sh\n[ "$1" = --suite ] && exit {sid}\nexit {release}\n')
    run.chmod(0o755)
    done = subprocess.run([ci], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stdout.count("sid makes no host") == (sid == NO_HOST)


def test_ci_runs_the_tests_of_all_directories() -> None:
    text = (REPO / ".ci/run").read_text()
    (order,) = re.findall(r'^order="(.+)"$', text, re.MULTILINE)
    directories = {f"tests/{path.parent.name}" for path in (REPO / "tests").glob("*/test_*.py")}
    assert set(order.split()) == directories
