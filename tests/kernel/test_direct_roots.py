"""Direct roots of an instance on the host: they are added before others are dropped."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from support.collector import locked
from support.direct_roots import ONE, TWO, UUID, add, added, present

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError
from inx_sidecar.roots import direct_roots

pytestmark = [pytest.mark.main, pytest.mark.usefixtures("gc_paths")]


def test_wanted_roots_are_made_and_new_ones_are_returned() -> None:
    wanted = {"system-1": ONE, "booted-system": ONE}
    assert add(wanted) == wanted
    assert present() == wanted
    assert add(wanted) == {}
    assert add({"system-1": ONE, "system-2": TWO}) == {"system-2": TWO}
    assert present() == {**wanted, "system-2": TWO}, "no root is dropped"


def test_the_directory_of_roots_has_the_name_of_the_instance() -> None:
    add({"system-1": ONE, "links/one": ONE})
    assert os.listdir(paths.GCROOTS) == [f"web.{UUID}"]
    assert os.readlink(f"{paths.GCROOTS}/web.{UUID}/system-1") == ONE
    assert os.readlink(f"{paths.GCROOTS}/web.{UUID}/links/one") == ONE
    assert present() == {"system-1": ONE, "links/one": ONE}


def test_without_wanted_roots_no_directory_is_made() -> None:
    assert add({}) == {}
    assert not os.path.exists(paths.GCROOTS)


@pytest.mark.parametrize("name", ["booted-system", "links/some", "snapshots/before/some"])
def test_the_former_path_of_a_root_gets_a_root_of_its_own(name: str) -> None:
    former = f"former.{'0' * 31}1"
    old = f"/nix/store/{'0' * 31}1-old"
    add({name: old})
    assert add({name: TWO}) == {name: TWO}
    assert present() == {name: TWO, former: old}
    assert add({name: old}) == {name: old}, "and back again"
    assert present() == {name: old, former: old, f"former.{'0' * 32}": TWO}


def test_the_former_path_of_a_root_has_a_root_at_each_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between any two changes of the directory, the former path has a root."""
    add({"system-1": ONE})
    held: list[set[str]] = []
    rename, symlink = os.rename, os.symlink

    def watched(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            held.append(set(present().values()))
            function(*args, **kwargs)
            held.append(set(present().values()))

        return call

    monkeypatch.setattr(os, "rename", watched(rename))
    monkeypatch.setattr(os, "symlink", watched(symlink))
    add({"system-1": TWO})
    assert held and all(ONE in store_paths for store_paths in held)


def test_without_a_collection_roots_are_added_at_once() -> None:
    add({"system-1": ONE})
    with locked():
        pass
    add({"system-1": TWO})
    assert present()["system-1"] == TWO


def test_an_unfinished_link_of_a_crash_is_read_and_can_be_dropped() -> None:
    add({"system-1": ONE})
    os.symlink(TWO, f"{paths.GCROOTS}/web.{UUID}/.0123456789abcdef")
    assert present() == {"system-1": ONE, ".0123456789abcdef": TWO}
    direct_roots.drop("web", UUID, [".0123456789abcdef"])
    assert present() == {"system-1": ONE}


def test_only_the_named_roots_are_dropped() -> None:
    add({"system-1": ONE, "system-2": TWO, "links/one": ONE, "links/two": TWO})
    direct_roots.drop("web", UUID, ["system-2", "links/one"])
    assert present() == {"system-1": ONE, "links/two": TWO}
    direct_roots.drop("web", UUID, [])
    assert present() == {"system-1": ONE, "links/two": TWO}


def test_the_error_names_the_root_that_cannot_be_dropped() -> None:
    add({"system-1": ONE, "links/one": ONE})
    with pytest.raises(RootError, match=r"cannot drop the root links of 'web' in .*directory"):
        direct_roots.drop("web", UUID, ["system-1", "links"])
    assert present() == {"links/one": ONE}


def test_only_the_roots_of_one_instance_are_removed() -> None:
    other = UUID[::-1]
    for name, uuid in (("web", UUID), ("web", other), ("old", UUID)):
        asyncio.run(added({"system-1": ONE, "links/one": ONE}, name, uuid))
    asyncio.run(direct_roots.remove("web", UUID))
    assert direct_roots.owners() == {("web", other), ("old", UUID)}
    assert direct_roots.read(direct_roots.directory("web", other)) == {
        "system-1": ONE,
        "links/one": ONE,
    }
    asyncio.run(direct_roots.remove("web", UUID))
    asyncio.run(direct_roots.remove("none", UUID))


def test_one_directory_of_roots_is_removed_alone() -> None:
    add({"system-1": ONE, "snapshots/one/x": ONE, "snapshots/one.1/x": ONE, "links/one": ONE})
    asyncio.run(direct_roots.remove("web", UUID, "snapshots/one"))
    assert present() == {"system-1": ONE, "snapshots/one.1/x": ONE, "links/one": ONE}


def test_a_removal_follows_no_link(tmp_path: Path) -> None:
    """Only host root writes there. If host root made such a link by mistake, only the link goes."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    add({"system-1": ONE})
    os.symlink(tmp_path / "precious", f"{paths.GCROOTS}/web.{UUID}/directory")
    asyncio.run(direct_roots.remove("web", UUID))
    assert (tmp_path / "precious/file").exists() and direct_roots.owners() == set()


def test_the_error_names_the_path_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "gcroots").write_text("a file")
    with pytest.raises(RootError, match=f"cannot keep {ONE} for 'web' in .*Not a directory"):
        add({"system-1": ONE})


def test_a_directory_in_the_place_of_a_root_is_an_error() -> None:
    os.makedirs(f"{paths.GCROOTS}/web.{UUID}/system-1/x")
    with pytest.raises(RootError, match=f"cannot keep {ONE} for 'web' in "):
        add({"system-1": ONE})


def test_an_error_leaves_no_unfinished_link() -> None:
    os.makedirs(f"{paths.GCROOTS}/web.{UUID}/links/one/x")
    with pytest.raises(RootError):
        add({"links/one": ONE})
    assert present() == {}
