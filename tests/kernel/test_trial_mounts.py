"""The trials of a check succeed where instances can start, and say what is wrong elsewhere."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from support.containers import apart
from support.mounts import mount_table

from inx_sidecar.base import paths
from inx_sidecar.base.errors import MountError
from inx_sidecar.container.trial_mounts import try_isolated_store, try_own_store
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, MS_PRIVATE, MS_REC, mount, unshare
from kernel.test_overlay import overlay
from kernel.views import make_store

pytestmark = [pytest.mark.isolated, pytest.mark.usefixtures("run_directory")]

TRIALS = [try_isolated_store, try_own_store]


def tried(trial: Callable[[], forked.Result]) -> None:
    asyncio.run(forked.run_in_child(trial, "mounting"))


@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize("entries", [0, 1, 2, 20])
def test_a_store_on_a_usual_file_system_is_good(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trial: Callable[[], forked.Result],
    entries: int,
) -> None:
    store = tmp_path / "store"
    if entries > 2:
        make_store(store)
    else:
        store.mkdir()
        for number in range(entries):
            (store / str(number)).mkdir()
    monkeypatch.setattr(paths, "STORE", str(store))
    before = mount_table()
    tried(trial)
    assert mount_table() == before


def test_no_writable_overlay_is_over_a_store_on_an_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "store")

    def host() -> str:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        merged = overlay(tmp_path / "one", tmp_path / "store")
        monkeypatch.setattr(paths, "STORE", str(merged))
        tried(try_isolated_store)
        try:
            tried(try_own_store)
        except MountError as error:
            return str(error)
        return ""

    assert "Invalid argument" in apart(host)
