"""Copies that cannot be read before their first start, as on ZFS, LVM and Ceph.

The test moves their files away while no sidecar runs: so the sidecar sees each copy without them.
"""

import contextlib
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.gc import (
    SIDECAR_UNITS,
    SYNC,
    assert_gone,
    assert_kept,
    assert_link_works,
    build,
    holders,
    journal,
    journal_end,
    launch,
    root_directory,
    unlink,
    without,
)
from support.incus import POOL, Incus
from support.services import sync

pytestmark = pytest.mark.gc


@contextlib.contextmanager
def unmounted(host: Host, *names: str) -> Iterator[None]:
    """While the block runs, these instances have no files, unless they were deleted."""
    script = 'for name; do if [ -e "$F/$name" ]; then mv "$F/$name" "$T/$name"; fi; done'
    # In one file system: a subvolume of btrfs stays one.
    away = f"{POOL}/../away"
    host.run(["mkdir", "-p", away])

    def move(source: str, target: str) -> None:
        host.run(["sh", "-euc", script, "move", *names], env={"F": source, "T": target})

    move(POOL, away)
    try:
        yield
    finally:
        move(away, POOL)


def test_roots_of_others_are_dropped_while_a_copy_cannot_be_read(incus: Incus, host: Host) -> None:
    """What the source, its snapshots and its copies hold is held for each copy, until it starts."""
    since = journal_end(host)
    name, other = launch(incus), launch(incus, "other")
    in_snapshot = build(incus, name, "one")
    incus("snapshot", "create", name, "snap")
    path, later = build(incus, name, "two"), build(incus, name, "later", link="/root/later")
    unneeded = build(incus, other, "unneeded")
    assert_kept(incus, in_snapshot, path, later, unneeded)
    copy, of_snapshot, of_copy = (incus.adopt(incus.name(each)) for each in ("c", "cs", "cc"))
    with contextlib.ExitStack() as moved:
        with without(host, *SIDECAR_UNITS):
            unlink(incus, name, "/root/later")  # it still has a root when the sidecar begins
            incus("copy", name, copy)
            incus("copy", f"{name}/snap", of_snapshot)
            incus("copy", copy, of_copy)
            incus("delete", "-f", name)
            moved.enter_context(unmounted(host, copy, of_snapshot, of_copy))
        unlink(incus, other)
        assert_gone(incus, unneeded)
        assert_kept(incus, in_snapshot, path, later)
        assert "nothing was dropped" not in host.run(SYNC).stdout
        for each in copy, of_snapshot, of_copy:
            assert holders(host, path) >= {each}
            told = f"{each}: its storage is not mounted: it keeps all that its source keeps"
            assert journal(host, since).count(told) == 1
        # What was noted lasts: the next sidecar drops nothing of it, and says nothing.
        host.run(["systemctl", "restart", *SIDECAR_UNITS])
        assert_kept(incus, in_snapshot, path, later)
        assert journal(host, since).count("its storage is not mounted") == 3
    # The files are there, and `copy` does not run: so its own links are known.
    incus.eventually(lambda: not held_as_copy(incus, host, copy, of_snapshot, of_copy), incus.story)
    assert_gone(incus, later)
    incus.start(of_snapshot)
    assert_link_works(incus, of_snapshot, "one")
    incus.start(copy)
    assert_link_works(incus, copy, "two")
    incus("delete", "-f", of_copy, copy)
    assert_gone(incus, path)
    assert_kept(incus, in_snapshot)


def held_as_copy(incus: Incus, host: Host, *names: str) -> str:
    """What the sidecar holds for these instances since it cannot read them."""
    host.run(SYNC)
    places = [f"{root_directory(incus, name)}/copied" for name in names]
    return host.run(["find", *places], check=False).stdout


