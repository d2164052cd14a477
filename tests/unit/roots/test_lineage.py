"""Whose roots an instance gets that has not run here and whose storage is not mounted."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.roots import direct_roots, lineage
from inx_sidecar.roots.inventory import Inventory, ListedInstance, Owner
from inx_sidecar.roots.lineage import Relative, needs_roots, relatives_of

pytestmark = pytest.mark.gc

WEB, COPY, DB, NEW = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "1234")
OF_WEB: Owner = ("web", WEB)
OF_COPY: Owner = ("copy", COPY)
OF_DB: Owner = ("db", DB)


def relative(owner: Owner, *keys: str, listed: bool = True) -> Relative:
    return Relative(owner, frozenset({owner[1], *keys}), listed)


@pytest.mark.parametrize(
    ("key", "relatives", "expected"),
    [
        (WEB, [relative(OF_WEB), relative(OF_DB)], {OF_WEB}),
        # A copy of a copy that never started names the first source.
        (WEB, [relative(OF_WEB), relative(OF_COPY, WEB), relative(OF_DB)], {OF_WEB, OF_COPY}),
        # It may have been copied from what was deleted right after.
        (WEB, [relative(OF_WEB), relative(OF_DB, listed=False)], {OF_WEB, OF_DB}),
        (WEB, [relative(OF_WEB, listed=False)], {OF_WEB}),
        # Made from what is not here any more, or never was.
        (WEB, [relative(OF_COPY, WEB), relative(OF_DB)], None),
        (WEB, [relative(OF_DB)], None),
        # Moved here, imported, or copied from an instance of an older inx.
        (NEW, [relative(OF_WEB), relative(("other", NEW))], None),
        ("", [relative(OF_WEB)], None),
    ],
)
def test_an_instance_gets_the_roots_of_its_relatives(
    key: str, relatives: list[Relative], expected: set[Owner] | None
) -> None:
    assert relatives_of(key, NEW, relatives, may_have_files=True) == expected


def test_an_empty_instance_gets_the_roots_of_instances_whose_key_incus_may_not_have() -> None:
    relatives = [relative(OF_WEB), relative(OF_DB, ""), relative(OF_COPY, listed=False)]
    assert relatives_of("", NEW, relatives, may_have_files=False) == {OF_DB}


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path))
    monkeypatch.setattr(paths, "INCUS_SNAPSHOTS", str(tmp_path / "snapshots"))
    yield tmp_path


class Looked(Inventory):
    async def is_current(self) -> bool:
        return not self.reason


def listed(name: str, uuid: str, sealed: str) -> ListedInstance:
    return ListedInstance(name, uuid, ours=True, ran=True, sealed=sealed)


def test_the_roots_of_the_source_are_taken_once_for_each_source(roots: Path) -> None:
    copy = listed("copy", COPY, WEB)
    assert needs_roots(copy, fresh=True)
    assert needs_roots(copy, fresh=False), "it was refreshed from web"
    direct_roots.make_directory(*OF_COPY, lineage.COPIED)
    lineage.add_former_key(OF_COPY, WEB)
    assert not needs_roots(copy, fresh=False)
    assert needs_roots(listed("copy", COPY, DB), fresh=False), "it was refreshed from db"
    assert not needs_roots(listed("copy", COPY, COPY), fresh=False), "it has run"
    assert not needs_roots(listed("copy", COPY, ""), fresh=False)


def test_a_former_key_is_forgotten_when_no_copy_can_have_it_any_more(roots: Path) -> None:
    lineage.add_former_key(OF_WEB, "")
    lineage.add_former_key(OF_WEB, DB)
    assert lineage.former_keys(OF_WEB) == {"", DB}

    def forget(sealed: str, *, current: bool = True) -> set[str]:
        inventory = Looked((listed("web", WEB, sealed),), frozenset(), "" if current else "new")
        asyncio.run(lineage.forget_former_keys(inventory))
        return lineage.former_keys(OF_WEB)

    assert forget("") and forget(DB), "Incus does not have the key"
    snapshot = roots / "snapshots" / "web" / "snap"
    snapshot.mkdir(parents=True)
    assert forget(WEB), "a copy of the snapshot may have it"
    snapshot.rmdir()
    assert forget(WEB, current=False), "a copy is being made"
    assert forget(WEB) == set()
