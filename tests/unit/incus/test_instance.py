"""backup.yaml, as Incus writes it."""

from pathlib import Path

import pytest

from inx_sidecar.incus.instance import Instance, LxcFacts, read_instance

pytestmark = pytest.mark.main

TEXT = """container:
  name: web
  project: {project}
  expanded_config:
    security.privileged: {privileged}
    user.foo: =
    user.bar: no
    user.inx.keep: 3
    user.inx.flake: "/etc/a\\nb"
    volatile.uuid: 01234567-89ab-cdef-0123-456789abcdef
"""


def read(
    tmp_path: Path, project: str = "default", privileged: str = "", lxc_name: str = "web"
) -> Instance:
    text = TEXT.format(project=project, privileged=privileged)
    (tmp_path / "backup.yaml").write_text(text)
    return read_instance(LxcFacts(lxc_name, f"{tmp_path}/rootfs", "/run/lxc.conf"))


def test_every_value_is_text(tmp_path: Path) -> None:
    """YAML 1.1 would read numbers and booleans, and refuse "="."""
    config = read(tmp_path).config
    assert config["user.foo"] == "=" and config["user.bar"] == "no"
    assert config["user.inx.keep"] == "3" and config["user.inx.flake"] == "/etc/a\nb"


@pytest.mark.parametrize(
    ("text", "privileged"),
    [
        *((text, True) for text in ("true", '"TRUE"', "Yes", "1", "on")),
        *((text, False) for text in ("false", '"0"', '""')),
    ],
)
def test_truth_as_incus_spells_it(tmp_path: Path, text: str, privileged: bool) -> None:
    assert read(tmp_path, privileged=text).privileged is privileged


def test_lxc_names_the_project_too(tmp_path: Path) -> None:
    assert read(tmp_path).lxc_name == "web"
    assert read(tmp_path, project="dev", lxc_name="dev_web").lxc_name == "dev_web"
