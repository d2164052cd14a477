"""The commands that build or fetch a system."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.builds.build import _failed
from inx_sidecar.builds.build_commands import build_command, fetch_command
from inx_sidecar.builds.build_request import BuildRequest, Listener
from inx_sidecar.builds.build_run import BuildRun
from inx_sidecar.builds.build_service import BuildService
from inx_sidecar.config.settings import Settings
from inx_sidecar.config.sources import Flake, NixFile

pytestmark = pytest.mark.main

LINK = "/var/lib/inx/builds/uuid/system"
MISSING = f"/nix/store/{'0' * 32}-nixos-system-web"
DRV = f"/nix/store/{'1' * 32}"


def test_a_flake_is_built_by_nix_build() -> None:
    installable = '/etc/nixos#nixosConfigurations."web".config.system.build.toplevel'
    found = build_command(Flake("/etc/nixos", "web", attr_given=False), LINK)
    assert found[0] == "nix" and found[-4:] == ["--out-link", LINK, "--", installable]
    assert "--accept-flake-config" not in found


def test_a_file_is_built_without_flakes() -> None:
    found = build_command(NixFile("/srv/x.nix", "hosts.web", attr_given=True), LINK)
    log = ["--log-format", "internal-json"]
    given = ["--out-link", LINK, "--attr", "hosts.web", "--", "/srv/x.nix"]
    assert found == ["nix-build", *log, *given]


def test_a_missing_system_is_fetched() -> None:
    log = ["--log-format", "internal-json"]
    fetch = ["nix-store", "--realise", *log, "--add-root", LINK, "--", MISSING]
    assert fetch_command(MISSING, LINK) == fetch


def test_a_doubtful_flake_is_built_without_writing_a_lock_file() -> None:
    flake = Flake("path:/srv/x", "web", attr_given=False)
    found = build_command(flake, LINK, write_lock=False)
    assert "--no-write-lock-file" in found[: found.index("--")]
    assert "--no-write-lock-file" not in build_command(flake, LINK)


def test_a_long_source_leaves_room_for_the_reason() -> None:
    source = Flake("github:o/" + "x" * 1000, "web", attr_given=True)
    text = _failed(BuildRequest("uuid", "web", source, None, Settings()))
    assert text.startswith("cannot build the system of 'web' from github:o/xxx")
    assert text.endswith("...") and len(text) < 300


class Service(BuildService):
    """One that runs nothing."""

    def __init__(self) -> None:
        pass

    @contextmanager
    def environment(self) -> Iterator[None]:
        yield


def test_a_build_needs_no_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file system of logs may be full, or not there."""
    monkeypatch.setattr(paths, "LOG", str(tmp_path / "none"))
    request = BuildRequest("uuid", "web", Flake("/etc/nixos", "web", False), None, Settings())
    said: list[str] = []
    listener = Listener(said.append, said.append, lambda _: None)
    with BuildRun.begun(request, Service(), listener) as running:
        running.record("x")
        assert running.log == "" and said == ["x"]
    assert list(tmp_path.iterdir()) == []
