"""An instance is known without backup.yaml; a part of that file is never taken for the whole."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.incus import last_known
from inx_sidecar.incus.instance import Instance, LxcFacts, read_instance
from inx_sidecar.incus.running_record import Running

pytestmark = pytest.mark.main

UUID = "01234567-89ab-cdef-0123-456789abcdef"
OTHER = "11234567-89ab-cdef-0123-456789abcdef"
# In the order of Incus (shared/api/instance.go).
TEXT = f"""container:
  config:
    user.inx.flake: /etc/nixos#web
  expanded_config:
    user.inx.flake: /etc/nixos#web
    user.inx.store: isolated
    volatile.uuid: {UUID}
  expanded_devices:
    eth0:
      type: nic
  name: web
  status: Running
  project: dev
"""


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LxcFacts:
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    for uuid in UUID, OTHER:
        (tmp_path / "run" / uuid).mkdir(parents=True)
    (tmp_path / "backup.yaml").write_text(TEXT)
    return LxcFacts("dev_web", f"{tmp_path}/rootfs", "/lxc.conf")


def backup(facts: LxcFacts) -> Path:
    return Path(facts.rootfs).parent / "backup.yaml"


def recorded(instance: Instance) -> None:
    Running(instance.facts, 1, 0, True, {"user.inx.store": "isolated"}).save(instance.uuid)


def test_a_part_of_backup_yaml_is_refused_or_says_the_same(facts: LxcFacts) -> None:
    whole = read_instance(facts)
    assert (whole.project, whole.name, whole.isolated) == ("dev", "web", True)
    refused = 0
    for length in range(len(TEXT)):
        backup(facts).write_text(TEXT[:length])
        try:
            assert read_instance(facts) == whole
        except InstanceError:
            refused += 1
    assert refused >= len(TEXT) - 1


@pytest.mark.parametrize("left", [None, "", TEXT[:60]], ids=["nothing", "empty", "a part"])
def test_what_was_saved_replaces_backup_yaml(facts: LxcFacts, left: str | None) -> None:
    whole = read_instance(facts)
    assert last_known.find(facts) == last_known.Known(whole)
    last_known.save(whole)
    last_known.save(replace(whole, uuid=OTHER, facts=replace(facts, lxc_name="other")))
    backup(facts).unlink() if left is None else backup(facts).write_text(left)
    known = last_known.find(facts)
    assert known.instance == whole and known.complete
    assert known.problem == last_known.problem_of(facts)
    assert str(backup(facts)) in known.problem and "make space" in known.problem


def test_the_record_of_an_older_inx_names_the_instance_and_what_is_fixed(facts: LxcFacts) -> None:
    whole = read_instance(facts)
    recorded(whole)
    backup(facts).unlink()
    known = last_known.find(facts)
    assert not known.complete
    found = known.instance
    assert (found.name, found.project, found.uuid) == ("web", "dev", UUID)
    assert (found.lxc_name, found.facts, found.isolated) == ("dev_web", facts, True)
    running = Running.read(UUID)
    assert running is not None
    plain = replace(running, facts=replace(facts, lxc_name="web"))
    assert last_known.from_record(UUID, plain).project == "default"


def test_what_cannot_be_read_helps_nobody(facts: LxcFacts, tmp_path: Path) -> None:
    backup(facts).unlink()
    (tmp_path / "run" / UUID / "instance.json").write_text(json.dumps({"name": 1}))
    (tmp_path / "run" / OTHER / "instance.json").write_text("{")
    with pytest.raises(InstanceError, match=r"cannot read .*/backup\.yaml of 'dev_web'"):
        last_known.find(facts)


def test_what_an_instance_was_remembered_with_last_counts(facts: LxcFacts) -> None:
    """An operator gave the instance another uuid after a crash had left the old directory."""
    whole = read_instance(facts)
    recorded(replace(whole, uuid=OTHER))
    last_known.save(whole)
    backup(facts).unlink()
    assert last_known.find(facts).instance.uuid == UUID
