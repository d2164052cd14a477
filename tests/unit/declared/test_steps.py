"""Steps make the instances as declared, in an order in which each can succeed."""

from dataclasses import replace
from typing import Any

import pytest

from inx_sidecar.declared.declaration import Declaration, DeclaredInstance
from inx_sidecar.declared.ownership import OWNERSHIP_KEY, Ownership
from inx_sidecar.declared.steps import Change, Create, Delete, Leave, Start, plan_steps
from unit.declared.examples import WEB, present

pytestmark = pytest.mark.nixos


def steps(
    *instances: DeclaredInstance, found: tuple[dict[str, Any], ...], delete: bool = False
) -> Any:
    return plan_steps(Declaration(instances, delete), found)


def test_what_is_missing_is_created_and_started() -> None:
    assert steps(WEB, found=()) == (Create(WEB), Start(WEB))
    quiet = DeclaredInstance("quiet")
    assert steps(quiet, found=()) == (Create(quiet),)


def test_what_is_as_declared_is_left_alone() -> None:
    assert steps(WEB, found=(present(WEB),)) == ()
    assert steps(WEB, found=(present(WEB, status="Stopped"),)) == (Start(WEB),)
    assert steps(WEB, found=(present(WEB, status="Frozen"),)) == ()


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
        assert Ownership.of(found, WEB.host) is None
        one = DeclaredInstance(found["name"], found["project"])
        (step,) = steps(one, found=(found,), delete=True)
        assert isinstance(step, Leave) and step.wrong
        assert f"incus config set {one.name} {OWNERSHIP_KEY}={one.name}" in step.describe()
        assert steps(found=(found,), delete=True) == ()


def test_what_was_made_by_hand_can_be_given_over() -> None:
    given = present(
        WEB, config={OWNERSHIP_KEY: "web", "limits.cpu": "1"}, devices={"own": {"type": "gpu"}}
    )
    assert steps(WEB, found=(given,)) == (Change(WEB),)
    assert steps(found=(given,), delete=True) == (), "it was never ours"
    changed = WEB.update_request(given)
    assert changed is not None and changed["config"]["limits.cpu"] == "1"
    assert set(changed["devices"]) == {"own", "data"}


def test_what_is_no_longer_declared_is_left_or_deleted() -> None:
    found = (present(WEB),)
    (step,) = steps(found=found)
    assert isinstance(step, Leave) and not step.wrong
    assert steps(found=found, delete=True) == (Delete(DeclaredInstance("web")),)
    protected = present(WEB, expanded_config={"security.protection.delete": "true"})
    (step,) = steps(found=(protected,), delete=True)
    assert isinstance(step, Leave) and step.wrong and "security.protection.delete" in step.why


def test_the_same_name_in_another_project_is_another_instance() -> None:
    elsewhere = DeclaredInstance("web", project="work")
    left, created = steps(elsewhere, found=(present(WEB),))
    assert left.describe() == "web: left as it is: it is no longer declared"
    assert created == Create(elsewhere) and created.describe() == "work/web: created"


def test_what_gives_up_a_port_comes_before_what_takes_it() -> None:
    changed, created = DeclaredInstance("a", description="new"), DeclaredInstance("b", start=True)
    gone = DeclaredInstance("c")
    found = (present(DeclaredInstance("a")), present(gone))
    assert steps(created, changed, found=found, delete=True) == (
        Delete(DeclaredInstance("c")), Change(changed), Create(created), Start(created)
    )  # fmt: skip


def test_a_virtual_machine_is_not_taken_for_a_container() -> None:
    machine = present(WEB, type="virtual-machine", config={})
    (step,) = steps(WEB, found=(machine,))
    assert "virtual-machine" in step.describe()
