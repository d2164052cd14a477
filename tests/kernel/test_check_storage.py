"""`inx-sidecar check` writes a file where inx has to write, as who writes there."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from inx_sidecar.builds.build_user import BuildUser
from inx_sidecar.checks.storage import home_problem, problem_of
from inx_sidecar.kernel.forked import run_in_child

pytestmark = pytest.mark.main

USER = BuildUser("nobody", 12345, 12345, "")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory with a small file system."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_directory_that_takes_files_is_left_as_it_is(small: Path) -> None:
    assert problem_of(str(small)) == problem_of(str(small), "/proc/self/root") == ""
    assert os.listdir(small) == []


def test_a_file_system_that_takes_no_files_is_told(small: Path) -> None:
    (small / "full").write_bytes(bytes(200 << 10))
    assert "No space left on device" in problem_of(str(small))
    (small / "full").unlink()
    assert problem_of(str(small)) == ""
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    assert "Read-only file system" in problem_of(str(small))
    assert problem_of(f"{small}/none").startswith("it is missing; run 'systemctl restart")


def test_what_the_sidecar_sees_counts(small: Path, tmp_path: Path) -> None:
    """It may have another directory there than the host has by now."""
    within = f"{small}/place"
    other = tmp_path / "other"
    os.mkdir(within)
    assert "the sidecar cannot write there any more (No such" in problem_of(within, str(other))
    os.makedirs(f"{other}{within}")
    assert "the sidecar writes to a directory that was there before" in problem_of(
        within, str(other)
    )


def of_home(home: Path) -> str:
    user = BuildUser(USER.name, USER.uid, USER.gid, str(home))
    problem, _ = asyncio.run(run_in_child(lambda: (home_problem(user), []), "the look"))
    return str(problem)


def test_a_home_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents[:-1]):
        if not parent.stat().st_mode & 1:
            parent.chmod(0o711)
    home = tmp_path / "home"
    assert of_home(home).startswith("it is missing, so builds fail; run 'install -d -m 700 -o")
    home.mkdir()
    assert f"belongs to the user 0; run 'chown -R nobody:12345 {home}'" in of_home(home)
    os.chown(home, USER.uid, USER.gid)
    assert of_home(home) == "" and not os.listdir(home)
    (home / ".cache").mkdir()
    assert f"{home}/.cache belongs to the user 0" in of_home(home)
    os.chown(home / ".cache", USER.uid, USER.gid)
    assert of_home(home) == ""
    home.chmod(0o500)
    assert f"cannot write to {home} (Permission denied)" in of_home(home)
    home.chmod(0o700)
    (home / ".cache").rmdir()
    (home / ".cache").symlink_to("nowhere")
    assert of_home(home) == ""
    home.joinpath(".cache").unlink()
    home.rmdir()
    home.write_text("")
    assert of_home(home).startswith(f"{home} ")
