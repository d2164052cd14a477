"""The system that was tried has a root from before it is remembered until after it is forgotten."""

import asyncio
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from support.direct_roots import ONE, TWO, UUID, present

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError
from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances import try_system
from inx_sidecar.kernel.process_times import process_start_time
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import tried_system
from inx_sidecar.roots.tried_system import TRIED, Tried

pytestmark = [pytest.mark.life, pytest.mark.usefixtures("gc_paths")]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    os.makedirs(paths.state_dir(UUID))
    os.makedirs(paths.run_dir(UUID))
    return Path(paths.state_dir(UUID))


def keep(tried: Tried) -> None:
    async def main() -> None:
        with closing(GcClient()) as gc:
            await tried_system.keep(gc, "web", UUID, tried)

    asyncio.run(main())


def test_a_system_is_kept_until_it_is_forgotten() -> None:
    assert tried_system.read(UUID) is None
    keep(Tried("first", ONE))
    assert tried_system.read(UUID) == Tried("first", ONE) and present() == {TRIED: ONE}
    keep(Tried("second", TWO))
    assert tried_system.read(UUID) == Tried("second", TWO)
    assert present() == {TRIED: TWO, f"former.{'0' * 32}": ONE}, "until a comparison"
    tried_system.forget("web", UUID)
    assert tried_system.read(UUID) is None and TRIED not in present()
    tried_system.forget("web", UUID)


def test_what_cannot_be_remembered_is_an_error_and_has_a_root(state: Path) -> None:
    (state / "tried.json.new").mkdir()
    with pytest.raises(RootError, match=r"^cannot write .*/tried\.json: Is a directory$"):
        keep(Tried("first", ONE))
    assert present() == {TRIED: ONE} and tried_system.read(UUID) is None
    tried_system.forget("web", UUID)
    assert present() == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", '{"wish": "x"}', '{"wish": "x", "system": "/etc/passwd"}',
     '{"wish": "x", "system": 7}', '{"wish": "x", "system": "/nix/store/x", "more": 1}'],
)  # fmt: skip
def test_what_is_no_record_is_none(state: Path, text: str) -> None:
    (state / "tried.json").write_text(text)
    assert tried_system.read(UUID) is None


def test_a_try_that_is_let_go_is_shown_anew_if_it_is_built_again() -> None:
    """Its store paths may be collected, and made again: the view from before lacks them."""
    facts = LxcFacts("web", "/rootfs", "/lxc.conf")
    instance = Instance("web", "default", UUID, facts, privileged=False, config={})
    running = Running(facts, os.getpid(), process_start_time(os.getpid()), True, booted=ONE)
    replace(running, visible_systems=(TWO, ONE)).save(UUID)
    for system in TWO, ONE:
        try_system._show_no_more(instance, system)
        shown = Running.load(UUID)
        assert shown is not None and shown.visible_systems == (ONE,), "what runs stays"
