"""Which roots and which state belong to no instance of Incus."""

import pytest

from inx_sidecar.roots.deleted_instances import owners_without_instance, uuids_without_instance
from inx_sidecar.roots.inventory import Inventory, ListedInstance

pytestmark = pytest.mark.gc

ONE, TWO, THREE = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "123")


def inventory(**names: str) -> Inventory:
    items = tuple(ListedInstance(name, uuid, ours=True, ran=True) for name, uuid in names.items())
    return Inventory(items, frozenset(names))


def test_a_listed_instance_keeps_its_roots() -> None:
    assert owners_without_instance({("web", ONE)}, inventory(web=ONE), frozenset({"web"})) == set()


def test_the_roots_of_a_deleted_instance_are_found() -> None:
    owners = {("web", ONE), ("old", TWO)}
    assert owners_without_instance(owners, inventory(web=ONE), frozenset({"web"})) == {("old", TWO)}


def test_a_new_instance_does_not_keep_the_roots_of_a_deleted_one_with_its_name() -> None:
    owners = {("web", ONE), ("web", TWO)}
    found = owners_without_instance(owners, inventory(web=TWO), frozenset({"web"}))
    assert found == {("web", ONE)}


def test_a_renamed_instance_does_not_keep_the_roots_of_its_former_name() -> None:
    owners = {("old", ONE), ("new", ONE)}
    found = owners_without_instance(owners, inventory(new=ONE), frozenset({"new"}))
    assert found == {("old", ONE)}


def test_an_instance_that_is_being_created_keeps_its_roots() -> None:
    """Its directory exists before Incus lists the instance."""
    assert owners_without_instance({("web", ONE)}, inventory(), frozenset({"web"})) == set()


def test_only_directories_named_by_a_uuid_are_state_of_instances() -> None:
    names = [ONE, TWO, "seal.key", "busybox", "sidecar.sock", ONE.upper() + "x", f"{ONE}.new"]
    assert uuids_without_instance(names, inventory(web=ONE)) == {TWO}
    assert uuids_without_instance([], inventory(web=ONE)) == set()
    assert uuids_without_instance([THREE], inventory()) == {THREE}
