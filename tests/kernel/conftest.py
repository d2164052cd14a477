"""Containers, directories of GC roots, and processes that open these directories."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.containers import FIRST_ID, Sandbox, make_rootfs, running
from support.links import OUTSIDE, Web, started_web
from support.openers import Opener, Start
from support.registrations import NEVER, SHOP, WEB

from inx_sidecar.base import paths
from inx_sidecar.kernel.fanotify import PermissionGroup
from inx_sidecar.roots import registration_watch


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))


@pytest.fixture(params=["unprivileged", "privileged"])
def sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sandbox]:
    privileged = request.param == "privileged"
    rootfs = make_rootfs(tmp_path / "rootfs", 0 if privileged else FIRST_ID)
    with running(rootfs, privileged=privileged) as sandbox:
        yield sandbox


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Sandbox]:
    with running(make_rootfs(tmp_path / "rootfs")) as sandbox:
        yield sandbox


@pytest.fixture(params=["unprivileged", "privileged"])
def either(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Web]:
    """A container with links: the test runs with an unprivileged and with a privileged one."""
    with started_web(tmp_path / "rootfs", privileged=request.param == "privileged") as web:
        yield web


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """An unprivileged container with links."""
    with started_web(tmp_path / "rootfs") as web:
        yield web


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host, outside the root file system, with a link to the store."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "result").symlink_to(OUTSIDE)
    return place


@pytest.fixture
def gcroots(tmp_path: Path) -> str:
    """A directory of GC roots."""
    (tmp_path / "gcroots/inx").mkdir(parents=True)
    return str(tmp_path / "gcroots")


@pytest.fixture
def temproots(tmp_path: Path) -> str:
    """The path of the directory of temporary roots, which does not exist yet."""
    return str(tmp_path / "temproots")


@pytest.fixture
def gc_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sidecar uses these paths for roots, and to tell a running collection."""
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path / "gcroots"))
    monkeypatch.setattr(paths, "GC_LOCK", str(tmp_path / "gc.lock"))
    monkeypatch.setattr(paths, "GC_SOCKET", str(tmp_path / "socket"))


@pytest.fixture
def registrations(tmp_path: Path, gc_paths: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories for the registrations of two instances. Polling is off."""
    for name in ("STATE", "RUN"):
        monkeypatch.setattr(paths, name, str(tmp_path / name))
    monkeypatch.setattr(paths, "NIX_DB", str(tmp_path / "db.sqlite"))
    with closing(sqlite3.connect(paths.NIX_DB)) as db:
        db.execute("create table ValidPaths (path text unique not null)")
    (tmp_path / "rootfs").mkdir()
    for uuid in (WEB, SHOP):
        os.makedirs(paths.auto_dir(uuid))
        os.makedirs(paths.run_dir(uuid))
    monkeypatch.setattr(registration_watch, "_POLL_SECONDS", NEVER)


@pytest.fixture
def sidecar_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "SOCKET", str(tmp_path / "sidecar.sock"))


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes, which are killed at the end of the test."""
    with ExitStack() as openers:

        def begin(function: Callable[[], object]) -> Opener:
            opener = Opener(function)
            openers.callback(opener.kill)
            return opener

        yield begin


@pytest.fixture
def group() -> Iterator[PermissionGroup]:
    """A permission group. It is closed at the end of the test, so that no process waits longer."""
    group = PermissionGroup()
    yield group
    if os.path.exists(f"/proc/self/fd/{group.fd}"):
        group.close()
