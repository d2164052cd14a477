"""The system that an update may give way to has a root as long as the update waits."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from support.direct_roots import ONE, TWO, UUID, add, present

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError
from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.instances import unconfirmed_record as record
from inx_sidecar.instances.unconfirmed import Clock, Unconfirmed
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generations import Generations
from inx_sidecar.roots.system_roots import BEFORE, unwanted_roots

pytestmark = [pytest.mark.life, pytest.mark.usefixtures("gc_paths")]

T = TypeVar("T")

WEB = Instance("web", "default", UUID, LxcFacts("web", "/nowhere", "/nowhere"), False, {})
UPDATE = Unconfirmed("digest", "new", TWO, ONE, 1, 60, 5, confirm=True)
WAITS = replace(UPDATE, generation=2).begun(Clock.now())


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "STATE", str(tmp_path / "state"))
    os.makedirs(paths.state_dir(UUID))
    return Path(paths.state_dir(UUID))


def with_gc(call: Callable[[GcClient], Awaitable[T]]) -> T:
    async def main() -> T:
        with closing(GcClient()) as gc:
            return await call(gc)

    return asyncio.run(main())


def test_the_system_from_before_is_kept_until_nothing_waits() -> None:
    with_gc(lambda gc: record.begin(gc, WEB, UPDATE))
    assert record.load(UUID) == UPDATE and present() == {BEFORE: ONE}
    # Root inside may have deleted every generation.
    assert unwanted_roots(Generations(), (), present()) == []
    record.restore(WEB, WAITS)
    assert record.load(UUID) == WAITS and present() == {BEFORE: ONE}
    record.remove(WEB)
    assert record.load(UUID) is None and present() == {}
    record.remove(WEB)


def test_an_update_without_a_way_back_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "GCROOTS", "/proc/nowhere")
    with pytest.raises(RootError, match="cannot keep"):
        with_gc(lambda gc: record.begin(gc, WEB, UPDATE))
    assert record.load(UUID) is None


def test_a_start_goes_on_to_keep_it_also_under_another_name() -> None:
    record.save(UUID, WAITS)
    renamed = replace(WEB, name="new", facts=replace(WEB.facts, lxc_name="new"))
    said = with_gc(lambda gc: record.note_boot(gc, renamed, TWO, pinned=False))
    assert said.startswith("unconfirmed: ") and present("new") == {BEFORE: ONE}


@pytest.mark.parametrize(("system", "pinned"), [(ONE, False), (TWO, True)])
def test_a_start_that_ends_the_waiting_lets_it_go(system: str, pinned: bool) -> None:
    with_gc(lambda gc: record.begin(gc, WEB, WAITS))
    assert with_gc(lambda gc: record.note_boot(gc, WEB, system, pinned=pinned)) == ""
    assert record.load(UUID) is None and present() == {}


def test_a_root_that_was_left_goes_with_the_next_start() -> None:
    add({BEFORE: ONE})
    assert with_gc(lambda gc: record.note_boot(gc, WEB, TWO, pinned=False)) == ""
    assert present() == {}
