"""An instance that cannot be taken over is tried again, and the reason is told once."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.builds import build
from inx_sidecar.incus.instance import LxcFacts
from inx_sidecar.incus.running_record import Running, process_start_time
from inx_sidecar.instances import takeover
from inx_sidecar.instances.takeover import TakeOvers, problem_of

pytestmark = pytest.mark.main

GOOD = "01234567-89ab-cdef-0123-456789abcdef"
BAD = "11234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stop_all() -> None:
        pass

    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    monkeypatch.setattr(build, "stop_all", stop_all)
    monkeypatch.setattr(takeover, "_FIRST_SECONDS", 0.001)
    pid = os.getpid()
    for uuid in GOOD, BAD:
        (tmp_path / uuid).mkdir()
        facts = LxcFacts(uuid, "/rootfs", f"{tmp_path}/lxc.conf")
        Running(facts, pid, process_start_time(pid), True).save(uuid)


class Attempts:
    """The takeover of BAD fails with each of `errors`, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.uuids: list[str] = []
        # Whether the container ends, and another one starts, right after the first attempt.
        self.restarted = False
        self.shown: list[tuple[str, str]] = []

    async def take_over(self, uuid: str, running: Running) -> None:
        self.uuids.append(uuid)
        if self.restarted and uuid == BAD:
            replace(running, started=running.started + 1).save(BAD)
        if uuid == BAD and self.errors:
            raise self.errors.pop(0)

    def show(self, uuid: str, _running: Running, problem: str) -> None:
        self.shown.append((uuid, problem))

    async def run(self) -> str:
        """Until nothing is tried any more; returns what was told after the first attempts."""
        take_overs = TakeOvers(self.take_over, self.show)
        await take_overs.begin()
        told = problem_of(BAD)
        if take_overs._task is not None:
            await take_overs._task
        await take_overs.close()
        return told


def test_a_failure_is_told_once_and_tried_until_it_is_gone() -> None:
    refusal = [UnsupportedError("no space") for _ in range(3)]
    attempts = Attempts(*refusal, OSError("input/output error"))
    assert asyncio.run(attempts.run()) == "no space"
    assert attempts.uuids == [GOOD, BAD, BAD, BAD, BAD, BAD]
    assert attempts.shown == [(BAD, "no space"), (BAD, "input/output error"), (BAD, "")]
    assert problem_of(BAD) == problem_of(GOOD) == ""


def test_an_instance_that_has_ended_is_not_tried_again() -> None:
    attempts = Attempts(*(UnsupportedError("no space") for _ in range(3)))
    attempts.restarted = True
    asyncio.run(attempts.run())
    assert attempts.uuids == [GOOD, BAD]
