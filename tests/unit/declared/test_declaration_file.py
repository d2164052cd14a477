"""The file of declared instances is read strictly; an error names what is wrong in it."""

import json
from pathlib import Path

import pytest

from inx_sidecar.base.errors import ConfigError
from inx_sidecar.declared.declaration import Declaration, DeclaredInstance
from inx_sidecar.declared.declaration_file import read_declaration
from inx_sidecar.declared.ownership import OWNERSHIP_KEY

pytestmark = pytest.mark.nixos


def written(tmp_path: Path, document: object) -> str:
    path = tmp_path / "instances.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def one(**instance: object) -> dict[str, object]:
    return {"version": 1, "instances": [{"name": "web", **instance}]}


def test_a_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    assert read_declaration(written(tmp_path, one())) == Declaration((DeclaredInstance("web"),))
    whole = one(
        project="work",
        description="of it",
        profiles=["small", "inx"],
        ephemeral=True,
        start=True,
        restart=False,
        config={"a": True, "b": 10, "c": "x", "d": ""},
        devices={"data": {"type": "disk", "shift": True}},
    )
    assert read_declaration(written(tmp_path, whole | {"dropped": "delete"})) == Declaration(
        (
            DeclaredInstance(
                "web", "work", "of it", ("small", "inx"), True, True, False,
                {"a": "true", "b": "10", "c": "x"},
                {"data": {"type": "disk", "shift": "true"}},
            ),
        ),
        delete=True,
    )  # fmt: skip


WRONG: dict[str, tuple[object, str]] = {
    "no JSON": ("{", "is no JSON: Expecting"),
    "no object": ([], "allowed: an object"),
    "no version": ({}, "version is missing"),
    "another version": ({"version": 2}, "version is '2'; allowed: 1"),
    "a truth value as version": ({"version": True}, "version is 'true'; allowed: a number"),
    "an unknown key": ({"version": 1, "instance": []}, "unknown 'instance'; known are dropped"),
    "dropped": ({"version": 1, "dropped": "purge"}, "allowed: keep or delete"),
    "instances": ({"version": 1, "instances": {}}, "allowed: a list"),
    "an instance": ({"version": 1, "instances": ["web"]}, "instance 0 is '\"web\"'"),
    "no name": ({"version": 1, "instances": [{}]}, "name is missing"),
    "a name": ({"version": 1, "instances": [{"name": "../x"}]}, "allowed: letters"),
    "a name that ends badly": ({"version": 1, "instances": [{"name": "a-"}]}, "between them, '-'"),
    "a long name": ({"version": 1, "instances": [{"name": "x" * 64}]}, "at most 63"),
    "twice": ({"version": 1, "instances": [{"name": "a"}] * 2}, "'a' is declared twice"),
    "a project": (one(project="a/b"), "allowed: the name of a project"),
    "a host": (one(host="x"), "unknown 'host'"),
    "a profile": (one(profiles=[1]), "names of profiles"),
    "a truth value": (one(start="yes"), "start is '\"yes\"'; allowed: true or false"),
    "a value": (one(config={"a": []}), "config: 'a' is '[]'; allowed: a text"),
    "a fraction": (one(config={"a": 1.5}), "allowed: a text"),
    "a device": (one(devices={"a": "disk"}), "allowed: an object"),
    "a value of a device": (one(devices={"a": {"b": None}}), "allowed: a text"),
    "an option": (one(autoStart=True), "unknown 'autoStart'"),
    "the ownership": (one(config={OWNERSHIP_KEY: "web"}), "is written by Incus or inx alone"),
    "a status": (one(config={"user.inx.status": "ready"}), "is written by"),
    "volatile": (one(config={"volatile.uuid": "x"}), "is written by"),
}


@pytest.mark.parametrize(("document", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_in_one_sentence(
    tmp_path: Path, document: object, message: str
) -> None:
    path = written(tmp_path, document)
    with pytest.raises(ConfigError) as error:
        read_declaration(path)
    assert str(error.value).startswith(path) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as missing:
        read_declaration(f"{tmp_path}/none.json")
    assert str(missing.value) == (
        f"there is no {tmp_path}/none.json, the file that declares instances; write one, or name "
        "another file: 'inx-sidecar converge FILE'"
    )
    with pytest.raises(ConfigError) as directory:
        read_declaration(str(tmp_path))
    assert str(directory.value) == f"cannot read {tmp_path}: Is a directory"
