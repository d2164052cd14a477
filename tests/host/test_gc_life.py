"""What an instance holds outlives a collection through all that Incus does with the instance."""

from collections.abc import Callable, Iterator

import pytest
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.gc

GCROOTS = "/nix/var/nix/gcroots/inx"
CONTAINERS = "/var/lib/incus/storage-pools/default/containers"
SYSTEM = "/srv/life-system"
POOL = "life"
PROJECT = "life"
SIDECAR = "inx-sidecar.service"
UNITS = ["inx-sidecar.socket", SIDECAR]
HOLD = "/run/hold-sidecar"
DROP_IN = "/run/systemd/system/inx-sidecar.service.d/hold.conf"
EARLY = "/etc/systemd/system/early-gc.service"

THING = """{ name, args ? [ "-c" "echo $name > $out" ] }: derivation {
  inherit name args; system = builtins.currentSystem; builder = "/bin/sh";
}
"""


@pytest.fixture(scope="module", autouse=True)
def system(host: Host) -> None:
    """What most instances here start, so that nothing is built for them."""
    host.run(["nix-build", "/etc/nixos", "-A", "web", "-o", SYSTEM])


@pytest.fixture(scope="module")
def pool(host: Host) -> Iterator[str]:
    """Another storage pool."""
    host.run(["incus", "storage", "create", POOL, "dir"])
    yield POOL
    host.run(["incus", "storage", "delete", POOL])


@pytest.fixture(scope="module")
def project(host: Host) -> Iterator[str]:
    """Another project, which shares the profiles of the first."""
    shared = [word for key in ("images", "profiles") for word in ("-c", f"features.{key}=false")]
    host.run(["incus", "project", "create", PROJECT, *shared])
    yield PROJECT
    host.run(["incus", "project", "delete", PROJECT])


@pytest.fixture
def no_sidecar(host: Host) -> Iterator[Callable[[], None]]:
    """Ends the sidecar and its socket until the result is called, or the test is over."""

    def start() -> None:
        host.run(["systemctl", "start", *UNITS])

    host.run(["systemctl", "stop", *UNITS])
    yield start
    start()


def launch(incus: Incus, suffix: str = "", project: str = "default") -> str:
    return incus.launch(name=incus.name(suffix), project=project, system=SYSTEM)


def build(
    incus: Incus, name: str, what: str, *, link: str = "/root/link", project: str = "default"
) -> str:
    """Build something inside that nobody else has, and link it."""
    script = f"cat >/root/thing.nix; nix-build /root/thing.nix --argstr name {incus.name(what)}"
    script += f" -o {link}"
    incus.sh(name, script, input=THING, project=project)
    return incus.said(name, "readlink", link, project=project).strip()


def works(incus: Incus, name: str, what: str, project: str = "default") -> None:
    """The link that was made inside leads to what was built there."""
    incus.wait_inside(name, project)
    incus.run(name, "grep", "-qxF", incus.name(what), "/root/link", project=project)


def unlink(incus: Incus, name: str, link: str = "/root/link", project: str = "default") -> None:
    incus.run(name, "rm", link, project=project)


def there(host: Host, path: str) -> bool:
    return host.run(["test", "-e", path], check=False).returncode == 0


def idle(incus: Incus) -> None:
    """Until Incus has nothing to do: nothing is dropped before."""

    def holds() -> bool:
        found = incus.json("query", "/1.0/operations?recursion=1&all-projects=true")
        tasks = [each for kind in found.values() for each in kind if each["class"] == "task"]
        return not [each for each in tasks if each["status_code"] < 200]

    incus.eventually(holds, lambda: incus("operation", "list", "--all-projects").stdout)


def collect(host: Host) -> None:
    host.run(["nix-store", "--gc"])


def kept(incus: Incus, *paths: str) -> None:
    """They outlive a collection at this very moment, whatever Incus may be at."""
    collect(incus.host)
    lost = [path for path in paths if not there(incus.host, path)]
    assert not lost, f"collected: {lost}\n{roots(incus.host)}\n{incus.story()}"


