"""A status has one line for each key, and shows an isolated container no other store path."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.incus import api, saved_status, status
from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.incus.request import IncusError
from inx_sidecar.incus.status import StatusWriter, next_retry
from inx_sidecar.incus.status_keys import STATE_VERSION, Status, visible_config

pytestmark = pytest.mark.life

SYSTEM = f"/nix/store/{'0' * 32}-nixos-system-web"

FACTS = LxcFacts("web", "/rootfs", "/lxc.conf")
WEB = Instance("web", "default", "uuid", FACTS, privileged=False, config={})


def test_a_status_sets_all_keys() -> None:
    assert Status("ready", SYSTEM, 3).config() == {
        "user.inx.status": "ready",
        "user.inx.status.system": SYSTEM,
        "user.inx.status.generation": "3",
    }
    assert set(Status("building").config().values()) == {"building", ""}
    assert Status("ready", changes="").config()["user.inx.status.changes"] == ""


def test_a_text_is_one_short_line() -> None:
    text = Status("failed: one\ntwo\x1b[31m " + "word " * 300).config()["user.inx.status"]
    assert text.startswith("failed: one two?[31m word") and 700 < len(text) <= 800


def test_a_note_is_added_in_parentheses() -> None:
    config = Status("ready", SYSTEM, 3).config()
    assert visible_config(config, "", isolated=False) == config
    noted = visible_config(config, "store\nowned by nobody", isolated=False)
    assert noted == config | {"user.inx.status": "ready (store owned by nobody)"}


def test_an_isolated_container_reads_no_store_path_in_the_text() -> None:
    config = Status(f"failed: no {SYSTEM}", SYSTEM).config()
    visible = visible_config(config, f"kept {SYSTEM}", isolated=True, name="p_web")
    assert visible["user.inx.status"] == (
        "failed: no /nix/store/... (kept /nix/store/...); 'journalctl INX_INSTANCE=p_web' has the "
        "names"
    )
    assert visible["user.inx.status.system"] == SYSTEM, "its own system it knows"
    assert SYSTEM in visible_config(config, "", isolated=False)["user.inx.status"]
    config = Status("failed: nothing is hidden").config()
    assert visible_config(config, "", isolated=True, name="web") == config
    ready = visible_config(Status(f"ready {SYSTEM}").config(), "", isolated=True, name="web")
    assert ready["user.inx.status"] == "ready /nix/store/..."


def test_a_status_is_saved_for_the_next_sidecar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    config = Status("building").config()
    saved_status.save("uuid", config)
    assert saved_status.load("uuid") is None, "a refused start has no directory"
    (tmp_path / "uuid").mkdir()
    saved_status.save("uuid", config)
    assert saved_status.load("uuid") == config
    (tmp_path / "uuid/status.json").write_text("{")
    assert saved_status.load("uuid") is None


def test_another_system_changes_the_status_that_was_saved_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    (tmp_path / "uuid").mkdir()
    instance = WEB
    written: list[Mapping[str, str]] = []

    async def set_config(_project: str, _name: str, _uuid: str, config: Mapping[str, str]) -> None:
        written.append(config)

    monkeypatch.setattr(api, "set_config", set_config)

    async def main() -> None:
        statuses = StatusWriter()
        assert not statuses.set_system(instance, Status("", SYSTEM, 1)), "nothing was saved"
        await statuses.publish_and_wait(instance, Status("building", SYSTEM, 1, sealed=True))
        assert not statuses.set_system(instance, Status("", SYSTEM, 1))
        assert statuses.set_system(instance, Status("", f"{SYSTEM}-2", None))
        await asyncio.gather(*statuses._tasks.values())

    asyncio.run(main())
    both = [{key.removeprefix("user.inx."): value for key, value in one.items()} for one in written]
    assert both == [
        {"status": "building", "status.system": SYSTEM, "status.generation": "1", "sealed": "uuid"},
        {
            "status": "building", "status.system": f"{SYSTEM}-2", "status.generation": "",
            "sealed": "uuid",
        },
    ]  # fmt: skip


def test_refused_writes_are_repeated_ever_more_slowly_and_never_given_up() -> None:
    retry, waited, attempts = 0.1, 0.0, 0
    while waited < 24 * 3600:
        waited, attempts = waited + retry, attempts + 1
        retry = next_retry(retry, waited)
        assert retry <= 5 or waited > 60, "an instance that starts has its status soon"
    assert retry == 300 and attempts < 350


def test_a_newer_status_does_not_wait_for_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = WEB
    texts: list[str] = []

    async def set_config(_project: str, _name: str, _uuid: str, config: Mapping[str, str]) -> None:
        texts.append(config["user.inx.status"])
        if texts[-1] == "first":
            raise IncusError("no space left on device", 500)

    monkeypatch.setattr(api, "set_config", set_config)
    monkeypatch.setattr(status, "_FIRST_RETRY_SECONDS", 300.0)

    async def main() -> None:
        statuses = StatusWriter()
        statuses.publish(instance, Status("first"))
        while not texts:
            await asyncio.sleep(0)
        await statuses.publish_and_wait(instance, Status("second"))

    asyncio.run(main())
    assert texts == ["first", "second"]


def test_a_status_that_incus_did_not_take_is_written_when_it_is_published_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instance = WEB
    texts: list[str] = []
    refusals = [IncusError("there is no such instance", 404)]

    async def set_config(_project: str, _name: str, _uuid: str, config: Mapping[str, str]) -> None:
        texts.append(config["user.inx.status"])
        if refusals:
            raise refusals.pop()

    monkeypatch.setattr(api, "set_config", set_config)

    async def main() -> None:
        statuses = StatusWriter()
        for _ in range(3):
            await statuses.publish_and_wait(instance, Status("ready"))

    asyncio.run(main())
    assert texts == ["ready", "ready"], "again after the refusal, and not after the success"


def test_a_key_that_a_newer_status_lacks_is_written_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A build that begins at once does not hide which update was dealt with before."""
    instance = WEB
    written: list[Mapping[str, str]] = []
    refusals = [IncusError("busy", 400)]

    async def set_config(_project: str, _name: str, _uuid: str, config: Mapping[str, str]) -> None:
        if refusals:
            statuses.publish(instance, Status("building"))
            raise refusals.pop()
        written.append(config)

    monkeypatch.setattr(api, "set_config", set_config)
    statuses = StatusWriter()

    async def main() -> None:
        statuses.publish(instance, Status("starting"))
        statuses.publish(instance, Status("ready", SYSTEM, 1, sealed=True, update="1"))
        await asyncio.gather(*statuses._tasks.values())

    asyncio.run(main())
    [one] = written
    assert (one["user.inx.status"], one["user.inx.status.update"]) == ("building", "1")
    assert one["user.inx.sealed"] == "uuid"


