"""`starting` ends when the system is up, or is too late, and never hides another status."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from inotify_simple import INotify

from inx_sidecar.base import paths
from inx_sidecar.incus import api
from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.incus.status_keys import Status
from inx_sidecar.instances import boot_status
from inx_sidecar.instances.boot_status import BootStatus
from inx_sidecar.instances.system_look import Look
from inx_sidecar.instances.system_watch import SystemWatch
from inx_sidecar.kernel.process_times import process_start_time

pytestmark = pytest.mark.life

FACTS: Final = LxcFacts("web", "/rootfs", "/lxc.conf")
WEB: Final = Instance("web", "default", "uuid", FACTS, privileged=False, config={})


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, str]]:
    """What Incus is given. An instance boots, with this process as its init."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    (tmp_path / "uuid").mkdir()
    init = os.getpid()
    Running(FACTS, init, process_start_time(init), True, status_text="ready", update="2",
            boot_text="starting").save("uuid")  # fmt: skip
    found: list[Mapping[str, str]] = []

    async def set_config(_project: str, _name: str, _uuid: str, config: Mapping[str, str]) -> None:
        found.append(config)

    monkeypatch.setattr(api, "set_config", set_config)
    return found


async def look(_: Instance, _inotify: INotify | None) -> Look:
    """Without an event, the system is not up."""
    return Look(changed=False, booted=False)


def texts(written: list[Mapping[str, str]]) -> list[tuple[str, str | None]]:
    return [(one["user.inx.status"], one.get("user.inx.status.update")) for one in written]


async def settle(statuses: StatusWriter) -> None:
    await asyncio.gather(*statuses._tasks.values())


def test_a_system_that_is_up_soon_gets_one_status(written: list[Mapping[str, str]]) -> None:
    async def main() -> None:
        statuses = StatusWriter()
        boots = BootStatus(statuses, SystemWatch(look))
        statuses.publish(WEB, Status("starting", "/system", 1))
        boots.begin(WEB)
        boots.is_up(WEB)
        await settle(statuses)
        boots.is_up(WEB)
        await settle(statuses)
        assert boots._timers == {}
        await boots.close()

    asyncio.run(main())
    assert texts(written) == [("ready", "2")]
    assert written[0]["user.inx.status.system"] == "/system"


def test_a_system_that_is_late_is_told_and_may_come_up_later(
    written: list[Mapping[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot_status, "_SECONDS", 1.0)

    async def main() -> None:
        statuses = StatusWriter()
        boots = BootStatus(statuses, SystemWatch(look))
        statuses.publish(WEB, Status("starting", "/system", 1))
        boots.begin(WEB)
        while len(written) < 2:
            await asyncio.sleep(0.01)
        await settle(statuses)
        boots.begin(WEB)
        boots.is_up(WEB)
        await settle(statuses)
        await boots.close()

    asyncio.run(main())
    (first, last), late = (texts(written)[0], texts(written)[2]), texts(written)[1]
    assert (first, last) == (("starting", None), ("ready", "2"))
    assert late[0].startswith("failed: its system is not up after 1 s, as /run/current-system")
    assert late[1] == "2"


def test_a_build_meanwhile_goes_on_to_be_told(written: list[Mapping[str, str]]) -> None:
    async def main() -> None:
        statuses = StatusWriter()
        boots = BootStatus(statuses, SystemWatch(look))
        statuses.publish(WEB, Status("building 1/2, x", "/system", 1))
        boots.begin(WEB)
        boots.is_up(WEB)
        await settle(statuses)
        await boots.close()

    asyncio.run(main())
    assert texts(written) == [("building 1/2, x", None)]