def kept_by_snapshot(incus: Incus, *paths: str) -> None:
    """They outlive a collection, and snapshots alone hold them."""
    idle(incus)
    kept(incus, *paths)
    for path in paths:
        holders = [line for line in roots(incus.host).splitlines() if line.endswith(f"-> {path}")]
        assert holders and all("/snapshots/" in holder for holder in holders), holders


def gone(incus: Incus, *paths: str) -> None:
    """They were there, and do not outlive a collection."""
    assert all(there(incus.host, path) for path in paths)
    idle(incus)
    collect(incus.host)
    left = [path for path in paths if there(incus.host, path)]
    told = [incus.host.run(["nix-store", "--query", "--roots", path]).stdout for path in left]
    assert not left, f"kept: {left} by {told}\n{incus.story()}"


def roots(host: Host) -> str:
    return host.run(["find", GCROOTS, "-type", "l", "-printf", "%P -> %l\n"]).stdout


def holders(host: Host, path: str) -> set[str]:
    """The instances that hold `path`."""
    lines = [line for line in roots(host).splitlines() if line.endswith(f" -> {path}")]
    return {line.partition("/")[0].partition(".")[0] for line in lines}


def owners_of(host: Host, uuid: str) -> list[str]:
    """The names under which the instance with this uuid has roots."""
    present = host.run(["ls", GCROOTS]).stdout.split()
    return [each.removesuffix(f".{uuid}") for each in present if each.endswith(f".{uuid}")]


def journal(host: Host) -> str:
    return host.run(["journalctl", "-u", "inx-sidecar", "-b", "-o", "cat", "--no-pager"]).stdout


def leftovers(host: Host, name: str, uuid: str) -> str:
    """All that the host has of an instance, but the log of its last build, which stays a while."""
    script = """
        for path in $ROOTS/$NAME.* $ROOTS/*.$ID /var/lib/inx/$ID /run/inx/$ID; do
            if [ -e "$path" ]; then echo "$path"; fi
        done
        systemctl list-units --all --plain --no-legend "inx-*$ID*"
        systemctl list-sockets --all --plain --no-legend "inx-*$ID*"
        cat /proc/[0-9]*/mountinfo 2>/dev/null | grep -F -e $ID -e "containers/$NAME/" || :
        pgrep -af -- $ID || :
    """
    return host.sh(script, env={"ROOTS": GCROOTS, "NAME": name, "ID": uuid}).stdout


def nothing_is_left(incus: Incus, name: str, uuid: str) -> None:
    """Soon, and without any collection."""
    incus.eventually(
        lambda: leftovers(incus.host, name, uuid) == "",
        lambda: f"{leftovers(incus.host, name, uuid)}\n{incus.story()}",
    )


def test_links_hold_while_an_instance_is_stopped(incus: Incus) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    kept(incus, path)
    for force in ([], ["-f"]):
        incus("stop", name, *force)
        kept(incus, path)
        incus.start(name)
        works(incus, name, "thing")
        kept(incus, path)
    unlink(incus, name)
    gone(incus, path)


def test_what_was_linked_right_before_a_stop_is_held(incus: Incus) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("stop", "-f", name)
    kept(incus, path)
    incus.start(name)
    works(incus, name, "thing")


@pytest.mark.parametrize("link", ["/root/link", "/root/new"], ids=["same-link", "new-link"])
def test_what_was_linked_and_stopped_while_no_sidecar_ran_is_held(
    incus: Incus, host: Host, no_sidecar: Callable[[], None], link: str
) -> None:
    no_sidecar()
    name = launch(incus)
    kept(incus, build(incus, name, "before"))
    host.run(["systemctl", "stop", *UNITS])
    path = build(incus, name, "thing", link=link)
    incus("stop", "-f", name)
    assert holders(host, path) == set()
    no_sidecar()
    kept(incus, path)
    incus.start(name)
    incus.wait_inside(name)
    incus.run(name, "grep", "-qxF", incus.name("thing"), link)
    unlink(incus, name, link)
    gone(incus, path)


