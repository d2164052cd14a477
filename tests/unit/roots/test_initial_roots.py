"""When the root file system of an instance is read, and when roots of a former name are moved."""

import pytest

from inx_sidecar.roots.initial_roots import former_names, must_read
from inx_sidecar.roots.inventory import ListedInstance

pytestmark = pytest.mark.gc

UUID, OTHER = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "12")
OLD, NEW = (1, 1, ""), (1, 2, "")
Version = tuple[int, int, str]


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("last_read", [None, OLD, NEW])
def test_an_instance_without_roots_is_read(runs: bool, last_read: Version | None) -> None:
    assert must_read(True, runs, last_read, NEW)


@pytest.mark.parametrize(
    ("runs", "last_read", "expected"),
    [
        (False, None, True),
        (False, OLD, True),
        (False, NEW, False),
        (True, None, False),
        (True, OLD, False),
    ],
)
def test_an_instance_with_roots_is_read_after_a_new_file_system_while_it_does_not_run(
    runs: bool, last_read: Version | None, expected: bool
) -> None:
    assert must_read(False, runs, last_read, NEW) is expected


def test_a_renamed_instance_takes_over_the_roots_of_its_former_name() -> None:
    new = ListedInstance("new", UUID, ours=True, ran=True)
    owners = {("old", UUID), ("new", UUID), ("web", OTHER)}
    assert former_names(new, owners, {("new", UUID), ("web", OTHER)}) == ["old"]


def test_an_imported_instance_takes_over_no_roots_of_the_exported_one() -> None:
    """Both have the same uuid, and Incus lists both."""
    imported = ListedInstance("new", UUID, ours=True, ran=True)
    assert former_names(imported, {("old", UUID)}, {("old", UUID), ("new", UUID)}) == []
