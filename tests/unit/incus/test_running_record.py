"""The record of a running instance is read by the next sidecar, whatever version wrote it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from inx_sidecar.base import paths
from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.incus.running_record import Running, process_start_time

pytestmark = pytest.mark.main

UUID = "01234567-89ab-cdef-0123-456789abcdef"
FACTS = LxcFacts("web", "/rootfs", "/lxc.conf")
CONFIG = {"user.inx.store": "isolated", "user.inx.keep": "3"}


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    (tmp_path / UUID).mkdir()
    return tmp_path / UUID / "running.json"


def instance(**config: str) -> Instance:
    return Instance("web", "default", UUID, FACTS, privileged=False, config={**CONFIG, **config})


def saved() -> Running:
    running = Running.of(instance(), os.getpid(), mapped=True, claims=["10.0.0.2 p2p/"])
    running.save(UUID)
    return running


def test_what_is_saved_is_loaded() -> None:
    running = saved()
    assert Running.load(UUID) == running
    assert (running.facts, running.fixed) == (FACTS, {"user.inx.store": "isolated"})


def test_only_the_named_fields_are_amended() -> None:
    running = saved()
    Running.amend(UUID, visible_systems=("/nix/store/a",), undo={"number": 1})
    loaded = Running.load(UUID)
    assert loaded is not None
    assert (loaded.visible_systems, loaded.undo) == (("/nix/store/a",), {"number": 1})
    assert (loaded.claims, loaded.started) == (running.claims, running.started)


def test_what_an_older_version_wrote_is_loaded(record: Path) -> None:
    """Instances that run during an upgrade of inx have such a record."""
    old: dict[str, Any] = {
        "facts": {"lxc_name": "web", "rootfs": "/rootfs", "lxc_config": "/lxc.conf"},
        "pid": os.getpid(), "started": process_start_time(os.getpid()), "mapped": False,
        "fixed": {"user.inx.store": "isolated"}, "booted": "/nix/store/booted",
        "active": "/nix/store/active", "profile": "/nix/store/profile",
        "shown": ["/nix/store/booted", "/nix/store/active"], "mark": "a digest None switch",
        "text": "ready", "tried": "another digest", "undo": None, "claims": ["10.0.0.2 p2p/"],
    }  # fmt: skip
    record.write_text(json.dumps(old))
    assert Running.load(UUID) == Running(
        FACTS,
        old["pid"],
        old["started"],
        mapped=False,
        fixed={"user.inx.store": "isolated"},
        booted="/nix/store/booted",
        active="/nix/store/active",
        profile_system="/nix/store/profile",
        visible_systems=("/nix/store/booted", "/nix/store/active"),
        spec_digest="a digest None switch",
        status_text="ready",
        attempted_digest="another digest",
        undo=None,
        claims=("10.0.0.2 p2p/",),
    )
    Running.amend(UUID, attempted_digest="")
    assert "tried" not in json.loads(record.read_text()), "it is written with the new names"
    assert Running.load(UUID) is not None


@pytest.mark.parametrize("content", ["", "{", '{"facts": {}}', '{"facts": 1}'])
def test_what_is_no_record_is_none(record: Path, content: str) -> None:
    record.write_text(content)
    assert Running.load(UUID) is None


def test_a_field_of_a_later_version_makes_the_record_unknown(record: Path) -> None:
    saved()
    record.write_text(json.dumps({**json.loads(record.read_text()), "later": 1}))
    assert Running.load(UUID) is None


def test_another_process_with_the_same_number_does_not_count(record: Path) -> None:
    saved()
    record.write_text(json.dumps({**json.loads(record.read_text()), "started": 1}))
    assert Running.load(UUID) is None
    Running.amend(UUID, status_text="ready")
    assert json.loads(record.read_text())["status_text"] == "", "nothing is amended"


def test_keys_that_hold_until_the_stop_are_those_of_the_start() -> None:
    running = saved()
    now = instance(**{"user.inx.store": "shared", "user.inx.daemon": "true", "user.inx.keep": "9"})
    config = running.as_started(now).config
    assert config == {"user.inx.store": "isolated", "user.inx.keep": "9"}


def test_the_system_is_the_active_one_else_the_booted_one_else_the_profiles() -> None:
    def system(**fields: str) -> str:
        return Running(FACTS, 1, 1, mapped=True, **fields).system  # type: ignore[arg-type]

    assert system(active="a", booted="b", profile_system="p") == "a"
    assert system(booted="b", profile_system="p") == "b"
    assert system(profile_system="p") == "p"
