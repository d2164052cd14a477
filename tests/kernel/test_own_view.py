"""An instance with a store of its own sees what it was shown, until Nix inside has deleted it."""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import pytest
from support.containers import MS_BIND, Sandbox, apart, make_rootfs, pivot_here, plain, running

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError
from inx_sidecar.config.keys import parse_spec
from inx_sidecar.config.settings import Settings
from inx_sidecar.container.namespaces import Container
from inx_sidecar.incus.instance import SEALED, Instance, LxcFacts
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances import own_view
from inx_sidecar.instances.deployment import Deployment
from inx_sidecar.instances.own_trash import OwnTrash
from inx_sidecar.instances.own_view import Attached
from inx_sidecar.instances.plan import Boot
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, MS_PRIVATE, MS_REC, mount, unshare
from inx_sidecar.nix import shown_record
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generations import Generations
from inx_sidecar.roots.system_roots import read_rooted, shown_roots
from kernel.views import name_of

pytestmark = pytest.mark.isolated

T = TypeVar("T")
WEB, SHOP = (f"{number}0000000-0000-4000-8000-000000000000" for number in (1, 2))
ONE, TWO, THREE = (name_of(f"system-{number}") for number in (1, 2, 3))
LIB1, LIB2, TOOL, SHARED = map(name_of, ("lib-1", "lib-2", "tool", "shared"))
NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    ONE: (LIB1, SHARED), TWO: (LIB2, SHARED), THREE: (LIB2, SHARED),
    LIB1: (), LIB2: (), TOOL: (), SHARED: (), name_of("secret"): (),
}  # fmt: skip
OWN: Final = name_of("built-inside")


def store_path(name: str) -> str:
    return f"/nix/store/{name}"


@pytest.fixture
def nix(tmp_path: Path, gc_paths: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's store with its database, and the directories of inx."""
    store = tmp_path / "host-store"
    for name in NEEDS:
        (store / name).mkdir(parents=True)
        (store / name / "file").write_text(name)
    for directory in ("RUN", "STATE"):
        monkeypatch.setattr(paths, directory, str(tmp_path / directory))
    for uuid in (WEB, SHOP):
        os.makedirs(paths.run_dir(uuid))
        os.makedirs(paths.state_dir(uuid))
    (tmp_path / "gcroots/inx").mkdir(parents=True)
    monkeypatch.setattr(paths, "NIX_DB", str(tmp_path / "host.sqlite"))
    with closing(sqlite3.connect(paths.NIX_DB)) as db:
        db.execute(
            "create table ValidPaths (id integer primary key, path text unique, hash text, "
            "registrationTime integer, deriver text, narSize integer, sigs text, ca text)"
        )
        db.execute("create table Refs (referrer integer, reference integer)")
        add = "insert into ValidPaths (path, hash, registrationTime, deriver) values (?, 'h', 1, ?)"
        drv = store_path(name_of("secret.drv"))
        ids = {name: db.execute(add, (store_path(name), drv)).lastrowid for name in NEEDS}
        for name, needed in NEEDS.items():
            for reference in needed:
                db.execute("insert into Refs values (?, ?)", (ids[name], ids[reference]))
        db.commit()
    return store


def on_host(store: Path, place: Path, function: Callable[[], T]) -> T:
    """The result of `function` on a host that has `store` at /nix/store."""

    def host() -> T:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        root = place / "host"
        root.mkdir()
        mount("root", str(root), "tmpfs", 0, "mode=755")
        for entry in os.scandir("/"):
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), root / entry.name)
            elif entry.is_dir():
                (root / entry.name).mkdir()
                plain(str(root / entry.name), entry.path, MS_BIND | MS_REC)
        (root / "nix/store").mkdir(parents=True)
        plain(str(root / "nix/store"), str(store), MS_BIND)
        os.chdir(root)
        pivot_here()
        return function()

    return apart(host)


def deployment_of(
    rootfs: Path, system: str, uuid: str = WEB, include: str = "", sealed_for: str = WEB
) -> Deployment:
    config = {"user.inx.store": "own", "user.inx.system": store_path(system), SEALED: sealed_for}
    if include:
        config["user.inx.store.include"] = store_path(include)
    instance = Instance("web", "default", uuid, LxcFacts("web", str(rootfs), ""), False, config)
    spec = parse_spec(config, "web", "")
    plan = Boot(store_path(system), None)
    return Deployment(instance, spec, Generations(), Generations(), plan, Settings(), "digest")


