"""When the root file system of an instance is read for roots, and whose roots it takes over."""

import pytest

from inx_sidecar.roots.initial_roots import former_names, must_read
from inx_sidecar.roots.inventory import ListedInstance

pytestmark = pytest.mark.gc

UUID, OTHER = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "12")
OLD, NEW = (1, 1), (1, 2)


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("last_read", [None, OLD, NEW])
def test_an_instance_without_roots_is_read(runs: bool, last_read: tuple[int, int] | None) -> None:
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
def test_an_instance_with_roots_is_read_when_it_was_written_anew_and_does_not_run(
    runs: bool, last_read: tuple[int, int] | None, expected: bool
) -> None:
    assert must_read(False, runs, last_read, NEW) is expected


def test_a_renamed_instance_takes_over_the_roots_of_its_former_name() -> None:
    new = ListedInstance("new", UUID, ours=True, ran=True)
    owners = {("old", UUID), ("new", UUID), ("web", OTHER)}
    assert former_names(new, owners, {("new", UUID), ("web", OTHER)}) == ["old"]


def test_an_import_takes_nothing_of_the_instance_that_was_exported() -> None:
    """Both have one uuid, and both are listed."""
    imported = ListedInstance("new", UUID, ours=True, ran=True)
    assert former_names(imported, {("old", UUID)}, {("old", UUID), ("new", UUID)}) == []
