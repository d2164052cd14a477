"""A look at a path says what is there, whatever the rest of the host does meanwhile."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from inx_sidecar.links.link_lookup import look_up
from inx_sidecar.links.root_directories import RootDirectory

pytestmark = pytest.mark.gc

PATH = "/nix/store/00000000000000000000000000000000-x"


@pytest.fixture
def renames(tmp_path: Path) -> Iterator[None]:
    """Meanwhile, a process renames a directory again and again."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    child = os.fork()
    if not child:
        while True:
            one.rename(two)
            two.rename(one)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_renames_anywhere_on_the_host_hide_no_link(tmp_path: Path, renames: None) -> None:
    rootfs = tmp_path / "rootfs"
    (rootfs / "home").mkdir(parents=True)
    (rootfs / "home/result").symlink_to(PATH)
    for number in range(3):
        (rootfs / f"{number}").mkdir()
        (rootfs / f"{number}/to").symlink_to(f"../{number - 1}/to" if number else "../home")
    root = RootDirectory.at(str(rootfs))
    try:
        for _ in range(300):
            found = look_up("/2/to/result", [root], True)
            assert found["sure"] and list(found["targets"]) == [PATH], found
    finally:
        os.close(root.fd)