def test_what_changed_is_written_with_the_status_and_not_lost_by_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    (tmp_path / "uuid").mkdir()
    instance = WEB
    written: list[dict[str, str]] = []
    refusals = [IncusError("it is busy", 500)]

    async def set_config(_project: str, _name: str, _uuid: str, config: dict[str, str]) -> None:
        written.append({key.removeprefix("user.inx."): value for key, value in config.items()})
        if refusals:
            raise refusals.pop()

    monkeypatch.setattr(api, "set_config", set_config)

    async def main() -> None:
        statuses = StatusWriter()
        statuses.publish(instance, Status("ready", changes="a 1 -> 2"))
        statuses.publish(instance, Status("ready (noted)"))  # before the first one is written
        while not written:
            await asyncio.sleep(0)
        await statuses.publish_and_wait(instance, Status("ready"))  # after it was refused

    asyncio.run(main())
    assert [(at["status"], at["status.changes"]) for at in written] == [
        ("ready (noted)", "a 1 -> 2"),
        ("ready", "a 1 -> 2"),
    ]
    saved = saved_status.load("uuid")
    assert saved is not None and saved["user.inx.status.changes"] == "a 1 -> 2"


def test_what_a_build_keeps_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator may correct it: a status that is written again does not undo this."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    monkeypatch.setattr(status, "_DELAY_SECONDS", 0.0)
    (tmp_path / "uuid").mkdir()
    written: list[Mapping[str, str]] = []
    refusals = [IncusError("it is busy", 500)]

    async def set_config(_project: str, _name: str, _uuid: str, config: Mapping[str, str]) -> None:
        if refusals:
            raise refusals.pop()
        written.append(config)

    monkeypatch.setattr(api, "set_config", set_config)

    def saved_version() -> str | None:
        return (saved_status.load("uuid") or {}).get(STATE_VERSION)

    async def main() -> None:
        statuses = StatusWriter()
        statuses.save_for_successor(WEB, Status("building"))
        statuses.keep(WEB, {STATE_VERSION: "26.05"})
        while refusals:
            assert saved_version() == "26.05"
            await asyncio.sleep(0)
        statuses.publish(WEB, Status("ready"))
        assert saved_version() == "26.05", "the next sidecar may have to write it"
        await asyncio.gather(*statuses._tasks.values())
        assert saved_version() is None

        # A sidecar that died after Incus took the keys did not drop them.
        same = replace(WEB, config={STATE_VERSION: "26.05", **Status("ready").config()})
        saved_status.save("uuid", {STATE_VERSION: "26.05", **Status("ready").config()})
        second = StatusWriter()
        second.set_known_status(same)
        second.publish_saved(same)
        assert saved_version() is None

        corrected = replace(WEB, config={STATE_VERSION: "25.11"})
        third = StatusWriter()
        third.set_known_status(corrected)
        third.publish_saved(corrected)
        await asyncio.gather(*third._tasks.values())

    asyncio.run(main())
    assert [config.get(STATE_VERSION) for config in written] == ["26.05", None]


def test_nothing_is_written_while_an_instance_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that meets a start which is refused delays Incus for ten seconds."""
    monkeypatch.setattr(status, "_PAUSE_SECONDS", 0.3)
    instance = WEB
    written: list[str] = []

    async def set_config(_project: str, _name: str, _uuid: str, config: Mapping[str, str]) -> None:
        written.append(config["user.inx.status"])

    monkeypatch.setattr(api, "set_config", set_config)

    async def main() -> None:
        statuses = StatusWriter()
        statuses.amend_text(instance, "stopped: its configuration was changed")
        statuses.pause_writes(instance)
        await asyncio.sleep(0.2)
        statuses.pause_writes(instance)  # the restart that follows begins a pause of its own
        await asyncio.sleep(0.25)
        assert written == []
        statuses.publish(instance, Status("failed: refused"))
        statuses.resume_writes(instance)
        await asyncio.gather(*statuses._tasks.values())
        assert written == ["failed: refused"]

    asyncio.run(main())
