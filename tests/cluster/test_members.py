"""Each member of a cluster serves its own instances, and knows that others are elsewhere."""

import json
import time

import pytest
from support.cluster import Cluster
from support.gc import (
    ROOTS,
    STATE,
    assert_gone,
    assert_kept,
    build,
    names_with_roots,
    unlink,
)
from support.incus import Incus
from support.services import check, hanging_incus, stopped_sidecar, sync

pytestmark = pytest.mark.cluster

FILE = "/etc/inx/instances.json"


def launch(incus: Incus, suffix: str = "") -> str:
    """Launch an instance on the member that `incus` is of."""
    return incus.launch(
        "--target", incus.host.name, name=incus.name(suffix), flake="/etc/nixos#web"
    )


def test_each_member_drops_what_its_own_instances_let_go(members: list[Incus]) -> None:
    """Before, an instance of another member counted as a copy that had never run."""
    a, b, c = members
    other = launch(b, "other")
    kept = build(b, other, "kept")
    one = launch(a, "one")
    let_go = build(a, one, "let-go")
    unlink(a, one)
    assert_gone(a, let_go)
    assert_kept(b, kept)
    for incus in members:
        sync(incus.host)
        assert check(incus.host) == (0, [])
    with stopped_sidecar(b.host):  # as if this member never had inx
        b("cluster", "unset", b.host.name, "user.inx.version")
        status, [found] = check(a.host)
        assert status == 1 and "incus move" in found and other in found and b.host.name in found
    a.eventually(lambda: check(a.host) == (0, []), lambda: str(check(a.host)))
    # The configuration is changed by way of a member that does not have the instance.
    c.set(one, "user.inx.activate=test")
    a("config", "set", other, "user.inx.update=1")
    a.wait_status(other, "ready$")


def test_a_member_lets_go_of_an_instance_that_has_started_elsewhere(members: list[Incus]) -> None:
    a, b, _ = members
    name = launch(a)
    uuid = a.uuid(name)
    path = build(a, name, "thing")
    a("stop", "-f", name)
    a("move", name, "--target", b.host.name)
    a.eventually(
        lambda: not a.host.sh(f"ls -d {STATE}/{uuid} /run/inx/{uuid} 2>/dev/null || :").stdout,
        a.story,
    )
    assert_kept(a, path)
    b.start(name)
    b.wait_ready(name)
    a.eventually(lambda: names_with_roots(a.host, uuid) == [], a.story)
    assert_gone(a, path)
    assert names_with_roots(b.host, uuid) == [name]
    assert b.host.run(["ls", ROOTS]).stdout.count(uuid) == 1


def test_a_declared_instance_is_made_where_its_target_says(members: list[Incus]) -> None:
    """It starts there at once; another host that declares it as well is told so."""
    a, b, c = members
    name = a.adopt(a.name())
    document = {
        "version": 1,
        "instances": [
            {
                "name": name, "start": True, "target": b.host.name,
                "config": {"user.inx.flake": "/etc/nixos#web"},
            }
        ],
    }  # fmt: skip

    def converge(incus: Incus) -> tuple[int, list[str], str]:
        incus.host.sh(f"cat >{FILE}", input=json.dumps(document))
        done = incus.host.run(["/opt/inx/bin/inx-sidecar", "converge"], check=False)
        incus.host.run(["rm", FILE])
        return done.returncode, done.stdout.splitlines(), done.stderr

    assert converge(a) == (0, [f"{name}: created", f"{name}: started"], "")
    assert a.info(name)["location"] == b.host.name
    a.wait_ready(name)
    assert converge(a) == (0, [], "")
    status, _, told = converge(c)
    assert status == 31 and "another host declares it as well" in told, told


def test_a_member_that_is_away_stops_nothing_on_the_others(
    cluster: Cluster, members: list[Incus]
) -> None:
    """Incus lists its instances without their configuration."""
    a, _, c = members
    away = launch(c, "away")
    kept = build(c, away, "kept")
    one = launch(a, "one")
    let_go = build(a, one, "let-go")
    with cluster.cut_off(c.host):
        a.eventually(
            lambda: a.info_of_member(c.host.name)["status"] == "Offline",
            lambda: str(a.info_of_member(c.host.name)),
        )
        unlink(a, one)
        assert_gone(a, let_go)
        assert check(a.host) == (0, [])
        flake = a.flake(greeting="new")
        a.set(one, f"user.inx.flake={flake}#web")
        a.wait_generation(one, "2")
        # The member that is cut off goes on, and loses nothing.
        c.host.run(["nix-store", "--gc"])
        assert c.host.sh(f"ls -d {kept}").stdout
        refused = a.host.run(["/root/inx/install", "--uninstall"], check=False)
        assert refused.returncode == 1 and f"default/{one}; delete" in refused.stderr, refused
    a.eventually(
        lambda: a.info_of_member(c.host.name)["status"] == "Online",
        lambda: str(a.info_of_member(c.host.name)),
    )
    assert_kept(c, kept)
    sync(c.host)
    a.set(away, "user.inx.update=1")
    c.wait_status(away, "ready$")


def test_a_comparison_asks_no_other_member(members: list[Incus]) -> None:
    """Before, each list came from all members: one that hangs held all others for 30 seconds."""
    a = members[0]
    let_go = build(a, launch(a), "let-go")
    others = [incus.host for incus in members[1:]]
    other = next(h for h in others if "database-leader" not in a.info_of_member(h.name)["roles"])
    unlink(a, a.name())
    with hanging_incus(other):
        began = time.monotonic()
        sync(a.host)
        assert time.monotonic() - began < 25
    assert_gone(a, let_go)
