"""However often a build tells how far it is, the status is written each two seconds at most."""

import asyncio

import pytest

from inx_sidecar.instances import build_status
from inx_sidecar.instances.build_status import BuildStatus

pytestmark = pytest.mark.main


def test_the_newest_text_is_published_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_status, "_SECONDS", 0.2)
    texts: list[str] = []

    async def main() -> None:
        status = BuildStatus(texts.append, "building")
        status.report("building")
        assert texts == []
        for number in range(1000):
            status.report(f"building {number}/1000")
        assert texts == ["building 0/1000"]
        status.report("building 0/1000")
        await asyncio.sleep(0.4)
        assert texts == ["building 0/1000"], "a text that is shown already"
        status.report("one")
        status.report("two")
        status.close()
        await asyncio.sleep(0.4)
        status.report("three")
        await asyncio.sleep(0.4)
        assert texts == ["building 0/1000", "one"], "nothing is told after the end"

    asyncio.run(main())
