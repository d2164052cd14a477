"""The directories of an instance are removed while the sidecar serves the others."""

import asyncio
import os
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.instances.private_directories import remove_run_directory


def test_a_large_view_that_is_removed_does_not_keep_others_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    place = Path(paths.run_dir("uuid"))
    for number in range(500):
        os.makedirs(place / f"view.1/entries/{number}")

    async def remove() -> int:
        turns = 0
        task = asyncio.create_task(remove_run_directory("uuid"))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(remove()) > 3
    assert not place.exists()
