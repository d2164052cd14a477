"""An instance that moves takes along its system, its generations and what was built inside."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.cluster import Cluster, address_of
from support.gc import (
    ROOTS,
    STATE,
    assert_kept,
    build,
    collect_when_idle,
    in_store,
    names_with_roots,
    root_name,
)
from support.incus import POOL, Incus
from support.own import build as build_inside
from support.own import is_right
from support.pages import blocks
from support.services import check, journal, sync

pytestmark = pytest.mark.cluster

PAGE = "docs/cluster.md"


@pytest.fixture(scope="module")
def caches(cluster: Cluster) -> None:
    """What docs/cluster.md says on members as caches is done on each member."""
    once, each = [
        block.text
        for block in blocks(PAGE)
        if (block.heading, block.language) == ("Members as caches", "sh")
    ]
    keys = [
        host.sh(
            """ssh-keygen -A >/dev/null; systemctl restart ssh
               cut -d ' ' -f 1,2 /etc/ssh/ssh_host_ed25519_key.pub"""
        ).stdout.strip()
        for host in cluster.members
    ]
    for host in cluster.members:
        host.sh(once)
        for other, key in zip(cluster.members, keys, strict=True):
            if other is not host:
                text = each.replace("ssh-ed25519 AAAA...", key).replace("host1", other.name)
                host.sh(text.replace("192.0.2.1", address_of(cluster, other)))


def launch(incus: Incus, suffix: str = "", **config: str) -> str:
    """Launch an instance on the member that `incus` is of, whose flake no other member has."""
    flake = incus.flake(greeting=f"one of {incus.prefix} {suffix}", directory=f"/srv/{suffix}")
    return incus.launch(
        "--target", incus.host.name, name=incus.name(suffix), flake=f"{flake}#web", **config
    )


def member_of(members: list[Incus], name: str) -> Incus:
    """The member that has the instance now."""
    (found,) = [m for m in members if m.host.name == members[0].info(name)["location"]]
    return found


def wait_arrived(incus: Incus, name: str) -> None:
    """Until the member says that it has what the instance names."""
    key = "user.inx.status.member"
    incus.eventually(lambda: incus.get(name, key).split()[:1] == [incus.host.name], incus.story)


def roots_command(incus: Incus, name: str) -> str:
    return str(incus.host.run(["/opt/inx/bin/inx-sidecar", "roots", name]).stdout)


def assert_rooted(incus: Incus, path: str, uuids: Iterable[str]) -> None:
    """The member has roots of `path` for each of these instances."""
    links = "find -L %s -path '*.%s/*' -samefile %s"
    for uuid in uuids:
        assert incus.host.sh(links % (ROOTS, uuid, path)).stdout, (uuid, incus.story())


def assert_let_go(incus: Incus, name: str, uuid: str) -> None:
    """The member keeps neither roots nor state of the instance."""
    incus.eventually(lambda: names_with_roots(incus.host, uuid) == [], incus.story)
    left = f"ls -d {STATE}/{uuid} /run/inx/{uuid} 2>/dev/null || :"
    incus.eventually(lambda: not incus.host.sh(left).stdout, incus.story)


def test_the_former_member_gives_what_the_instance_needs(
    caches: None, members: list[Incus]
) -> None:
    a, b = members[:2]
    name = launch(a, "web")
    uuid = a.uuid(name)
    one = a.get(name, "user.inx.status.system")
    kept, lost = build(a, name, "kept", link="/root/kept"), build(a, name, "lost", link="/root/x")
    a.flake(greeting="two", directory="/srv/web")
    a.set(name, "user.inx.update=2")
    a.wait_generation(name, "2")
    two = a.get(name, "user.inx.status.system")
    a("stop", "-f", name)
    a("move", name, "--target", b.host.name)
    for incus in (a, b):
        collect_when_idle(incus)
    assert_kept(a, one, two, kept)
    assert f"on the member {b.host.name}" in roots_command(a, name)
    a.eventually(lambda: not a.host.sh(f"ls -d {STATE}/{uuid} || :").stdout, a.story)
    a.lose(lost, f"{ROOTS}/{name}.{uuid}/links/{root_name('/root/x', lost)}")
    sync(a.host)  # it starts the sidecar
    assert not [path for path in (one, two, kept) if in_store(b.host, path)]
    b.start(name)
    b.wait_ready(name)
    said = b.wait_status(name, "ready .*lost")
    assert said.startswith("ready (1 store path that it links is lost (2 fetched)"), said
    assert b.get(name, "user.inx.status.system") == two
    assert f"{name}: lost: '/root/x' -> {lost}" in journal(b.host, name)
    b.run(name, "grep", "kept", "/root/kept")
    assert_let_go(a, name, uuid)
    for incus in (a, b):
        collect_when_idle(incus)
    assert not [path for path in (two, kept) if in_store(a.host, path)]
    assert_kept(b, one, two, kept)
    b.set(name, "user.inx.generation=1")
    b.eventually(lambda: b.get(name, "user.inx.status.system") == one, b.story)


def test_the_former_member_keeps_nothing_longer_than_needed(
    caches: None, members: list[Incus]
) -> None:
    """Copies that never ran, and so moved before their first start, have the roots of a built path
    on the first member."""
    a, b, c = members
    base = launch(a, "base")
    kept = build(a, base, "kept")
    a("stop", "-f", base)
    project = a.name("project")
    a("project", "create", project, "-c", "features.profiles=false", "-c", "features.images=false")
    here = ("--target", a.host.name)
    names = {each: a.adopt(a.name(each)) for each in ("deleted", "back", "third", "renamed")}
    for name in names.values():
        a("copy", base, name, *here)
    named = a.adopt(a.name("other"), project)
    a("copy", base, named, *here, "--target-project", project)
    uuids = {each: a.uuid(name) for each, name in names.items()}
    uuids["named"] = a.uuid(named, project)
    sync(a.host)
    assert_rooted(a, kept, uuids.values())
    a("delete", "-f", base)
    for name in names.values():
        a("move", name, "--target", b.host.name)
    a("move", named, "--project", project, "--target", b.host.name)
    a("move", names["back"], "--target", a.host.name)
    a("move", names["third"], "--target", c.host.name)
    renamed = a.adopt(a.name("another"))
    a("rename", names["renamed"], renamed)
    for incus in members:
        collect_when_idle(incus)
    assert_rooted(a, kept, uuids.values())
    a("delete", names["deleted"])
    assert_let_go(a, "deleted", uuids["deleted"])
    for incus, name, where, which in (
        (b, renamed, "default", "renamed"),
        (c, names["third"], "default", "third"),
        (b, named, project, "named"),
    ):
        incus.start(name, where)
        incus.wait_ready(name, where)
        for other in members:
            if other is not incus:
                assert_let_go(other, name, uuids[which])
    assert_rooted(a, kept, [uuids["back"]])
    assert "on the member" not in roots_command(a, names["back"])
    a("delete", names["back"])
    assert_let_go(a, names["back"], uuids["back"])
    a("delete", "-f", named, "--project", project)
    a("project", "delete", project)
    collect_when_idle(a)
    assert not in_store(a.host, kept) and in_store(b.host, kept) and in_store(c.host, kept)


def test_an_evacuation_and_a_restoration_carry_all_and_leave_nothing(
    caches: None, members: list[Incus]
) -> None:
    a = members[0]
    name, vault = launch(a, "moving"), launch(a, "vault", store="isolated")
    uuids = [a.uuid(name), a.uuid(vault)]
    system = a.get(name, "user.inx.status.system")
    kept = build(a, name, "kept")
    for host in (member.host for member in members[1:]):
        host.push(a.host.root, ["srv/vault"], "/")  # it is built anew on another host
    a("cluster", "evacuate", a.host.name, "--force")
    try:
        there = member_of(members, name)
        assert there is not a and member_of(members, vault) is not a
        there.wait_ready(name)
        member_of(members, vault).wait_ready(vault)
        assert there.get(name, "user.inx.status.system") == system
        wait_arrived(there, name)
        assert in_store(there.host, kept)
        for uuid in uuids:
            assert_let_go(a, name, uuid)
        collect_when_idle(a)
        assert not in_store(a.host, kept) and not in_store(a.host, system)
        sync(there.host)
        assert_kept(there, system, kept)
    finally:
        a("cluster", "restore", a.host.name, "--force")
    assert member_of(members, name) is a
    a.wait_ready(name)
    a.wait_ready(vault)
    wait_arrived(a, name)
    assert in_store(a.host, kept)
    assert_let_go(there, name, uuids[0])
    assert_kept(a, system, kept)
    assert [check(member.host) for member in members] == [(0, [])] * len(members)


def test_a_store_of_its_own_moves_and_shows_what_that_member_has(
    caches: None, members: list[Incus]
) -> None:
    """Its flake gives another system there, so what was built against the former one is told."""
    a, b = members[:2]
    name = launch(a, "own", store="own")
    uuid = a.uuid(name)
    former = a.get(name, "user.inx.status.system")
    box = a.sh(name, "ls -d /nix/store/*-busybox").stdout.strip()
    build_inside(a, name, "kept", box, "/root/kept")
    build_inside(a, name, "lost", former, "/root/lost")
    is_right(a, name)
    a("stop", "-f", name)
    b.flake(greeting="another", directory="/srv/own")
    for here, there, told in ((a, b, "ready .2 store paths .* lack what"), (b, a, "ready$")):
        a("move", name, "--target", there.host.name)
        there.start(name)
        there.wait_inside(name)
        there.wait_status(name, told)
        assert_let_go(here, name, uuid)
        collect_when_idle(there)
        there.sh(name, "nix-store --gc")
        is_right(there, name)
        assert there.inside(name, "test -x /root/kept/part/bin/sh && ! test -e /root/lost")
        assert (there.get(name, "user.inx.status.system") == former) == (there is a)
        there("stop", "-f", name)
    assert [check(member.host) for member in members] == [(0, [])] * len(members)


def test_a_member_that_dies_during_a_move_takes_nothing_with_it(
    members: list[Incus],
) -> None:
    """Its Incus and its sidecar are killed while it gets the files. Incus fails the move, and
    leaves a part of the files on that member."""
    a, b = members[:2]
    name, other = launch(a, "web"), launch(b, "other")
    uuid = a.uuid(name)
    kept, others = build(a, name, "kept"), build(b, other, "others")
    a.sh(name, "head -c 300000000 /dev/urandom >/root/big")
    a("stop", "-f", name)
    dies = f"""
        until [ -e {POOL}/{name} ]; do sleep 0.01; done
        systemctl kill --signal=KILL incus.service inx-sidecar.service
    """
    with ThreadPoolExecutor() as threads:
        moving = threads.submit(a, "move", name, "--target", b.host.name, check=False)
        b.host.sh(dies)
        assert moving.result().returncode != 0
    b.eventually(lambda: check(b.host) == (0, []), lambda: str(check(b.host)))
    assert member_of(members, name) is a
    for incus in (a, b):
        sync(incus.host)
        collect_when_idle(incus)
    assert in_store(a.host, kept) and in_store(b.host, others)
    a.start(name)
    a.wait_ready(name)
    a.run(name, "grep", "kept", "/root/link")
    assert names_with_roots(b.host, uuid) == []


def test_a_host_that_is_killed_during_a_move_comes_back_with_its_roots(
    caches: None, cluster: Cluster, members: list[Incus]
) -> None:
    """All of the member that gets the files dies, as without power. What was moved there before
    the crash, and never started, still has its roots on the former member."""
    a, b, _ = members
    name, other, waits = launch(a, "web"), launch(b, "other"), launch(a, "waits")
    uuids = {each: a.uuid(each) for each in (name, other, waits)}
    kept, others, waited = (
        build(a, name, "kept"),
        build(b, other, "others"),
        build(a, waits, "wait"),
    )
    a.sh(name, "head -c 300000000 /dev/urandom >/root/big")
    for each in (name, waits):
        a("stop", "-f", each)
    a("move", waits, "--target", b.host.name)
    with ThreadPoolExecutor() as threads:
        moving = threads.submit(a, "move", name, "--target", b.host.name, check=False)
        b.host.sh(f"until [ -e {POOL}/{name} ]; do sleep 0.01; done")
        cluster.boot_after_crash(b.host)
        assert moving.result().returncode != 0
    b.eventually(lambda: check(b.host) == (0, []), lambda: str(check(b.host)))
    for incus in members:
        sync(incus.host)
        collect_when_idle(incus)
    assert member_of(members, name) is a
    assert names_with_roots(b.host, uuids[name]) == []
    assert_rooted(a, kept, [uuids[name]])
    assert_rooted(a, waited, [uuids[waits]])
    assert in_store(b.host, others) and not in_store(b.host, waited)
    b.start(waits)
    b.wait_ready(waits)
    wait_arrived(b, waits)
    assert in_store(b.host, waited)
    assert_let_go(a, waits, uuids[waits])
    a.start(name)
    a.wait_ready(name)
    a.run(name, "grep", "kept", "/root/link")
    for incus in members:
        lines = incus.host.sh("journalctl -u inx-sidecar --since=-60s -o cat").stdout.splitlines()
        assert len(lines) < 200, f"it repeats itself: {lines[-20:]}"
