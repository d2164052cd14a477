"""What happens to an instance with links to store paths, and what a collection on the host keeps.

Each row of SITUATIONS is one test. It reads: after these acts, a collection keeps these things, and
deletes those. A thing is what a build inside made; its name is its own in each situation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from support.disposable import Host
from support.gc import (
    assert_gone,
    assert_kept,
    assert_kept_by_snapshot,
    assert_link_works,
    build,
    collect,
    collect_when_idle,
    holders,
    launch,
    names_with_roots,
    system_of,
    unlink,
    wait_idle,
)
from support.incus import Incus

pytestmark = pytest.mark.gc

POOL = PROJECT = "situation"
LINK = "/root/link"


class Scene:
    """The instance that all acts are about, and the things that were built so far."""

    def __init__(self, incus: Incus) -> None:
        self.incus = incus
        self.host = incus.host
        self.name = launch(incus)
        self.uuid = incus.uuid(self.name)
        self.project = "default"
        self.paths: dict[str, str] = {}

    def other_name(self, suffix: str) -> str:
        """The name of a second instance, which is deleted after the test."""
        return self.incus.adopt(self.incus.name(suffix))


Act = Callable[[Scene], None]


@dataclass(frozen=True)
class Step:
    """Acts, then a collection for each field that is not empty. Blanks separate names of things."""

    acts: tuple[Act, ...]
    kept: str = ""
    kept_by_snapshot: str = ""
    gone: str = ""

    def walk(self, scene: Scene) -> None:
        for act in self.acts:
            act(scene)
        for things, check in (
            (self.gone, assert_gone),
            (self.kept, assert_kept),
            (self.kept_by_snapshot, assert_kept_by_snapshot),
        ):
            if things:
                check(scene.incus, *(scene.paths[thing] for thing in things.split()))


def after(*acts: Act, kept: str = "", kept_by_snapshot: str = "", gone: str = "") -> Step:
    return Step(acts, kept, kept_by_snapshot, gone)


# Acts: build and link.


def built(thing: str, link: str = LINK) -> Act:
    """Build the thing inside, and let the link lead to it."""

    def act(scene: Scene) -> None:
        path = build(scene.incus, scene.name, thing, link=link, project=scene.project)
        scene.paths[thing] = path

    return act


def unlinked(scene: Scene) -> None:
    unlink(scene.incus, scene.name, project=scene.project)


def works(thing: str) -> Act:
    """Check that the link leads to the thing, once the instance runs."""

    def act(scene: Scene) -> None:
        assert_link_works(scene.incus, scene.name, thing, project=scene.project)

    return act


def link_is_absent(scene: Scene) -> None:
    assert scene.incus.run(scene.name, "ls", LINK, check=False).returncode != 0


# Acts: stop and start.


def stopped(scene: Scene) -> None:
    scene.incus("stop", scene.name)


def stopped_by_force(scene: Scene) -> None:
    scene.incus("stop", "-f", scene.name)


def started(scene: Scene) -> None:
    scene.incus.start(scene.name, scene.project)


def has_come_up(scene: Scene) -> None:
    scene.incus.wait_inside(scene.name)


def restarted(scene: Scene) -> None:
    scene.incus("restart", scene.name)


def rebooted_from_inside(scene: Scene) -> None:
    """A collection runs while the instance reboots."""
    incus, name = scene.incus, scene.name
    before = incus.pid(name)
    incus.run(name, "reboot", check=False)
    collect(scene.host)
    incus.eventually(lambda: incus.pid(name) not in (0, before), incus.story)


def rebuilt_empty(scene: Scene) -> None:
    """Incus replaces the root file system with an empty one."""
    scene.incus("stop", scene.name)
    scene.incus("rebuild", scene.name, "--empty")
    scene.incus.start(scene.name)
    scene.incus.wait_ready(scene.name)


# Acts: snapshots and copies.


def snapshot(scene: Scene) -> None:
    scene.incus("snapshot", "create", scene.name, "snap", "--project", scene.project)


def restored(scene: Scene) -> None:
    scene.incus("snapshot", "restore", scene.name, "snap")


def snapshot_deleted(scene: Scene) -> None:
    scene.incus("snapshot", "delete", scene.name, "snap", "--project", scene.project)


def copied(scene: Scene) -> None:
    scene.incus("copy", scene.name, scene.other_name("copy"))


def copied_from_snapshot(scene: Scene) -> None:
    scene.incus("copy", f"{scene.name}/snap", scene.other_name("copy"))


def copy_refreshed(scene: Scene) -> None:
    scene.incus("copy", scene.name, scene.incus.name("copy"), "--refresh")


def source_deleted(scene: Scene) -> None:
    scene.incus("delete", "-f", scene.name)


def turned_to_copy(scene: Scene) -> None:
    """The next acts are about the copy."""
    scene.name = scene.incus.name("copy")


def idle(scene: Scene) -> None:
    """Incus has nothing to do: now the sidecar drops roots."""
    wait_idle(scene.incus)


def only_the_copy_holds(thing: str) -> Act:
    def act(scene: Scene) -> None:
        assert holders(scene.host, scene.paths[thing]) == {scene.incus.name("copy")}

    return act


# Acts: moves to another place.


def moved_to_pool(scene: Scene) -> None:
    scene.incus("stop", scene.name)
    scene.incus("move", scene.name, "--storage", POOL)


def moved_to_project(scene: Scene) -> None:
    scene.incus("stop", scene.name)
    scene.incus.adopt(scene.name, PROJECT)
    scene.incus("move", scene.name, "--target-project", PROJECT)
    scene.project = PROJECT


def only_the_project_has_roots(scene: Scene) -> None:
    """The instance has no roots under its old name any more."""
    collect_when_idle(scene.incus)
    for uuid in scene.uuid, scene.incus.uuid(scene.name, PROJECT):
        assert names_with_roots(scene.host, uuid) == [f"{PROJECT}_{scene.name}"]


def exported(scene: Scene) -> None:
    scene.incus("export", scene.name, tarball(scene.name))


def imported(scene: Scene) -> None:
    """The instance gets its old name."""
    scene.incus("import", tarball(scene.name))
    scene.host.run(["rm", tarball(scene.name)])


def imported_beside_original(scene: Scene) -> None:
    """Incus gives the import the uuid of the original. The next acts are about the import."""
    original, scene.name = scene.name, scene.other_name("import")
    scene.incus("import", tarball(original), scene.name)
    scene.host.run(["rm", tarball(original)])
    scene.incus("config", "unset", scene.name, "volatile.eth0.hwaddr")
    scene.incus("delete", "-f", original)


def tarball(name: str) -> str:
    return f"/srv/{name}.tar.gz"


def made_from_image_of_it(scene: Scene) -> None:
    """An instance is made from an image of the first one, which is then deleted."""
    source, scene.name = scene.name, scene.other_name("other")
    scene.incus("stop", source)
    scene.incus("publish", source, "--alias", source, "--compression", "none")
    system = f"user.inx.system={system_of(scene.host)}"
    try:
        scene.incus("init", source, scene.name, "--profile", "inx", "-c", system)
    finally:
        scene.incus("image", "delete", source)
    scene.incus("delete", source)


STOPS = {
    "links hold while an instance is stopped": (
        after(built("thing"), kept="thing"),
        after(stopped, kept="thing"),
        after(started, works("thing"), kept="thing"),
        after(stopped_by_force, kept="thing"),
        after(started, works("thing"), kept="thing"),
        after(unlinked, gone="thing"),
    ),
    "what is linked right before a stop is held": (
        after(built("thing"), stopped_by_force, kept="thing"),
        after(started, works("thing")),
    ),
    "links in a file system that ends with the instance hold until its next start": (
        after(built("thing", "/run/link"), kept="thing"),
        after(stopped, kept="thing"),
        after(started, has_come_up, gone="thing"),
    ),
    "links hold over restarts from outside and from inside": (
        after(built("thing"), restarted, kept="thing"),
        after(works("thing"), rebooted_from_inside, kept="thing"),
        after(works("thing"), built("other", "/root/other"), unlinked, gone="thing", kept="other"),
    ),
    "an instance that is rebuilt lets go of what was linked before": (
        after(built("thing"), rebuilt_empty, link_is_absent, gone="thing"),
        after(built("again"), kept="again"),
    ),
}

SNAPSHOTS = {
    "a snapshot holds until it is deleted, and works when it is restored": (
        after(built("thing"), snapshot, unlinked, kept_by_snapshot="thing"),
        after(restored, works("thing"), snapshot_deleted, kept="thing"),
        after(unlinked, gone="thing"),
    ),
    "what a restored snapshot named is held before the next start": (
        after(built("thing"), snapshot, unlinked, kept_by_snapshot="thing"),
        after(stopped, restored, snapshot_deleted, kept="thing"),
        after(started, works("thing"), unlinked, gone="thing"),
    ),
    "a deleted snapshot holds nothing, whether or not the instance runs": (
        after(built("first"), snapshot, unlinked, kept_by_snapshot="first"),
        after(snapshot_deleted, gone="first"),
        after(built("second"), snapshot, unlinked, kept_by_snapshot="second"),
        after(stopped, kept="second"),
        after(snapshot_deleted, gone="second"),
    ),
    "a snapshot made again under its name is another one": (
        after(built("old"), snapshot, unlinked, kept_by_snapshot="old"),
        after(built("new"), snapshot_deleted, snapshot, unlinked, gone="old", kept="new"),
        after(restored, works("new")),
    ),
}

COPIES = {
    "a copy and its source hold apart from each other": (
        after(built("thing"), copied, unlinked, idle, kept="thing"),
        after(only_the_copy_holds("thing"), turned_to_copy, started, works("thing")),
        after(unlinked, gone="thing"),
    ),
    "a refreshed copy holds what is new in it while its source runs": (
        after(built("one"), copied, kept="one"),
        after(built("two"), copy_refreshed, kept="two"),
        after(built("three"), copy_refreshed, kept="three"),
        after(unlinked, idle, kept="three"),
        after(source_deleted, turned_to_copy, started, works("three")),
    ),
    "a refreshed copy holds what is new in it after its source is deleted": (
        after(built("one"), copied, kept="one"),
        after(built("two"), copy_refreshed, kept="two"),
        after(built("three"), copy_refreshed, kept="three"),
        after(source_deleted, idle, kept="three"),
        after(turned_to_copy, started, works("three")),
    ),
    "snapshots of a copy hold what only they name": (
        after(built("thing"), snapshot, unlinked, kept_by_snapshot="thing"),
        after(copied, source_deleted, kept="thing"),
        after(turned_to_copy, started, has_come_up, kept="thing"),
        after(restored, works("thing"), unlinked, kept_by_snapshot="thing"),
        after(snapshot_deleted, gone="thing"),
    ),
    "a copy of a snapshot holds what the snapshot named": (
        after(built("thing"), snapshot, unlinked, copied_from_snapshot),
        after(source_deleted, kept="thing"),
        after(turned_to_copy, started, works("thing"), unlinked, gone="thing"),
    ),
}

LINK_AND_SNAPSHOT = after(built("thing"), snapshot, built("other"), kept="thing other")
LINK_THEN_SNAPSHOT_GO = (
    after(started, works("other"), unlinked, gone="other", kept="thing"),
    after(snapshot_deleted, gone="thing"),
)
MOVES = {
    "roots follow an instance to another pool": (
        LINK_AND_SNAPSHOT,
        after(moved_to_pool, kept="thing other"),
        *LINK_THEN_SNAPSHOT_GO,
    ),
    "roots follow an instance to another project": (
        LINK_AND_SNAPSHOT,
        after(moved_to_project, kept="thing other"),
        after(only_the_project_has_roots),
        *LINK_THEN_SNAPSHOT_GO,
    ),
    "an import holds what was exported": (
        LINK_AND_SNAPSHOT,
        after(stopped, exported, source_deleted, imported, kept="thing other"),
        *LINK_THEN_SNAPSHOT_GO,
    ),
    "an import beside its original holds what both name": (
        after(built("thing"), exported, imported_beside_original, kept="thing"),
        after(started, works("thing"), unlinked, gone="thing"),
    ),
    "an instance made from an image of another holds what it got from there": (
        after(built("thing"), made_from_image_of_it, kept="thing"),
        after(started, works("thing"), unlinked, gone="thing"),
    ),
}

SITUATIONS = STOPS | SNAPSHOTS | COPIES | MOVES


@pytest.fixture(scope="module", autouse=True)
def pool(host: Host) -> Iterator[None]:
    """A second storage pool."""
    host.run(["incus", "storage", "create", POOL, "dir"])
    yield
    host.run(["incus", "storage", "delete", POOL])


@pytest.fixture(scope="module", autouse=True)
def project(host: Host) -> Iterator[None]:
    """A second project, which shares the profiles of the first one."""
    shared = [word for key in ("images", "profiles") for word in ("-c", f"features.{key}=false")]
    host.run(["incus", "project", "create", PROJECT, *shared])
    yield
    host.run(["incus", "project", "delete", PROJECT])


@pytest.mark.parametrize("steps", SITUATIONS.values(), ids=SITUATIONS)
def test_collections_keep_what_links_name(incus: Incus, steps: tuple[Step, ...]) -> None:
    scene = Scene(incus)
    for number, step in enumerate(steps, 1):
        print(f"step {number}: kept {step.kept!r}, gone {step.gone!r}")
        step.walk(scene)


def test_a_project_that_has_instances_cannot_be_renamed(incus: Incus) -> None:
    """The name of a project is part of the names of roots."""
    incus.init(project=PROJECT, flake="/etc/nixos#web")
    refused = incus("project", "rename", PROJECT, f"{PROJECT}-2", check=False)
    assert refused.returncode != 0 and "empty" in refused.stderr
