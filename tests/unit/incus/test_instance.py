"""backup.yaml, as Incus writes it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inx_sidecar.incus import instance as module
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


TRICKY = st.sampled_from(
    [
        "a\nname: other\n", "a\n\n  name: other\nproject: x", "- name: other", "container:\n  x: y",
        "'", '"', ": #",
        "  indented\n more", "x" * 200 + " name: other " * 9, "\x85\u2028\t", "---\n...",
    ]
)  # fmt: skip
VALUE = st.text() | TRICKY


class Dumper(yaml.SafeDumper):
    """As Incus writes: what occurs twice is written twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


@given(
    values=st.dictionaries(VALUE, VALUE, max_size=4),
    devices=st.dictionaries(VALUE, st.dictionaries(VALUE, VALUE, max_size=2), max_size=2),
    others=st.dictionaries(
        st.from_regex("[a-z_]+", fullmatch=True), VALUE | st.lists(VALUE), max_size=3
    ),
    indent=st.sampled_from([2, 4, 8]),
    width=st.sampled_from([80, 10**6]),
    style=st.sampled_from([None, '"', "'", "|", ">"]),
)
def test_what_is_read_by_lines_is_what_the_file_says(
    values: dict[str, str], devices: dict[str, Any], others: dict[str, Any], indent: int,
    width: int, style: str | None,
) -> None:  # fmt: skip
    """Whatever values are: an operator and a container choose some of them."""
    container = others | {
        "config": values, "expanded_config": values, "expanded_devices": devices,
        "name": "web", "project": "default", "last": others,
    }  # fmt: skip
    document = {"container": container, "name": "outer", "snapshots": [container, {"name": "s"}]}
    text = yaml.dump(
        document, Dumper=Dumper, indent=indent, width=width, default_style=style, sort_keys=False,
        default_flow_style=False, allow_unicode=True, encoding="utf-8",
    )  # fmt: skip
    assert_same(text)


NEEDED = ("name", "project", "expanded_config", "expanded_devices")


def assert_same(text: bytes) -> None:
    """What is found by lines, if it is, is what the whole file says."""
    found = module._read_needed(text)
    if found is not None:
        whole = module._read_all(text)
        assert found == {key: whole[key] for key in NEEDED}


PLAIN = """container:
  description: |-
    a
      name: other

    container:
  expanded_config:
    user.a: "x\\ny"
    user.b: |-
      { pkgs, ... }:
      # not a comment
      [ "*" ]
    volatile.uuid: 01234567-89ab-cdef-0123-456789abcdef
  expanded_devices:
    eth0:
      type: nic
  name: web
  profiles:
  - default
  - name: other
  project: default
snapshots:
- name: s
  expanded_config: {}
"""


def test_what_incus_writes_is_read_by_its_lines() -> None:
    assert module._read_needed(PLAIN.encode()) is not None
    assert_same(PLAIN.encode())


# After the line of a user.* key in the middle, or at the end of the mapping `container`.
@pytest.mark.parametrize(
    "more",
    [
        "# comment", "  # comment", "      # comment", "  'name': b", '  "name": b', "  name : b",
        "  name: b", "  ? name\n  : b", "  -name: b", "  last: a\r  name: b",
        "  last: a\x85  name: b", "  last: a\u2028  name: b", "  last: a\u2029  name: b",
        "  last: 'a\n  name: b'", "  last: [a,\n  name: b]", "  <<: {name: b}", "\tname: b",
        "container:\n  name: b", "container: {name: b}", "---", "...", " name: b", "  name:b",
        "    user.c: &c x\n    user.d: *c", "  last: &a b\n  name: *a",
    ],
)  # fmt: skip
@pytest.mark.parametrize("after", ["    user.a: ", "  project: default\n"])
def test_a_file_that_incus_does_not_write_is_never_misread(more: str, after: str) -> None:
    """It is read as a whole, or its lines say the same. It may also be no YAML at all."""
    before, found, rest = PLAIN.partition(after)
    line = "" if after.endswith("\n") else rest[: rest.index("\n") + 1]
    text = f"{before}{found}{line}{more}\n{rest[len(line) :]}".encode()
    try:
        module._read_all(text)
    except yaml.YAMLError:
        return
    assert_same(text)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"container:\n", b"container:\n\n", b"container: {name: web}\n", b"name: web\n",
        b"container:\n- name: web\n", b"container:\nname: web\n", b"container:\n  name: web\n",
        b"container:\n  name: web\n  project: a\n  expanded_config: {\n  expanded_devices: {}\n",
        b"other: 1\ncontainer:\n  name: web\n",
    ],
)  # fmt: skip
def test_a_file_that_lacks_something_is_read_as_a_whole(text: bytes) -> None:
    assert module._read_needed(text) is None