def test_links_in_a_file_system_that_ends_with_the_instance_go_at_its_next_start(
    incus: Incus,
) -> None:
    name = launch(incus)
    path = build(incus, name, "thing", link="/run/link")
    kept(incus, path)
    incus("stop", name)
    kept(incus, path)
    incus.start(name)
    incus.wait_inside(name)
    gone(incus, path)


def test_links_hold_over_restarts_from_outside_and_inside(incus: Incus) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("restart", name)
    kept(incus, path)
    works(incus, name, "thing")
    before = incus.pid(name)
    incus.run(name, "reboot", check=False)
    incus.host.run(["nix-store", "--gc"])
    incus.eventually(lambda: incus.pid(name) not in (0, before), incus.story)
    kept(incus, path)
    works(incus, name, "thing")
    other = build(incus, name, "other", link="/root/other")
    unlink(incus, name)
    gone(incus, path)
    kept(incus, other)


def test_roots_follow_a_rename(incus: Incus, host: Host) -> None:
    name = launch(incus)
    uuid = incus.uuid(name)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    other = build(incus, name, "other")
    kept(incus, path, other)
    incus("stop", name)
    new, newest = incus.adopt(incus.name("new")), incus.adopt(incus.name("newest"))
    incus("rename", name, new)
    kept(incus, path, other)
    assert holders(host, other) >= {new}
    # Without a collection, too.
    incus("rename", new, newest)
    assert incus.uuid(newest) == uuid
    incus.eventually(lambda: owners_of(host, uuid) == [newest], incus.story)
    kept(incus, path, other)
    incus.start(newest)
    works(incus, newest, "other")
    unlink(incus, newest)
    gone(incus, other)
    kept_by_snapshot(incus, path)
    incus("snapshot", "delete", newest, "snap")
    gone(incus, path)


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_a_copy_that_never_started_holds_all_after_its_source_is_deleted(
    incus: Incus, host: Host, running: bool
) -> None:
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
    kept(incus, path, system)
    host.run(["rm", "-r", flake])
    incus.start(copy)
    works(incus, copy, "thing")
    incus.run(copy, "grep", "-qxF", incus.name("copied"), "/etc/greeting")
    kept(incus, path, system)
    unlink(incus, copy)
    gone(incus, path)
    incus("delete", "-f", copy)
    gone(incus, system)


def test_a_copy_and_its_source_hold_apart_from_each_other(incus: Incus) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    copy = incus.adopt(incus.name("copy"))
    incus("copy", name, copy)
    unlink(incus, name)
    idle(incus)
    kept(incus, path)
    assert holders(incus.host, path) == {copy}
    incus.start(copy)
    works(incus, copy, "thing")
    unlink(incus, copy)
    gone(incus, path)


@pytest.mark.parametrize("deleted", [False, True], ids=["source-runs", "source-deleted"])
def test_a_refreshed_copy_holds_what_is_new_in_it(incus: Incus, deleted: bool) -> None:
    name = launch(incus)
    copy = incus.adopt(incus.name("copy"))
    for what in "one", "two", "three":
        path = build(incus, name, what)
        incus("copy", name, copy, *(["--refresh"] if what != "one" else []))
        kept(incus, path)
    if deleted:
        incus("delete", "-f", name)
    else:
        unlink(incus, name)
    idle(incus)
    kept(incus, path)
    if not deleted:
        incus("delete", "-f", name)
    incus.start(copy)
    works(incus, copy, "three")


def test_a_copy_made_while_a_collection_runs_holds_all(incus: Incus, host: Host) -> None:
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
    kept(incus, path, other)
    incus.start(copy)
    works(incus, copy, "other")