def test_a_refreshed_copy_and_a_first_start_on_unmounted_storage(incus: Incus, host: Host) -> None:
    """A refresh gives a copy that has run the key of its source again; a start reads its links."""
    since = journal_end(host)
    name = launch(incus)
    first = build(incus, name, "one")
    copy = incus.adopt(incus.name("copy"))
    incus("copy", name, copy)
    incus.start(copy)
    incus.eventually(lambda: incus.get(copy, "user.inx.sealed") == incus.uuid(copy), incus.story)
    incus("stop", "-f", copy)
    second, unneeded = build(incus, name, "two"), build(incus, name, "x", link="/root/x")
    assert_kept(incus, first, second, unneeded)
    with contextlib.ExitStack() as moved:
        with without(host, *SIDECAR_UNITS):
            unlink(incus, name, "/root/x")
            incus("copy", name, copy, "--refresh")
            assert incus.get(copy, "user.inx.sealed") == incus.uuid(name)
            moved.enter_context(unmounted(host, copy))
        incus("delete", "-f", name)
        assert_kept(incus, second, unneeded)
        assert held_as_copy(incus, host, copy)
    # As on such storage, the files are there at the start; nothing looks at them before.
    incus.start(copy)
    assert_link_works(incus, copy, "two")
    assert_gone(incus, unneeded)
    assert not held_as_copy(incus, host, copy)
    assert journal(host, since).count("roots of its source dropped") == 1
    assert_kept(incus, second)


def test_what_an_unread_instance_was_made_of_may_be_unknown(incus: Incus, host: Host) -> None:
    """It keeps all that is kept then; a new instance that is empty keeps nothing."""
    since = journal_end(host)
    name, other = launch(incus), launch(incus, "other")
    path, held = build(incus, name, "thing"), build(incus, other, "held")
    # Until Incus has the key of an instance, an empty one might be its copy.
    launched = name, other
    incus.eventually(
        lambda: all(incus.get(n, "user.inx.sealed") == incus.uuid(n) for n in launched),
        incus.story,
    )
    sync(host)
    incus("stop", "-f", name)
    image = incus.name("image")
    incus("publish", name, "--alias", image)
    unknown, published, empty, ours = (
        incus.adopt(incus.name(each)) for each in ("unknown", "published", "empty", "ours")
    )
    try:
        with contextlib.ExitStack() as moved:
            with without(host, *SIDECAR_UNITS):
                incus("copy", name, unknown, "-c", "user.inx.sealed=")
                incus("init", image, published, "--profile", "inx")
                incus("init", "--empty", empty, "--profile", "inx")
                incus("init", "inx", ours, "--profile", "inx")
                moved.enter_context(unmounted(host, unknown, published, empty, ours))
            incus("delete", name)
            unlink(incus, other)
            assert_kept(incus, path, held)
            assert holders(host, held) == holders(host, path) == {unknown, published}
            told = "it is not known what it was made from: it keeps all that any instance keeps"
            assert journal(host, since).count(told) == 2
            assert not held_as_copy(incus, host, empty, ours)
            later = build(incus, other, "later")
            assert_kept(incus, later)
            unlink(incus, other)
            assert_gone(incus, later)
            incus("delete", unknown)
            assert_kept(incus, path)
        incus.start(published)
        assert_link_works(incus, published, "thing")
        assert_gone(incus, held)
        assert_kept(incus, path)
    finally:
        incus("image", "delete", image)
        host.run(["rm", "-rf", f"{POOL}/../away"])


def test_a_former_key_is_kept_for_copies_of_snapshots(incus: Incus, host: Host) -> None:
    """A copy of a snapshot has the key that the instance had, which may name another instance."""
    name = launch(incus)
    path = build(incus, name, "thing")
    copy = incus.adopt(incus.name("copy"))
    incus("copy", name, copy)
    incus("snapshot", "create", copy, "snap")
    incus.start(copy)
    incus.eventually(lambda: incus.get(copy, "user.inx.sealed") == incus.uuid(copy), incus.story)
    unlink(incus, copy)
    unlink(incus, name)
    of_snapshot = incus.adopt(incus.name("cs"))
    with contextlib.ExitStack() as moved:
        with without(host, *SIDECAR_UNITS):
            incus("copy", f"{copy}/snap", of_snapshot)
            assert incus.get(of_snapshot, "user.inx.sealed") == incus.uuid(name)
            incus("snapshot", "delete", copy, "snap")
            moved.enter_context(unmounted(host, of_snapshot))
        assert_kept(incus, path)
    incus.start(of_snapshot)
    assert_link_works(incus, of_snapshot, "thing")
    assert_kept(incus, path)
