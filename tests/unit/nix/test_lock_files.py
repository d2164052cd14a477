"""Which files are lock files."""

import pytest

from inx_sidecar.nix.lock_files import is_lock

pytestmark = pytest.mark.main


@pytest.mark.parametrize(
    ("mode", "lock"), [(0o100600, True), (0o100644, False), (0o100444, False), (0o104755, False)]
)
def test_a_valid_store_path_is_no_lock_file(mode: int, lock: bool) -> None:
    assert is_lock(mode) is lock
