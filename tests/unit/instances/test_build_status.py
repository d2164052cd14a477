"""However often a build tells how far it is, the status is written each two seconds at most."""

import asyncio

import pytest

from inx_sidecar.instances import build_status
from inx_sidecar.instances.build_status import BuildStatus, pause_after

pytestmark = pytest.mark.main


def test_the_newest_text_is_published_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_status, "_SECONDS", 0.2)
    texts: list[str] = []

    async def main() -> None:
        status = BuildStatus(texts.append, "building")
        status.report("building")
        for number in range(1000):
            status.report(f"building {number}/1000")
        assert texts == []
        await asyncio.sleep(1.0)
        assert texts == ["building 999/1000"]
        status.report("building 999/1000")
        status.report("one")
        status.report("two")
        assert texts[1:] == ["one"]
        status.close()
        status.report("three")
        await asyncio.sleep(1.0)
        assert texts[1:] == ["one"], "nothing is told after the end"

    asyncio.run(main())


def test_the_turn_of_a_build_is_told_at_once() -> None:
    texts: list[str] = []

    async def main() -> None:
        status = BuildStatus(texts.append, "building")
        for text in ("building 0/2", "queued: the build of a runs", "queued: the build of b runs"):
            status.report(text)
        assert texts == ["queued: the build of a runs"]
        status.report("building")
        assert texts[1:] == ["building"]
        status.close()
        status.report("queued: the build of a runs")
        assert texts[1:] == ["building"]

    asyncio.run(main())


def test_a_build_that_lasts_long_is_told_more_seldom() -> None:
    assert [pause_after(seconds) for seconds in (0, 20, 50, 100, 10_000)] == [2, 2, 5, 10, 10]
    now, writes = 0.0, 0
    while now < 7200:
        now, writes = now + pause_after(now), writes + 1
    assert writes < 800