def test_snapshots_of_a_copy_hold_what_only_they_name(incus: Incus) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    unlink(incus, name)
    kept_by_snapshot(incus, path)
    copy = incus.adopt(incus.name("copy"))
    incus("copy", name, copy)
    incus("delete", "-f", name)
    kept(incus, path)
    incus.start(copy)
    incus.wait_inside(copy)
    kept(incus, path)
    incus("snapshot", "restore", copy, "snap")
    works(incus, copy, "thing")
    unlink(incus, copy)
    kept_by_snapshot(incus, path)
    incus("snapshot", "delete", copy, "snap")
    gone(incus, path)


def test_a_copy_of_a_snapshot_holds_what_the_snapshot_named(incus: Incus) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    unlink(incus, name)
    copy = incus.adopt(incus.name("copy"))
    incus("copy", f"{name}/snap", copy)
    incus("delete", "-f", name)
    kept(incus, path)
    incus.start(copy)
    works(incus, copy, "thing")
    unlink(incus, copy)
    gone(incus, path)


def test_a_snapshot_holds_until_it_is_deleted_and_works_when_restored(incus: Incus) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    unlink(incus, name)
    kept_by_snapshot(incus, path)
    incus("snapshot", "restore", name, "snap")
    works(incus, name, "thing")
    incus("snapshot", "delete", name, "snap")
    kept(incus, path)
    unlink(incus, name)
    gone(incus, path)


def test_what_a_restored_snapshot_named_is_held_before_the_next_start(incus: Incus) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    unlink(incus, name)
    kept_by_snapshot(incus, path)
    incus("stop", name)
    incus("snapshot", "restore", name, "snap")
    incus("snapshot", "delete", name, "snap")
    kept(incus, path)
    incus.start(name)
    works(incus, name, "thing")
    unlink(incus, name)
    gone(incus, path)


def test_a_deleted_snapshot_holds_nothing_whether_or_not_the_instance_runs(incus: Incus) -> None:
    name = launch(incus)
    for stopped in False, True:
        path = build(incus, name, f"thing-{stopped}".lower())
        incus("snapshot", "create", name, "snap")
        unlink(incus, name)
        kept_by_snapshot(incus, path)
        if stopped:
            incus("stop", name)
            kept(incus, path)
        incus("snapshot", "delete", name, "snap")
        gone(incus, path)


def test_a_snapshot_made_again_under_its_name_is_another(incus: Incus) -> None:
    name = launch(incus)
    old = build(incus, name, "old")
    incus("snapshot", "create", name, "snap")
    unlink(incus, name)
    kept_by_snapshot(incus, old)
    new = build(incus, name, "new")
    incus("snapshot", "delete", name, "snap")
    incus("snapshot", "create", name, "snap")
    unlink(incus, name)
    gone(incus, old)
    kept(incus, new)
    incus("snapshot", "restore", name, "snap")
    works(incus, name, "new")


def test_a_renamed_snapshot_holds_what_it_held(incus: Incus, host: Host) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "one")
    unlink(incus, name)
    kept_by_snapshot(incus, path)
    incus("snapshot", "rename", name, "one", "two")
    kept(incus, path)
    held = host.run(["ls", f"{GCROOTS}/{name}.{incus.uuid(name)}/snapshots"]).stdout.split()
    assert len(held) == 1 and held[0].startswith("two.")
    incus("snapshot", "delete", name, "two")
    gone(incus, path)


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
        kept_by_snapshot(incus, old)

    update("2")
    incus("snapshot", "restore", name, "snap")
    incus.wait_inside(name)
    assert incus.said(name, "readlink", "/run/current-system").strip() == old
    update("3")
    incus("snapshot", "delete", name, "snap")
    gone(incus, old)


