"""A file system of the host that takes no files is told in one sentence; other errors are bugs."""

import asyncio
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.base.storage import names_full_storage, storage_error

pytestmark = pytest.mark.main


def test_a_file_system_without_inodes_has_its_own_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says ENOSPC, and `df` shows space."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{tmp_path}/none/x")
    assert str(storage_error(error)).endswith(": make space there, and try again")
    looked = []

    def statvfs(place: str) -> SimpleNamespace:
        looked.append(place)
        return SimpleNamespace(f_bavail=9, f_files=300, f_ffree=0)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert "has no inodes left, so remove files there" in str(storage_error(error))
    assert looked == [str(tmp_path)]


def test_a_full_and_a_read_only_file_system_have_their_ways_out() -> None:
    full = storage_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/lib/inx/x"))
    assert str(full) == (
        "cannot write /var/lib/inx/x (No space left on device): make space there, and try again"
    )
    assert "mount it writable" in str(storage_error(OSError(errno.EROFS, "Read-only", "/x")))
    # A write to an open file has no name.
    assert "/var/lib/inx" in str(storage_error(OSError(errno.EDQUOT, "Disk quota exceeded")))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x", "/x"), OSError("x"), ValueError(28)])
def test_other_errors_stay_bugs(error: Exception) -> None:
    assert storage_error(error) is None

    @names_full_storage
    async def fails() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        asyncio.run(fails())
    assert caught.value is error


def test_a_function_that_meets_a_full_file_system_fails_with_the_sentence() -> None:
    @names_full_storage
    async def fails(number: int) -> int:
        raise OSError(errno.ENOSPC, "full", f"/x{number}")

    with pytest.raises(UnsupportedError, match="cannot write /x7"):
        asyncio.run(fails(7))
