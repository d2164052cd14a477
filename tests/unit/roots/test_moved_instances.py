"""How long roots stay whose instance was moved to another member of the cluster."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from inx_sidecar.base import paths
from inx_sidecar.incus import api, members
from inx_sidecar.incus.arrival import KEY, RESTORED, is_dealt_with, keys_for, was_elsewhere
from inx_sidecar.incus.instance import project_and_name
from inx_sidecar.roots import direct_roots, moved_instances
from inx_sidecar.roots.moved_instances import (
    DELETED,
    UNKNOWN,
    Fate,
    MovedInstances,
    fate_in_list,
    fate_of,
)

pytestmark = pytest.mark.gc

ONE, TWO = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "12")


def instance(uuid: str = ONE, at: str = "b", told: str = "", name: str = "web") -> dict[str, Any]:
    config = {"volatile.uuid": uuid, RESTORED: "g1"} | ({KEY: told} if told else {})
    return {"name": name, "project": "default", "location": at, "config": config}


def away(name: str, at: str) -> dict[str, Any]:
    return {"name": name, "project": "default", "location": at, "config": None}


@pytest.mark.parametrize(
    ("told", "stay"),
    [
        ("", True),  # it never ran in a cluster, or the inx there is older, or there is none
        ("a g1", True),  # it has not been started since it was moved
        ("b g1", False),
        ("b g0", True),  # it was copied, or restored, and has not been started since
        ("b", True),
        ("c g1", True),
    ],
)
def test_roots_stay_until_the_member_that_has_the_instance_dealt_with_it(
    told: str, stay: bool
) -> None:
    assert fate_of(ONE, instance(told=told), "a") == Fate(stay, "b", ("default", "web"))


def test_a_key_without_a_generation_counts() -> None:
    assert keys_for("b", {}) == {KEY: "b"}
    assert is_dealt_with({"location": "b", "config": {KEY: "b"}})
    assert not is_dealt_with({"location": "", "config": {}})


def test_an_instance_that_has_just_come_back_keeps_its_roots() -> None:
    assert fate_of(ONE, instance(at="a", told="b g1"), "a") == UNKNOWN


def test_another_instance_with_the_name_does_not_count() -> None:
    assert fate_of(ONE, instance(TWO), "a") is None
    assert fate_of(ONE, away("web", "b"), "a") == UNKNOWN


def test_a_renamed_instance_is_found_by_its_uuid() -> None:
    renamed = instance(name="shop")
    assert fate_in_list(ONE, [instance(TWO), renamed], "a", "") == Fate(
        True, "b", ("default", "shop")
    )
    assert not fate_in_list(ONE, [instance(told="b g1")], "a", "").stay


def test_an_instance_that_nobody_lists_is_deleted() -> None:
    assert fate_in_list(ONE, [instance(TWO), away("x", "c")], "a", "") == DELETED
    assert fate_in_list(ONE, [instance(TWO), away("x", "c")], "a", "b") == DELETED


def test_nothing_is_dropped_that_may_be_on_a_member_that_is_away() -> None:
    assert fate_in_list(ONE, [instance(TWO), away("x", "b")], "a", "b") == Fate(True, "b")
    assert fate_in_list(ONE, None, "a", "").stay


def test_a_record_from_before_a_stay_elsewhere_does_not_count() -> None:
    assert was_elsewhere("a", {KEY: "b g1", RESTORED: "g1"})
    assert not was_elsewhere("a", {KEY: "a g1", RESTORED: "g1"})
    assert not was_elsewhere("a", {RESTORED: "g1"}), "an older inx wrote no key"
    assert not was_elsewhere("", {KEY: "b g1"}), "it is not known where this is"


def test_a_name_in_lxc_gives_project_and_name() -> None:
    assert project_and_name("web") == ("default", "web")
    assert project_and_name("my_project_web") == ("my_project", "web")


def test_the_member_is_noted_beside_the_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path))
    owner = "web", ONE
    (tmp_path / f"web.{ONE}").mkdir()
    assert moved_instances.member_of(owner) == ""
    moved_instances.mark(owner, "b")
    assert moved_instances.member_of(owner) == "b"
    assert direct_roots.read(direct_roots.directory(*owner)) == {}, "it is no root"
    moved_instances.unmark(owner)
    moved_instances.unmark(owner)
    assert moved_instances.member_of(owner) == ""


class Answers:
    """What Incus says; counts what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, member: str = "a") -> None:
        self.member = member
        self.named: dict[str, Mapping[str, Any] | api.IncusError] = {}
        self.listed: list[Mapping[str, Any]] = []
        self.asked: list[str] = []
        for module, name in ((members, "this_member"), (api, "get_instance")):
            monkeypatch.setattr(module, name, getattr(self, name))
        monkeypatch.setattr(api, "list_instances", self.list_instances)

    async def this_member(self) -> str:
        return self.member

    async def get_instance(self, _project: str, name: str) -> Mapping[str, Any]:
        self.asked.append(name)
        found = self.named.get(name, api.IncusError("not found", 404))
        if isinstance(found, api.IncusError):
            raise found
        return found

    async def list_instances(self) -> list[Mapping[str, Any]]:
        self.asked.append("*")
        return self.listed