@contextmanager
def started(deployment: Deployment) -> Iterator[tuple[Sandbox, Attached]]:
    system = str(deployment.plan.system) if isinstance(deployment.plan, Boot) else ""
    with running(Path(deployment.instance.rootfs)) as sandbox:
        with Container(sandbox.pid, "web") as container:
            attached = asyncio.run(own_view.attach(container, deployment, system, [], None))
        yield sandbox, attached


def update(sandbox: Sandbox, attached: Attached, deployment: Deployment) -> None:
    """Show the system of `deployment`."""
    record = replace(
        Running.of(deployment.instance, sandbox.pid, True),
        view=attached.view, view_device=attached.view_device,
    )  # fmt: skip

    async def show() -> None:
        assert isinstance(deployment.plan, Boot)
        system = deployment.plan.system
        with Container(sandbox.pid, "web") as container, closing(GcClient()) as gc:
            async with own_view.shown(gc, container, deployment, record, system):
                pass

    asyncio.run(show())


def there(sandbox: Sandbox) -> Set[str]:
    """What the store inside has; the database names the same."""

    def look() -> tuple[Set[str], Set[str]]:
        with closing(sqlite3.connect("/nix/var/nix/db/db.sqlite")) as db:
            valid = {
                os.path.basename(path) for (path,) in db.execute("select path from ValidPaths")
            }
        return valid, set(os.listdir("/nix/store"))

    valid, found = sandbox.inside(look)
    assert valid == found
    return found


def register(name: str, *needed: str) -> None:
    """As Nix inside, after a build."""
    os.mkdir(store_path(name))
    with closing(sqlite3.connect("/nix/var/nix/db/db.sqlite")) as db:
        add = "insert into ValidPaths (path, hash, registrationTime) values (?, 'own', 1)"
        db.execute(add, (store_path(name),))
        for reference in needed:
            db.execute(
                "insert into Refs select a.id, b.id from ValidPaths a, ValidPaths b "
                "where a.path = ? and b.path = ?", (store_path(name), store_path(reference)),
            )  # fmt: skip
        db.commit()


def forget(names: Iterable[str]) -> None:
    """The paths are not valid any more inside."""
    with closing(sqlite3.connect("/nix/var/nix/db/db.sqlite")) as db:
        for name in names:
            query = "select id from ValidPaths where path = ?"
            number = db.execute(query, (store_path(name),)).fetchone()
            db.execute("delete from Refs where referrer = ?", number)
            db.execute("delete from ValidPaths where id = ?", number)
        db.commit()


def collect(names: Iterable[str], killed_at: str = "") -> None:
    """As the collector of Nix inside, which may be killed while it deletes `killed_at`."""
    forget(names)
    for name in names:
        if store_path(name) == killed_at:
            os.chmod(killed_at, 0o700)
        else:
            shutil.rmtree(store_path(name))


def written(rootfs: Path) -> tuple[int, int]:
    """What changes with each registration."""
    status = (rootfs / "nix/var/nix/db/inx-registered").lstat()
    return status.st_ino, status.st_mtime_ns


FIRST: Final = frozenset({ONE, LIB1, SHARED})
SECOND: Final = frozenset({TWO, LIB2, SHARED})