def test_a_rebuild_lets_go_of_what_was_linked_before(incus: Incus) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("stop", name)
    incus("rebuild", name, "--empty")
    incus.start(name)
    incus.wait_ready(name)
    assert incus.run(name, "ls", "/root/link", check=False).returncode != 0
    gone(incus, path)
    path = build(incus, name, "again")
    kept(incus, path)


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_nothing_is_left_of_an_instance_that_is_deleted(
    incus: Incus, host: Host, running: bool
) -> None:
    flake = incus.flake(greeting=incus.name("deleted"))
    name = incus.launch(flake=f"{flake}#web")
    uuid = incus.uuid(name)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    kept(incus, path)
    found = leftovers(host, name, uuid)
    for what in (
        f"{GCROOTS}/{name}.{uuid}",
        f"/var/lib/inx/{uuid}",
        f"/run/inx/{uuid}",
        f"inx-nix-daemon@{uuid}.socket",
        f"inx-nix-daemon@{uuid}.service",
        f"/{uuid}/gcroots /nix/var/nix/gcroots",
    ):
        assert what in found, found
    if not running:
        incus("stop", name)
    incus("delete", "-f", name)
    nothing_is_left(incus, name, uuid)
    gone(incus, path)


def test_nothing_is_left_of_an_ephemeral_instance_that_stopped(incus: Incus) -> None:
    name = incus.launch("--ephemeral", system=SYSTEM)
    uuid = incus.uuid(name)
    path = build(incus, name, "thing")
    kept(incus, path)
    incus("stop", name)
    nothing_is_left(incus, name, uuid)
    gone(incus, path)


def test_an_instance_that_takes_the_name_of_a_deleted_one_holds_nothing_of_it(
    incus: Incus, host: Host
) -> None:
    name = launch(incus)
    uuid = incus.uuid(name)
    path = build(incus, name, "thing")
    incus("delete", "-f", name)
    launch(incus)
    assert incus.uuid(name) != uuid
    gone(incus, path)
    incus.eventually(lambda: uuid not in host.run(["ls", "/var/lib/inx"]).stdout, incus.story)
    assert owners_of(host, uuid) == []
    new = build(incus, name, "new")
    kept(incus, new)


def test_what_was_deleted_while_no_sidecar_ran_is_cleaned_up_later(
    incus: Incus, host: Host, no_sidecar: Callable[[], None]
) -> None:
    no_sidecar()
    name = launch(incus)
    uuid = incus.uuid(name)
    path = build(incus, name, "thing")
    incus("stop", name)
    kept(incus, path)
    host.run(["systemctl", "stop", *UNITS])
    incus("delete", name)
    kept(incus, path)
    assert f"{name}.{uuid}" in leftovers(host, name, uuid)
    no_sidecar()
    nothing_is_left(incus, name, uuid)
    gone(incus, path)


def test_an_import_holds_what_was_exported(incus: Incus, host: Host) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    other = build(incus, name, "other")
    kept(incus, path, other)
    incus("stop", name)
    tarball = f"/srv/{name}.tar.gz"
    incus("export", name, tarball)
    incus("delete", name)
    incus("import", tarball)
    host.run(["rm", tarball])
    kept(incus, path, other)
    incus.start(name)
    works(incus, name, "other")
    unlink(incus, name)
    gone(incus, other)
    kept(incus, path)
    incus("snapshot", "delete", name, "snap")
    gone(incus, path)


def test_an_import_beside_its_original_holds_what_both_name(incus: Incus, host: Host) -> None:
    """Incus gives it the uuid of the original."""
    name = launch(incus)
    path = build(incus, name, "thing")
    tarball, other = f"/srv/{name}.tar.gz", incus.adopt(incus.name("import"))
    incus("export", name, tarball)
    incus("import", tarball, other)
    host.run(["rm", tarball])
    incus("config", "unset", other, "volatile.eth0.hwaddr")
    incus("delete", "-f", name)
    kept(incus, path)
    incus.start(other)
    works(incus, other, "thing")
    unlink(incus, other)
    gone(incus, path)


def test_an_instance_made_from_an_image_of_another_holds_what_it_brought(
    incus: Incus, host: Host
) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("stop", name)
    incus("publish", name, "--alias", name, "--compression", "none")
    other = incus.adopt(incus.name("other"))
    try:
        incus("init", name, other, "--profile", "inx", "-c", f"user.inx.system={SYSTEM}")
    finally:
        incus("image", "delete", name)
    incus("delete", name)
    kept(incus, path)
    incus.start(other)
    works(incus, other, "thing")
    unlink(incus, other)
    gone(incus, path)


