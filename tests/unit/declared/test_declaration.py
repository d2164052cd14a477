"""What a host declares is read strictly, and what follows leaves alone what others set."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inx_sidecar.base.errors import ConfigError
from inx_sidecar.declared.declaration import (
    MARK,
    Change,
    Create,
    Declaration,
    Declared,
    Delete,
    Leave,
    Mark,
    Start,
    read,
)

pytestmark = pytest.mark.nixos

WEB = Declared(
    "web", start=True, config={"boot.autostart": "true"}, devices={"data": {"type": "disk"}}
)


def present(one: Declared, **more: Any) -> dict[str, Any]:
    """As Incus shows what was created of `one`."""
    new = one.new()
    shown = {key: new[key] for key in ("name", "type", "description", "profiles", "ephemeral")}
    shown |= {"config": dict(new["config"]), "devices": dict(new["devices"])}
    shown |= {"project": one.project, "architecture": "x86_64", "status": "Running", **more}
    return {"expanded_config": shown["config"], **shown}


def steps(*instances: Declared, found: tuple[dict[str, Any], ...], delete: bool = False) -> Any:
    return Declaration(instances, delete).steps(found)


def test_what_is_missing_is_created_and_started() -> None:
    assert steps(WEB, found=()) == (Create(WEB), Start(WEB))
    quiet = Declared("quiet")
    assert steps(quiet, found=()) == (Create(quiet),)


def test_what_is_as_declared_is_left_alone() -> None:
    assert steps(WEB, found=(present(WEB),)) == ()
    assert steps(WEB, found=(present(WEB, status="Stopped"),)) == (Start(WEB),)
    assert steps(WEB, found=(present(WEB, status="Frozen"),)) == ()


def test_what_others_set_stays_and_what_is_no_longer_declared_goes() -> None:
    before = Declared(
        "web",
        config={"limits.cpu": "1", "boot.autostart": "false"},
        devices={"old": {"type": "disk"}},
    )
    found = present(before)
    others = {"user.inx.generation": "3", "volatile.uuid": "x", "user.inx.status": "ready"}
    found["config"] |= others
    found["devices"]["mine"] = {"type": "proxy"}
    changed = WEB.changed(found)
    assert changed is not None
    assert changed["config"] == {
        **others,
        "boot.autostart": "true",
        MARK: WEB.mark,
    }
    assert changed["devices"] == {"mine": {"type": "proxy"}, "data": {"type": "disk"}}
    assert WEB.changed({**found, **changed}) is None, "once is enough"


@pytest.mark.parametrize(
    "change",
    [{"profiles": ["other"]}, {"ephemeral": True}, {"description": "mine"}, {"devices": {}}],
    ids=str,
)
def test_what_was_declared_and_changed_by_hand_is_put_back(change: dict[str, Any]) -> None:
    found = present(WEB, **change)
    assert steps(WEB, found=(found,)) == (Change(WEB),)


def test_what_was_made_by_hand_or_copied_is_never_touched() -> None:
    by_hand = present(WEB, config={})
    copied = present(WEB, name="copied")
    to_a_project = present(WEB, project="work")
    from_another_host = present(replace(WEB, host="another"))
    unknown = present(WEB, config=None)
    for found in by_hand, copied, to_a_project, from_another_host, unknown:
        assert Mark.of(found, WEB.host) is None
        one = Declared(found["name"], found["project"])
        (step,) = steps(one, found=(found,), delete=True)
        assert isinstance(step, Leave) and step.wrong
        assert f"incus config set {one.name} {MARK}={one.name}" in step.describe()
        assert steps(found=(found,), delete=True) == ()


def test_what_was_made_by_hand_can_be_given_over() -> None:
    given = present(WEB, config={MARK: "web", "limits.cpu": "1"}, devices={"own": {"type": "gpu"}})
    assert steps(WEB, found=(given,)) == (Change(WEB),)
    assert steps(found=(given,), delete=True) == (), "it was never ours"
    changed = WEB.changed(given)
    assert changed is not None and changed["config"]["limits.cpu"] == "1"
    assert set(changed["devices"]) == {"own", "data"}


def test_what_is_no_longer_declared_is_left_or_deleted() -> None:
    found = (present(WEB),)
    (step,) = steps(found=found)
    assert isinstance(step, Leave) and not step.wrong
    assert steps(found=found, delete=True) == (Delete(Declared("web")),)
    protected = present(WEB, expanded_config={"security.protection.delete": "true"})
    (step,) = steps(found=(protected,), delete=True)
    assert isinstance(step, Leave) and step.wrong and "security.protection.delete" in step.why


def test_the_same_name_in_another_project_is_another_instance() -> None:
    elsewhere = Declared("web", project="work")
    left, created = steps(elsewhere, found=(present(WEB),))
    assert left.describe() == "web: left as it is: it is no longer declared"
    assert created == Create(elsewhere) and created.describe() == "work/web: created"


def test_what_gives_up_a_port_comes_before_what_takes_it() -> None:
    changed, created = Declared("a", description="new"), Declared("b", start=True)
    gone = Declared("c")
    found = (present(Declared("a")), present(gone))
    assert steps(created, changed, found=found, delete=True) == (
        Delete(Declared("c")), Change(changed), Create(created), Start(created)
    )  # fmt: skip


def test_a_virtual_machine_is_not_taken_for_a_container() -> None:
    machine = present(WEB, type="virtual-machine", config={})
    (step,) = steps(WEB, found=(machine,))
    assert "virtual-machine" in step.describe()


@pytest.mark.parametrize(
    "text",
    [
        "", "webx", "{", "[]", "{}", "null", '{"name":"web"}', '{"name":"web","config":1}',
        "[" * 5000, "[" * 100_000, WEB.mark.replace("web", "vault"), WEB.mark + "x",
        WEB.mark.replace('"config":[', '"config":7,"other":['),
    ],
)  # fmt: skip
def test_a_mark_that_is_none_of_ours_is_no_mark(text: str) -> None:
    found = {"name": "web", "project": "default", "config": {MARK: text}}
    assert Mark.of(found, WEB.host) is None
    assert Mark.of(found | {"config": {MARK: WEB.mark}}, WEB.host)


def written(tmp_path: Path, document: object) -> str:
    path = tmp_path / "instances.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def one(**instance: object) -> dict[str, object]:
    return {"version": 1, "instances": [{"name": "web", **instance}]}


def test_a_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    assert read(written(tmp_path, one())) == Declaration((Declared("web"),))
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
    assert read(written(tmp_path, whole | {"dropped": "delete"})) == Declaration(
        (
            Declared(
                "web", "work", "of it", ("small", "inx"), True, True, False,
                {"a": "true", "b": "10", "c": "x"},
                {"data": {"type": "disk", "shift": "true"}},
            ),
        ),
        delete=True,
    )  # fmt: skip


WRONG: dict[str, tuple[object, str]] = {
    "no JSON": ("{", "Expecting"),
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
    "the mark": (one(config={MARK: "web"}), "is written by Incus or inx alone"),
    "a status": (one(config={"user.inx.status": "ready"}), "is written by"),
    "volatile": (one(config={"volatile.uuid": "x"}), "is written by"),
}


@pytest.mark.parametrize(("document", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_in_one_sentence(tmp_path: Path, document: object, told: str) -> None:
    path = written(tmp_path, document)
    with pytest.raises(ConfigError) as error:
        read(path)
    assert str(error.value).startswith(path) and told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read(str(tmp_path / "none.json"))
