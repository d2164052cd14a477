"""In a cluster, Incus lists what is on all members."""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from inx_sidecar.incus import api, members


def answer(
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    listed: list[dict[str, Any]] | None = None,
    pids: Iterable[int] = itertools.repeat(7),
) -> list[bool]:
    """Incus gives one of `names` after the other as its name, and `listed` for every list. Returns,
    as they come, whether only this member is asked for a list."""
    asked_alone: list[bool] = []
    each_pid = iter(pids)

    def gives(value: Callable[[], object]) -> Callable[..., Any]:
        async def answered(*, own: bool | None = None) -> object:
            if own is not None:
                asked_alone.append(own)
            return value()

        return answered

    def server() -> dict[str, Any]:
        name = names.pop(0) if len(names) > 1 else names[0]
        environment = {"server_name": name, "server_pid": next(each_pid)}
        return {"environment": {**environment, "server_clustered": bool(name)}}

    monkeypatch.setattr(api, "get_server", gives(server))
    monkeypatch.setattr(api, "list_instances", gives(lambda: listed))
    monkeypatch.setattr(api, "list_operations", gives(lambda: listed))
    return asked_alone


def at(*locations: str) -> list[dict[str, Any]]:
    return [{"name": f"i{n}", "location": where} for n, where in enumerate(locations)]


def own(monkeypatch: pytest.MonkeyPatch, names: list[str], listed: list[dict[str, Any]]) -> Any:
    answer(monkeypatch, names, listed)
    return [each["name"] for each in asyncio.run(members.list_own_instances())]


def test_without_a_cluster_all_instances_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own(monkeypatch, [""], [*at("none"), {"name": "old"}]) == ["i0", "old"]


def test_in_a_cluster_those_of_this_member_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own(monkeypatch, ["b"], at("a", "b", "c", "b")) == ["i1", "i3"]


@pytest.mark.parametrize("names", [["", "b"], ["b", "d"], [""]])
def test_nothing_is_elsewhere_only_because_this_host_was_renamed(
    monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    with pytest.raises(api.IncusError, match="another name"):
        own(monkeypatch, names, at("b"))


def test_only_this_member_is_asked_and_only_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_alone = answer(monkeypatch, ["b"], [])
    asyncio.run(members.list_own_instances())
    asyncio.run(members.is_creating())
    assert asked_alone == [True, True]
    asked_alone = answer(monkeypatch, [""], [])
    asyncio.run(members.list_own_instances())
    asyncio.run(members.is_creating())
    assert asked_alone == [False, False]


def test_a_list_of_an_incus_that_starts_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, ["b"], [], pids=[7, 8])
    with pytest.raises(api.IncusError, match="started anew"):
        asyncio.run(members.list_own_instances())


@pytest.mark.parametrize(
    ("location", "creating"), [("b", True), ("a", False), ("none", True), ("", True)]
)
def test_what_another_member_makes_is_not_made_here(
    monkeypatch: pytest.MonkeyPatch, location: str, creating: bool
) -> None:
    task = {"class": "task", "location": location}
    answer(monkeypatch, ["b"], [{**task, "description": "Creating instance"}])
    assert asyncio.run(members.is_creating()) is creating
    answer(monkeypatch, ["b"], [{**task, "description": "Stopping instance"}])
    assert not asyncio.run(members.is_creating())


def test_an_event_of_another_member_is_not_of_this_one() -> None:
    assert members.may_be_here("b", "b") and not members.may_be_here("a", "b")
    assert members.may_be_here("a", ""), "the name of this host is not known yet"
    assert members.may_be_here("", "b") and members.may_be_here("none", "b")