def test_roots_follow_a_move_to_another_pool(incus: Incus, pool: str) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    other = build(incus, name, "other")
    incus("stop", name)
    incus("move", name, "--storage", pool)
    kept(incus, path, other)
    incus.start(name)
    works(incus, name, "other")
    unlink(incus, name)
    gone(incus, other)
    kept(incus, path)
    incus("snapshot", "delete", name, "snap")
    gone(incus, path)


def test_roots_follow_a_move_to_another_project(incus: Incus, host: Host, project: str) -> None:
    name = launch(incus)
    uuid = incus.uuid(name)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    other = build(incus, name, "other")
    incus("stop", name)
    incus.adopt(name, project)
    incus("move", name, "--target-project", project)
    kept(incus, path, other)
    idle(incus)
    collect(host)
    assert owners_of(host, uuid) == owners_of(host, incus.uuid(name, project))
    assert owners_of(host, uuid) == [f"{project}_{name}"]
    incus.start(name, project)
    works(incus, name, "other", project)
    unlink(incus, name, project=project)
    gone(incus, other)
    kept(incus, path)
    incus("snapshot", "delete", name, "snap", "--project", project)
    gone(incus, path)


def test_a_project_that_has_instances_cannot_be_renamed(incus: Incus, project: str) -> None:
    incus.init(project=project, flake="/etc/nixos#web")
    refused = incus("project", "rename", project, f"{project}-2", check=False)
    assert refused.returncode != 0 and "empty" in refused.stderr


@pytest.mark.parametrize("deleted", [False, True], ids=["readable-again", "deleted"])
def test_a_copy_that_cannot_be_read_holds_back_all_drops(
    incus: Incus, host: Host, no_sidecar: Callable[[], None], deleted: bool
) -> None:
    no_sidecar()
    name, other = launch(incus), launch(incus, "other")
    path, unneeded = build(incus, name, "thing"), build(incus, other, "unneeded")
    kept(incus, path, unneeded)
    incus("stop", name)
    copy = incus.adopt(incus.name("copy"))
    place, away = f"{CONTAINERS}/{copy}", f"/var/lib/incus/{copy}"
    # A sidecar that runs would have read it before it can be taken away.
    host.run(["systemctl", "stop", *UNITS])
    incus("copy", name, copy)
    host.run(["mv", place, away])
    try:
        no_sidecar()
        incus("delete", name)
        unlink(incus, other)
        kept(incus, path, unneeded)
        assert f"{copy}: its storage is not mounted" in journal(host)
        told = host.run(["/opt/inx/bin/inx-sidecar", "sync"]).stdout
        assert f"'{copy}' is a copy that has never been started" in told
    finally:
        if not deleted:
            host.run(["mv", away, place])
    if deleted:
        incus("delete", copy)
        gone(incus, path, unneeded)
        host.run(["rm", "-r", away])
        return
    gone(incus, unneeded)
    kept(incus, path)
    incus.start(copy)
    works(incus, copy, "thing")


def test_an_entry_that_incus_does_not_know_holds_nothing_back_in_silence(
    incus: Incus, host: Host
) -> None:
    """As an operation of Incus that was cut short may leave behind."""
    name = launch(incus)
    path = build(incus, name, "thing")
    entry = f"/var/lib/incus/containers/{incus.name('leftover')}"
    host.run(["mkdir", entry])
    try:
        unlink(incus, name)
        idle(incus)
        collect(host)
        told = host.run(["/opt/inx/bin/inx-sidecar", "sync"]).stdout
        assert not there(host, path) or "nothing was dropped" in told, told
    finally:
        host.run(["rmdir", entry])


def test_links_outlive_a_crash_of_incus(incus: Incus, host: Host) -> None:
    name = launch(incus)
    before = build(incus, name, "before")
    pid = incus.pid(name)
    host.run(["systemctl", "kill", "--signal=KILL", "incus.service"])
    host.run(["nix-store", "--gc"])
    assert there(host, before)
    incus.eventually(lambda: incus.pid(name) == pid, incus.story)
    works(incus, name, "before")
    after = build(incus, name, "after", link="/root/after")
    kept(incus, before, after)
    unlink(incus, name)
    gone(incus, before)
    kept(incus, after)


