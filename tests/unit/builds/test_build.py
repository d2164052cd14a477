"""The commands that build or fetch a system."""

from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.builds.build import _failed, _open_log
from inx_sidecar.builds.build_commands import commands
from inx_sidecar.builds.build_request import BuildRequest
from inx_sidecar.config.settings import Settings
from inx_sidecar.config.sources import Flake, NixFile, System

pytestmark = pytest.mark.main

LINK = "/var/lib/inx/builds/uuid/system"
MISSING = f"/nix/store/{'0' * 32}-nixos-system-web"
DRV = f"/nix/store/{'1' * 32}"


def test_a_flake_is_built_by_nix_build() -> None:
    installable = '/etc/nixos#nixosConfigurations."web".config.system.build.toplevel'
    found = commands(Flake("/etc/nixos", "web", attr_given=False), None, LINK)
    assert found[0][0] == "nix" and found[0][-4:] == ["--out-link", LINK, "--", installable]
    assert len(found) == 1 and "--accept-flake-config" not in found[0]


def test_a_file_is_built_without_flakes() -> None:
    found = commands(NixFile("/srv/x.nix", "hosts.web", attr_given=True), None, LINK)
    log = ["--log-format", "internal-json"]
    given = ["--out-link", LINK, "--attr", "hosts.web", "--", "/srv/x.nix"]
    assert found == [["nix-build", *log, *given]]


def test_a_missing_system_is_fetched_before_it_is_built() -> None:
    log = ["--log-format", "internal-json"]
    fetch = ["nix-store", "--realise", *log, "--add-root", LINK, "--", MISSING]
    found = commands(NixFile("/srv/x.nix", "web", attr_given=False), MISSING, LINK)
    assert found[0] == fetch and found[1][0] == "nix-build"


def test_a_system_without_a_source_is_only_fetched() -> None:
    found = commands(System(MISSING), MISSING, LINK)
    assert [argv[0] for argv in found] == ["nix-store"]


def test_a_doubtful_flake_is_built_without_writing_a_lock_file() -> None:
    flake = Flake("path:/srv/x", "web", attr_given=False)
    found = commands(flake, None, LINK, write_lock=False)
    assert "--no-write-lock-file" in found[0][: found[0].index("--")]
    assert "--no-write-lock-file" not in commands(flake, None, LINK)[0]


def test_a_long_source_leaves_room_for_the_reason() -> None:
    source = Flake("github:o/" + "x" * 1000, "web", attr_given=True)
    text = _failed(BuildRequest("uuid", "web", source, None, Settings()))
    assert text.startswith("cannot build the system of 'web' from github:o/xxx")
    assert text.endswith("...") and len(text) < 300


def test_a_build_needs_no_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file system of logs may be full, or not there."""
    monkeypatch.setattr(paths, "LOG", str(tmp_path / "none"))
    with _open_log("uuid") as log:
        assert log.write(b"x") == 1
    assert list(tmp_path.iterdir()) == []
