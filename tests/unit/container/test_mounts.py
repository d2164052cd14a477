"""The description of a directory says where it is and how much of it the container sees."""

import pytest

from inx_sidecar.container.locked_mounts import HostDirectory

pytestmark = pytest.mark.main


def test_a_directory_is_described() -> None:
    whole = HostDirectory("/nix/store", "nix/store")
    assert whole.describe() == "/nix/store at /nix/store"
    part = HostDirectory("/nix/store", "nix/store", entries=frozenset({"a", "b"}))
    assert part.describe() == "2 entries of /nix/store at /nix/store"