def test_a_collection_waits_for_the_sidecar_that_follows_one_that_crashed(
    incus: Incus, host: Host
) -> None:
    name = launch(incus)
    before = build(incus, name, "before", link="/root/before")
    gate = f"[Service]\nExecStartPre=sh -c 'while [ -e {HOLD} ]; do sleep 0.05; done'\n"
    host.sh(
        'mkdir -p "${D%/*}"; cat >"$D"; systemctl daemon-reload', env={"D": DROP_IN}, input=gate
    )
    try:
        host.run(["touch", HOLD])
        host.run(["systemctl", "kill", "--signal=KILL", SIDECAR])
        # It cannot come back: what is registered now is seen by nobody.
        path = build(incus, name, "thing")
        unlink(incus, name, "/root/before")
        assert path not in roots(host) and before in roots(host)
        host.sh(f"""
            nix-store --gc & collection=$!
            until ss -Hxl src /run/inx/sidecar.sock | awk '{{ exit !$3 }}'; do sleep 0.05; done
            kill -0 $collection
            rm {HOLD}
            wait $collection
        """)
        assert path in roots(host) and there(host, path)
        assert before not in roots(host) and not there(host, before)
    finally:
        host.sh(f'rm -f {HOLD} "$D"; systemctl daemon-reload', env={"D": DROP_IN})
    works(incus, name, "thing")
    kept(incus, path)
    unlink(incus, name)
    gone(incus, path)


def test_links_outlive_a_crash_of_the_instances_nix_daemon(incus: Incus, host: Host) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    unit = f"inx-nix-daemon@{incus.uuid(name)}.service"
    kill = ["systemctl", "kill", "--signal=KILL", unit]
    host.run(kill)
    kept(incus, path)
    # The build ends with its daemon, and a link to what is not there is never made.
    endless = """nix-build /root/thing.nix --argstr name $N-endless -o /root/endless \
        --arg args '[ "-c" "while :; do :; done" ]' >/root/log 2>&1 & echo $!"""
    incus.sh(name, endless.replace("$N", incus.prefix))
    incus.eventually(lambda: "building '" in incus.said(name, "cat", "/root/log"), incus.story)
    host.run(kill)
    incus.eventually(lambda: "error: " in incus.said(name, "cat", "/root/log"), incus.story)
    assert incus.run(name, "test", "-L", "/root/endless", check=False).returncode == 1
    kept(incus, path)
    after = build(incus, name, "after", link="/root/after")
    kept(incus, path, after)
    unlink(incus, name)
    gone(incus, path)
    kept(incus, after)


def test_roots_stand_before_the_first_collection_after_a_reboot(incus: Incus, host: Host) -> None:
    unit = """
        [Service]
        Type=oneshot
        ExecStart=nix-store --gc
        [Install]
        WantedBy=multi-user.target
    """
    host.sh(f"cat >{EARLY}; systemctl enable {EARLY.rpartition('/')[2]}", input=unit)
    running, stopped = launch(incus, "running"), launch(incus, "stopped")
    held = build(incus, stopped, "stopped")
    incus("snapshot", "create", stopped, "snap")
    only = build(incus, stopped, "only")
    incus("stop", stopped)
    path = build(incus, running, "running")
    host.reboot()
    done = host.run(["journalctl", "-b", "-u", "early-gc", "--no-pager"]).stdout
    assert "store paths deleted" in done
    assert all(there(host, each) for each in (path, held, only)), roots(host)
    for each in path, held, only:
        assert f"-> {each}\n" in roots(host)
    kept(incus, path, held, only)
    works(incus, running, "running")
    incus.start(stopped)
    works(incus, stopped, "only")
    unlink(incus, running)
    unlink(incus, stopped)
    gone(incus, path, only)
    kept(incus, held)