def test_what_was_shown_stays_until_nix_inside_has_deleted_it(nix: Path, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    one, two, three = (deployment_of(rootfs, name) for name in (ONE, TWO, THREE))

    def record() -> list[str]:
        return [os.path.basename(path) for path in shown_record.read(str(rootfs), "web")]

    def life() -> None:
        with started(one) as (sandbox, attached):
            assert there(sandbox) == FIRST
            update(sandbox, attached, two)
            assert there(sandbox) == FIRST | SECOND
            sandbox.inside(partial(register, OWN, LIB1))
            before = written(rootfs)
        assert sorted(record()) == [ONE, TWO]
        assert read_rooted("web", WEB) == shown_roots([store_path(TWO)])
        with started(two) as (sandbox, attached):
            assert there(sandbox) == FIRST | SECOND | {OWN}
            assert attached.former == 1
            assert written(rootfs) != before
            before = written(rootfs)
            sandbox.inside(partial(collect, [ONE]))
        with started(two) as (sandbox, _):
            assert there(sandbox) == SECOND | {LIB1, OWN}
            assert sorted(record()) == [ONE, TWO]
            sandbox.inside(partial(collect, [OWN, LIB1]))
        with started(two) as (sandbox, attached):
            assert there(sandbox) == SECOND
            assert attached.former == 0
            assert record() == [TWO]
            assert os.listdir(rootfs / "nix/.inx/upper") == []
            sandbox.inside(partial(collect, [TWO]))
            update(sandbox, attached, one)
            update(sandbox, attached, three)
            assert there(sandbox) == FIRST | {THREE, LIB2}
            update(sandbox, attached, two)
            assert there(sandbox) == FIRST | SECOND | {THREE}
            links = os.listdir(rootfs / "nix/var/nix/gcroots/inx")
            assert sorted(links) == ["booted", "next"]
            assert os.readlink(rootfs / "nix/var/nix/gcroots/inx/next") == store_path(TWO)

    on_host(nix, tmp_path, life)


def test_a_start_that_shows_the_same_registers_nothing(nix: Path, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    deployment = deployment_of(rootfs, ONE)

    def life() -> None:
        with started(deployment) as (sandbox, _):
            before = written(rootfs)
        with started(deployment) as (sandbox, _):
            assert there(sandbox) == FIRST
            assert written(rootfs) == before
            sandbox.inside(partial(register, OWN))
        with started(deployment) as (sandbox, _):
            assert there(sandbox) == FIRST | {OWN}
            assert written(rootfs) != before
            before = written(rootfs)
            sandbox.inside(partial(os.chmod, store_path(LIB1), 0o700))
        with started(deployment) as (sandbox, _):
            assert written(rootfs) != before
            mode = sandbox.inside(lambda: os.stat(store_path(LIB1)).st_mode & 0o777)
            assert mode == 0o755

    on_host(nix, tmp_path, life)


def test_killed_builds_and_collections_hinder_no_start(nix: Path, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")

    def life() -> None:
        with started(deployment_of(rootfs, ONE)) as (sandbox, _):
            sandbox.inside(partial(os.mkdir, store_path(TWO)))  # a part of what a build makes
            sandbox.inside(partial(collect, [ONE, LIB1], store_path(LIB1)))
        with started(deployment_of(rootfs, ONE)) as (sandbox, _):
            sandbox.inside(partial(os.rmdir, store_path(TWO)))
            assert there(sandbox) == FIRST
            sandbox.inside(partial(os.mkdir, store_path(TWO)))
        with started(deployment_of(rootfs, TWO)) as (sandbox, _):
            assert there(sandbox) == FIRST | SECOND

    on_host(nix, tmp_path, life)


@pytest.mark.parametrize("has_begun", [False, True], ids=["forgotten", "half deleted"])
def test_a_start_completes_what_a_collector_has_left_that_was_killed(
    nix: Path, tmp_path: Path, has_begun: bool
) -> None:
    """Nix forgets a path, and then deletes it."""
    rootfs = make_rootfs(tmp_path / "rootfs")
    one, two = deployment_of(rootfs, ONE), deployment_of(rootfs, TWO)

    def delete_a_part() -> None:
        forget([TWO, LIB2])
        for name in [TWO, LIB2] if has_begun else []:
            os.chmod(store_path(name), 0o755)
            os.unlink(f"{store_path(name)}/file")

    def life() -> None:
        with started(one) as (sandbox, attached):
            update(sandbox, attached, two)
        for deployment in (one, two):
            with started(deployment) as (sandbox, _):
                assert there(sandbox) == FIRST | SECOND
                assert sandbox.inside(Path(f"{store_path(TWO)}/file").read_text)
                sandbox.inside(delete_a_part)
        with started(one) as (sandbox, _):
            assert there(sandbox) == FIRST | SECOND

    on_host(nix, tmp_path, life)


def test_included_paths_are_shown_and_rooted_inside(nix: Path, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")

    def life() -> None:
        with started(deployment_of(rootfs, ONE, include=TOOL)) as (sandbox, attached):
            assert there(sandbox) == FIRST | {TOOL}
            links = rootfs / "nix/var/nix/gcroots/inx"
            assert {os.readlink(link) for link in links.iterdir()} == {
                store_path(ONE), store_path(TOOL),
            }  # fmt: skip
            update(sandbox, attached, deployment_of(rootfs, TWO, include=TOOL))
            assert there(sandbox) == FIRST | SECOND | {TOOL}
        with started(deployment_of(rootfs, TWO)) as (sandbox, _):
            assert there(sandbox) == FIRST | SECOND | {TOOL}
            assert os.listdir(links) == ["booted"]

    on_host(nix, tmp_path, life)


def test_a_copy_has_what_its_source_was_shown_and_then_seals_of_its_own(
    nix: Path, tmp_path: Path
) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")

    def life() -> None:
        with started(deployment_of(rootfs, ONE)) as (sandbox, attached):
            update(sandbox, attached, deployment_of(rootfs, TWO))
        before = shown_record.read(str(rootfs), "web")
        with started(deployment_of(rootfs, TWO, SHOP, sealed_for=WEB)) as (sandbox, _):
            assert there(sandbox) == FIRST | SECOND
        after = shown_record.read(str(rootfs), "web")
        assert before.keys() == after.keys()
        assert not {*before.values()} & {*after.values()}

    on_host(nix, tmp_path, life)


def test_on_another_host_only_what_the_start_needs_is_there(nix: Path, tmp_path: Path) -> None:
    """Whatever the record says: root inside can write it."""
    rootfs = make_rootfs(tmp_path / "rootfs")

    def life() -> None:
        with started(deployment_of(rootfs, ONE)) as (sandbox, _):
            sandbox.inside(partial(register, OWN, LIB1))
            sandbox.inside(partial(register, name_of("alone")))
        os.unlink(f"{paths.STATE}/seal.key")
        place = rootfs / "nix/.inx/shown"
        (place / name_of("secret")).symlink_to("0" * 64)
        with started(deployment_of(rootfs, TWO)) as (sandbox, _):
            # The files of what cannot be valid any more are garbage of Nix inside.
            sandbox.inside(partial(os.rmdir, store_path(OWN)))
            assert there(sandbox) == SECOND | {name_of("alone")}
        assert os.listdir(place) == [TWO]

    on_host(nix, tmp_path, life)


def test_a_start_that_fails_leaves_no_view(nix: Path, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")

    def life() -> None:
        with started(deployment_of(rootfs, ONE)):
            pass
        views = set(os.listdir(paths.run_dir(WEB)))
        (rootfs / "nix/.inx/work").rename(rootfs / "nix/.inx/elsewhere")
        (rootfs / "nix/.inx/work").symlink_to("elsewhere")
        with pytest.raises(InstanceError, match="/work of 'web' cannot be used"):
            with started(deployment_of(rootfs, TWO)):
                pass
        assert set(os.listdir(paths.run_dir(WEB))) == views

    on_host(nix, tmp_path, life)


def test_an_instance_that_runs_without_such_a_store_is_told(nix: Path, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    with running(rootfs) as sandbox:
        with pytest.raises(InstanceError, match=r"^'web' runs without a store of its own; restart"):
            update(sandbox, Attached(True), deployment_of(rootfs, TWO))


async def emptied(instance: Instance) -> None:
    trash = OwnTrash()
    trash.empty_soon(instance)
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task != asyncio.current_task()))


def test_what_former_starts_have_left_is_removed(nix: Path, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")

    def life() -> None:
        deployment = deployment_of(rootfs, ONE)
        for _ in range(3):
            with started(deployment) as (sandbox, attached):
                record = Running.of(deployment.instance, sandbox.pid, True)
                replace(record, view=attached.view).save(WEB)
                views = {name for name in os.listdir(paths.run_dir(WEB)) if "view" in name}
                assert os.path.basename(attached.view) in views
                sandbox.inside(partial(os.chmod, store_path(LIB1), 0o700))
                asyncio.run(emptied(deployment.instance))
                assert sorted(os.listdir(paths.run_dir(WEB))) == sorted(
                    ["running.json", os.path.basename(attached.view)]
                )
                assert there(sandbox) == FIRST
                trash = rootfs / "nix/.inx/trash"
                assert not trash.exists() or os.listdir(trash) == []
        assert trash.exists(), "what was changed inside was moved there"

    on_host(nix, tmp_path, life)
