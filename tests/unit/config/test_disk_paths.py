"""A disk device may not hide the directories in which inx keeps the system and its roots."""

import pytest

from inx_sidecar.base.errors import ConfigError
from inx_sidecar.config.disk_paths import check_disks

pytestmark = pytest.mark.main


def check(path: str, kind: str = "disk", own: bool = False) -> None:
    root = {"type": "disk", "path": "/", "pool": "default"}
    check_disks({"root": root, "data": {"type": kind, "path": path}}, "web", own=own)


@pytest.mark.parametrize(
    "path",
    [
        "/nix", "/nix/", "nix", "//nix", "/nix/store", "/nix/var", "/nix/var/nix",
        "/nix/var/nix/profiles", "/nix/var/nix/./profiles/", "/srv/../nix/var/nix/gcroots",
        "/nix/var/nix/gcroots/auto", "/nix/var/nix/daemon-socket", "/dev/.inx",
    ],
)  # fmt: skip
def test_a_path_that_hides_them_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="the disk device 'data' is mounted at /") as told:
        check(path)
    assert str(told.value).startswith("'web': ") and "give it another path" in str(told.value)


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "/data", "/nixos", "/nix-data", "/var/nix", "/nix/var/log", "/nix/var/nix/db",
        "/nix/var/nix/profiles/per-user", "/nix/var/nix/gcroots/mine", "/dev", "/srv/nix/store",
    ],
)  # fmt: skip
def test_other_paths_are_allowed(path: str) -> None:
    check(path)


@pytest.mark.parametrize(
    "path",
    [
        "/nix/.inx", "/nix/.inx/upper", "/nix/.inx/work", "/nix/.inx/shown", "/nix/var/nix/db",
        "/nix/var/nix/gcroots/inx", "/nix/store", "/nix/var", "/nix",
    ],
)  # fmt: skip
def test_a_store_of_its_own_needs_more(path: str) -> None:
    with pytest.raises(ConfigError, match="the disk device 'data' is mounted at /"):
        check(path, own=True)
    if path not in ("/nix/store", "/nix/var", "/nix"):
        check(path)


def test_other_devices_have_any_path() -> None:
    check("/nix/store", kind="unix-char")