@pytest.fixture(autouse=True)
def _roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path))


def test_nothing_is_asked_for_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, member="")
    moved = MovedInstances(lambda: None)
    assert asyncio.run(moved.fates({("web", ONE)})) == {("web", ONE): DELETED}
    assert answers.asked == []


def test_an_instance_costs_one_request_and_its_events_are_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = Answers(monkeypatch)
    answers.named["web"] = instance()
    moved = MovedInstances(lambda: None)
    assert asyncio.run(moved.fates({("web", ONE)}))["web", ONE].stay
    assert answers.asked == ["web"] and moved.awaits("default", "web")
    answers.named["web"] = instance(told="b g1")
    assert not asyncio.run(moved.fates({("web", ONE)}))["web", ONE].stay
    assert not moved.awaits("default", "web")


def test_a_member_that_does_not_answer_lets_all_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch)
    answers.named["web"] = api.IncusError("Missing event connection with target cluster member")
    moved = MovedInstances(lambda: None)
    assert asyncio.run(moved.fates({("web", ONE)}))["web", ONE].stay
    assert answers.asked == ["web"], "its members are not asked for all instances"


def test_a_member_that_is_away_delays_no_other_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch)
    monkeypatch.setattr(moved_instances, "_ANSWER_SECONDS", 0.05)
    told = answers.get_instance

    async def get_instance(project: str, name: str) -> Mapping[str, Any]:
        await asyncio.sleep(60 if name.startswith("away") else 0)
        return await told(project, name)

    monkeypatch.setattr(api, "get_instance", get_instance)
    waiting = {(f"away{number}", ONE) for number in range(20)}
    for name, uuid in waiting:
        Path(paths.GCROOTS, f"{name}.{uuid}").mkdir()
        moved_instances.mark((name, uuid), "b")
    fates = asyncio.run(MovedInstances(lambda: None).fates({*waiting, ("web", TWO)}))
    assert fates["web", TWO] == DELETED
    assert all(fates[owner].stay for owner in waiting)


def test_lists_of_all_members_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch)
    again = asyncio.Event()

    async def slow_list() -> list[Mapping[str, Any]]:
        answers.asked.append("*")
        await asyncio.sleep(0.002)
        return []

    monkeypatch.setattr(api, "list_instances", slow_list)

    async def scenario() -> None:
        moved = MovedInstances(again.set)
        assert await moved.fates({("web", ONE)}) == {("web", ONE): DELETED}
        assert (await moved.fates({("shop", TWO)}))["shop", TWO].stay
        assert answers.asked.count("*") == 1
        await asyncio.wait_for(again.wait(), 10)
        assert await moved.fates({("shop", TWO)}) == {("shop", TWO): DELETED}

    asyncio.run(scenario())
