"""The first roots of instances whose storage is not mounted: which, once, and before any drop."""

import asyncio
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.direct_roots import added, store

from inx_sidecar.base import paths
from inx_sidecar.nix import generations
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import direct_roots, lineage
from inx_sidecar.roots.comparison_errors import ComparisonErrors
from inx_sidecar.roots.initial_roots import InitialRoots
from inx_sidecar.roots.inventory import Inventory, ListedInstance
from inx_sidecar.roots.lineage import COPIED

pytestmark = pytest.mark.gc

WEB, COPY, DB, NEXT = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "1234")
ONE, TWO, THREE = (store(name).replace("0", name[1]) for name in ("a1", "a2", "a3"))


@pytest.fixture(autouse=True)
def incus(tmp_path: Path, registrations: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INCUS_CONTAINERS", "INCUS_SNAPSHOTS"):
        monkeypatch.setattr(paths, name, str(tmp_path / name))
        os.makedirs(tmp_path / name)
    with closing(sqlite3.connect(paths.NIX_DB)) as db, db:
        db.executemany("insert into ValidPaths values (?)", [(ONE,), (TWO,), (THREE,)])


class Looked(Inventory):
    async def is_current(self) -> bool:
        return True


def listed(name: str, uuid: str, sealed: str = "", *, ran: bool = True) -> ListedInstance:
    return ListedInstance(name, uuid, ours=True, ran=ran, sealed=sealed)


WEB_RAN = listed("web", WEB, WEB)
DB_RAN = listed("db", DB, DB)
WEB_COPY = listed("copy", COPY, WEB)
COPY_COPY = listed("next", NEXT, WEB)


def hold(item: ListedInstance, *held: str, name: str = "links/x") -> None:
    """The instance ran here, and has roots."""
    asyncio.run(added({f"{name}{i}": path for i, path in enumerate(held)}, *item.owner))
    direct_roots.make_directory(*item.owner, "links/")


def look(*items: ListedInstance, reason: str = "") -> str:
    """What a sidecar that has just begun does first; the reason why nothing may be dropped."""

    async def add() -> str:
        with closing(GcClient()) as gc:
            complaints = ComparisonErrors(lambda _uuid, _text: None)
            initial = InitialRoots(gc, complaints, lambda _item: False)
            return await initial.add(Looked(items, frozenset(), reason))

    return asyncio.run(add())


def held_by(item: ListedInstance) -> set[str]:
    return set(direct_roots.read(direct_roots.directory(*item.owner)).values())


def copied(item: ListedInstance) -> list[str]:
    return sorted(direct_roots.read(direct_roots.directory(*item.owner), COPIED).values())


def test_a_copy_holds_what_its_source_holds_then_and_no_more() -> None:
    hold(WEB_RAN, ONE)
    hold(WEB_RAN, TWO, name="snapshots/snap/x")
    hold(DB_RAN, THREE)
    assert look(WEB_RAN, DB_RAN, WEB_COPY) == ""
    assert copied(WEB_COPY) == [ONE, TWO]
    hold(WEB_RAN, THREE, name="links/later")
    assert look(WEB_RAN, DB_RAN, WEB_COPY) == ""
    assert copied(WEB_COPY) == [ONE, TWO], "only once"


@pytest.mark.parametrize("order", [1, -1])
def test_a_copy_of_a_copy_holds_what_both_hold(order: int) -> None:
    hold(WEB_RAN, ONE)
    hold(WEB_COPY, TWO)
    lineage.add_former_key(WEB_COPY.owner, WEB)
    direct_roots.make_directory(*WEB_COPY.owner, COPIED)
    assert look(*[WEB_RAN, WEB_COPY, COPY_COPY][::order]) == ""
    assert held_by(COPY_COPY) == {ONE, TWO}


def test_a_source_that_was_deleted_right_after_the_copy_counts() -> None:
    hold(WEB_RAN, ONE)
    hold(DB_RAN, THREE)
    assert look(DB_RAN, WEB_COPY) == ""
    assert held_by(WEB_COPY) == {ONE}
    shutil.rmtree(direct_roots.directory(*WEB_RAN.owner))
    # Nobody else knows what it was copied from.
    assert look(DB_RAN, WEB_COPY, COPY_COPY) == ""
    assert held_by(COPY_COPY) == {ONE, THREE}


def test_an_unread_instance_may_have_any_path_if_its_source_is_unknown() -> None:
    hold(WEB_RAN, ONE)
    hold(DB_RAN, THREE)
    moved, old = listed("moved", COPY, COPY), listed("old", NEXT)
    assert look(WEB_RAN, DB_RAN, moved, old) == ""
    assert held_by(moved) == held_by(old) == {ONE, THREE}


def test_a_new_instance_holds_only_what_a_source_without_a_key_may_have_given_it() -> None:
    hold(DB_RAN, THREE)
    hold(WEB_RAN, ONE)
    new, later = listed("new", COPY, ran=False), listed("later", NEXT, ran=False)
    lineage.add_former_key(WEB_RAN.owner, "")  # its first start: Incus has no key yet
    assert look(listed("web", WEB), DB_RAN, new) == ""
    assert held_by(new) == {ONE}
    assert look(WEB_RAN, DB_RAN, new) == ""
    assert look(WEB_RAN, DB_RAN, new, later) == ""
    assert held_by(later) == set()


def test_a_renamed_copy_keeps_what_it_held() -> None:
    hold(WEB_RAN, ONE)
    assert look(WEB_RAN, WEB_COPY) == ""
    renamed = listed("renamed", COPY, WEB)
    hold(WEB_RAN, TWO, name="links/later")
    assert look(WEB_RAN, renamed) == ""
    assert held_by(renamed) == {ONE}
    assert lineage.former_keys(renamed.owner) == {WEB}


def test_a_refresh_from_another_instance_adds_what_that_one_holds() -> None:
    hold(WEB_RAN, ONE)
    hold(DB_RAN, TWO)
    assert look(WEB_RAN, DB_RAN, WEB_COPY) == ""
    assert look(WEB_RAN, DB_RAN, listed("copy", COPY, DB)) == ""
    assert held_by(WEB_COPY) == {ONE, TWO}


def test_nothing_is_noted_before_all_others_have_their_roots() -> None:
    """Else the copy would be known, and what its source holds would not be held for it."""
    hold(WEB_RAN, ONE)
    place = direct_roots.directory(*DB_RAN.owner)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    Path(place).write_text("no directory")
    assert look(WEB_RAN, WEB_COPY, DB_RAN)
    assert not os.path.exists(direct_roots.directory(*WEB_COPY.owner))
    assert look(WEB_RAN, WEB_COPY, reason="Incus is at work") == "Incus is at work"
    assert not os.path.exists(direct_roots.directory(*WEB_COPY.owner))
    os.unlink(place)
    assert look(WEB_RAN, WEB_COPY, DB_RAN) == ""
    assert held_by(WEB_COPY) == {ONE}


@pytest.mark.parametrize("change", ["unmounted", "mounted over"])
def test_a_file_system_that_goes_during_the_look_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    hold(WEB_RAN, ONE)
    rootfs = Path(WEB_COPY.rootfs)
    profiles = rootfs / "nix/var/nix/profiles"
    profiles.mkdir(parents=True)
    (profiles / "system-1-link").symlink_to(ONE)
    read = generations.read

    def read_late(*args: str) -> object:
        rootfs.rename(f"{rootfs}.away")
        if change == "mounted over":
            rootfs.mkdir()
        return read(*args)

    with monkeypatch.context() as patch:
        patch.setattr(generations, "read", read_late)
        assert "its storage was mounted or unmounted" in look(WEB_RAN, WEB_COPY)
    assert not os.path.exists(direct_roots.directory(*WEB_COPY.owner))
    if rootfs.exists():
        rootfs.rmdir()
    Path(f"{rootfs}.away").rename(rootfs)
    assert look(WEB_RAN, WEB_COPY) == ""
    assert direct_roots.read(direct_roots.directory(*WEB_COPY.owner)) == {"system-1": ONE}
