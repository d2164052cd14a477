"""Copies, snapshots and new names of instances that test_gc_situations does not show."""

import pytest
from support.disposable import Host
from support.gc import (
    SYNC,
    assert_gone,
    assert_kept,
    assert_kept_by_snapshot,
    assert_link_works,
    build,
    collect_when_idle,
    holders,
    in_store,
    launch,
    names_with_roots,
    root_directory,
    unlink,
)
from support.incus import Incus

pytestmark = pytest.mark.gc


def test_roots_follow_a_new_name(incus: Incus, host: Host) -> None:
    name = launch(incus)
    uuid = incus.uuid(name)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    other = build(incus, name, "other")
    assert_kept(incus, path, other)
    incus("stop", name)
    new, newest = incus.adopt(incus.name("new")), incus.adopt(incus.name("newest"))
    incus("rename", name, new)
    assert_kept(incus, path, other)
    assert holders(host, other) >= {new}
    # The sidecar does the same without a collection.
    incus("rename", new, newest)
    assert incus.uuid(newest) == uuid
    incus.eventually(lambda: names_with_roots(host, uuid) == [newest], incus.story)
    assert_kept(incus, path, other)
    incus.start(newest)
    assert_link_works(incus, newest, "other")
    unlink(incus, newest)
    assert_gone(incus, other)
    assert_kept_by_snapshot(incus, path)
    incus("snapshot", "delete", newest, "snap")
    assert_gone(incus, path)


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_a_copy_that_never_started_holds_all_after_its_source_is_deleted(
    incus: Incus, host: Host, running: bool
) -> None:
    """Both the system of the copy and what is linked inside are held."""
    flake = incus.flake(greeting=incus.name("copied"))
    name = incus.launch(flake=f"{flake}#web")
    system = incus.get(name, "user.inx.status.system")
    path = build(incus, name, "thing")
    if not running:
        incus("stop", name)
    copy = incus.adopt(incus.name("copy"))
    incus("copy", name, copy)
    assert incus.uuid(copy) != incus.uuid(name)
    incus("delete", "-f", name)
    assert_kept(incus, path, system)
    host.run(["rm", "-r", flake])
    incus.start(copy)
    assert_link_works(incus, copy, "thing")
    incus.run(copy, "grep", "-qxF", incus.name("copied"), "/etc/greeting")
    assert_kept(incus, path, system)
    unlink(incus, copy)
    assert_gone(incus, path)
    incus("delete", "-f", copy)
    assert_gone(incus, system)


def test_a_copy_made_while_collections_run_holds_all(incus: Incus, host: Host) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    other = build(incus, name, "other")
    copy = incus.adopt(incus.name("copy"))
    again = "while [ ! -e /run/copied ]; do nix-store --gc; done"
    script = "incus copy $0 $1; incus delete -f $0; touch /run/copied; wait"
    try:
        host.run(["bash", "-euc", f"{again} >/dev/null 2>&1 & {script}", name, copy])
    finally:
        host.run(["rm", "-f", "/run/copied"])
    assert_kept(incus, path, other)
    incus.start(copy)
    assert_link_works(incus, copy, "other")


def test_if_an_unknown_directory_keeps_roots_from_being_dropped_sync_says_so(
    incus: Incus, host: Host
) -> None:
    """Incus does not know it: an operation of Incus that was interrupted may leave it behind."""
    name = launch(incus)
    path = build(incus, name, "thing")
    directory = f"/var/lib/incus/containers/{incus.name('leftover')}"
    host.run(["mkdir", directory])
    try:
        unlink(incus, name)
        collect_when_idle(incus)
        told = host.run(SYNC).stdout
        assert not in_store(host, path) or "nothing was dropped" in told, told
    finally:
        host.run(["rmdir", directory])


def test_a_renamed_snapshot_holds_what_it_held(incus: Incus, host: Host) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "one")
    unlink(incus, name)
    assert_kept_by_snapshot(incus, path)
    incus("snapshot", "rename", name, "one", "two")
    assert_kept(incus, path)
    (held,) = host.run(["ls", f"{root_directory(incus, name)}/snapshots"]).stdout.split()
    assert held.startswith("two.")
    incus("snapshot", "delete", name, "two")
    assert_gone(incus, path)


@pytest.mark.sid
def test_a_system_that_only_a_snapshot_names_is_held(incus: Incus) -> None:
    flake = incus.flake(greeting=incus.name("old"))
    name = incus.launch(flake=f"{flake}#web", keep="1")
    old = incus.get(name, "user.inx.status.system")
    incus("snapshot", "create", name, "snap")
    incus.flake(greeting=incus.name("new"))

    def update(value: str) -> None:
        incus.set(name, f"user.inx.update={value}")
        incus.restart_into(name, generation=2)
        links = incus.said(name, "ls", "/nix/var/nix/profiles").split()
        assert "system-2-link" in links and "system-1-link" not in links
        assert_kept_by_snapshot(incus, old)

    update("2")
    incus("snapshot", "restore", name, "snap")
    incus.wait_inside(name)
    assert incus.said(name, "readlink", "/run/current-system").strip() == old
    update("3")
    incus("snapshot", "delete", name, "snap")
    assert_gone(incus, old)
