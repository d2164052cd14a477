"""Each instance has user ids of its own for its builds."""

import os
import pwd
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.nix import build_ids
from inx_sidecar.nix.build_ids import take

pytestmark = pytest.mark.main

FIRST = 65536


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "BUILD_IDS", str(tmp_path / "build-ids"))
    monkeypatch.setattr(build_ids, "_subordinate_ids", list)
    return tmp_path / "build-ids"


def taken(uuid: str, first: int = FIRST, deleted: str = "") -> range:
    return take(uuid, first, lambda owner: owner == deleted)


def test_ids_stay_with_an_instance_and_no_other_has_them() -> None:
    one, two = taken("one"), taken("two")
    assert (one, two) == (range(FIRST, FIRST + 32), range(FIRST + 32, FIRST + 64))
    assert (taken("one"), taken("two")) == (one, two)


def test_instances_that_take_ids_at_once_get_different_ones() -> None:
    """The daemons of many instances start together; each asks in a thread of its own."""
    for number in range(8):
        taken(f"gone{number}")
    with ThreadPoolExecutor(24) as threads:
        found = list(threads.map(lambda n: take(f"i{n}", FIRST, is_gone), range(100)))
    assert len({ids.start for ids in found}) == 100


def is_gone(owner: str) -> bool:
    return owner.startswith("gone")


def test_ids_of_a_deleted_instance_are_given_away_again() -> None:
    one, two = taken("one"), taken("two")
    assert taken("three") not in (one, two)
    assert taken("four", deleted="one") == one
    assert taken("two") == two


def test_ids_of_others_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_ids, "_subordinate_ids", lambda: [range(FIRST + 40, FIRST + 41)])
    user = pwd.getpwuid(0)

    def getpwuid(uid: int) -> pwd.struct_passwd:
        if uid == FIRST + 31:
            return user
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    assert taken("one") == range(FIRST + 64, FIRST + 96)


def test_another_region_gives_other_ids(directory: Path) -> None:
    taken("one")
    two = taken("two")
    assert taken("one", 200_000) == range(200_000, 200_032)
    assert {entry: os.readlink(directory / entry) for entry in os.listdir(directory)} == {
        "200000": "one",
        str(two.start): "two",
    }


def test_ranges_of_another_region_do_not_overlap() -> None:
    one = taken("one")
    two = taken("two", FIRST + 16)
    assert not set(one) & set(two)


def test_the_region_may_be_full(directory: Path) -> None:
    directory.mkdir()
    for start in range(FIRST, 100_000, 32):
        (directory / str(start)).symlink_to("other")
    with pytest.raises(UnsupportedError, match="set 'first_build_id'"):
        taken("one")
    assert taken("one", deleted="other") == range(FIRST, FIRST + 32)


def test_files_that_are_no_ranges_do_not_matter(directory: Path) -> None:
    directory.mkdir()
    (directory / "README").write_text("")
    assert taken("one") == range(FIRST, FIRST + 32)
