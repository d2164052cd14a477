"""The view of an isolated instance while systems are built, pinned and sealed."""

import pytest
from support.disposable import Host
from support.incus import Incus
from support.isolated import (
    LOOK_INSIDE,
    entries_inside,
    init_of,
    is_collected,
    isolated,
    made,
    names,
    restart,
    sees_its_closure_alone,
    things,
)
from support.running import says
from support.services import kill_sidecar, property_of, restart_sidecar, sync
from support.store import closure, exists

pytestmark = pytest.mark.isolated

KEY = "/var/lib/inx/seal.key"


def nothing_is_seen(host: Host, init: int) -> bool:
    script = 'd=/proc/$0/root; [ -d $d/dev/.inx ] && [ -z "$(ls -A $d/nix/store 2>/dev/null)" ]'
    return host.run(["sh", "-euc", script, str(init)], check=False).returncode == 0


@pytest.mark.parametrize("sidecar", ["lives", "is killed"])
def test_nothing_is_seen_while_a_build_is_pending(incus: Incus, host: Host, sidecar: str) -> None:
    path = made(incus, "directory")[0]
    name = incus.init(store="isolated", file=things(incus), attr="late", store_include=path)
    incus.start(name)
    incus.eventually(lambda: "step one of the slow build" in incus.console(name), incus.story)
    init = init_of(incus, name)
    assert nothing_is_seen(host, init)
    if sidecar == "is killed":
        before = property_of(host, "MainPID")
        kill_sidecar(host)
        incus.eventually(lambda: property_of(host, "MainPID") not in (before, "0"), incus.story)
    assert not exists(host, f"/run/inx/{incus.uuid(name)}/boot/ready")
    assert nothing_is_seen(host, init)
    incus.wait_ready(name)
    system = sees_its_closure_alone(incus, name, path)
    assert init_of(incus, name) == init
    restart(incus, name)
    assert sees_its_closure_alone(incus, name, path) == system


def test_a_build_that_fails_stops_an_isolated_instance(incus: Incus) -> None:
    text = 'nixosConfigurations.web = throw "no such thing as a free system";'
    flake = incus.flake_text(text, f"/srv/{incus.prefix}")
    name = incus.init(store="isolated", flake=f"{flake}#web")
    incus.start(name)
    incus.wait_state(name, "STOPPED")
    assert "no such thing as a free system" in incus.wait_status(name, "failed: ")


def test_a_failed_rebuild_starts_the_last_generation_isolated(incus: Incus) -> None:
    name = isolated(incus, flake="/etc/nixos#web")
    first = sees_its_closure_alone(incus, name)
    incus("stop", name)
    incus.set(name, "user.inx.flake=/srv/gone#web")
    incus.start(name)
    assert incus.wait_status(name, "failed: ").endswith("; started generation 1")
    incus.wait_inside(name)
    assert sees_its_closure_alone(incus, name) == first


def test_a_sidecar_that_is_restarted_changes_nothing_of_the_view(incus: Incus, host: Host) -> None:
    name = isolated(incus)

    def mounts() -> list[str]:
        rows = host.run(["cat", f"/proc/{init_of(incus, name)}/mountinfo"]).stdout.splitlines()
        return [row for row in rows if " /nix/" in row]

    init, before = init_of(incus, name), mounts()
    assert before
    for disturb in restart_sidecar, kill_sidecar:
        disturb(host)
        sync(host)
        assert (init_of(incus, name), mounts()) == (init, before)
        sees_its_closure_alone(incus, name)


def test_a_pinned_generation_is_seen_and_kept(incus: Incus, host: Host) -> None:
    name = isolated(incus, flake=f"{incus.flake(greeting='one')}#web")
    first = sees_its_closure_alone(incus, name)
    incus.flake(greeting="two")
    incus.set(name, "user.inx.update=2")
    incus.restart_into(name, generation=2)
    second = sees_its_closure_alone(incus, name)
    incus.set(name, "user.inx.generation=1")
    incus.restart_into(name, generation=1)
    assert sees_its_closure_alone(incus, name) == first
    # Now the first system is kept only because it runs.
    incus.sh(name, "rm /nix/var/nix/profiles/system*")
    is_collected(incus, second)
    assert exists(host, first)
    shown = entries_inside(incus, name)
    assert shown.keys() == names(closure(host, first))
    assert incus.sh(name, LOOK_INSIDE, check=False).returncode == 0
    assert says(incus, name, "one")


@pytest.mark.parametrize("size", [32, 5], ids=["another", "cut short"])
def test_a_seal_of_another_host_does_not_count(incus: Incus, host: Host, size: int) -> None:
    name = isolated(incus, flake=f"{incus.flake(greeting='one')}#web")
    first = sees_its_closure_alone(incus, name)
    shared = incus.launch(name=incus.name("shared"), flake=f"{incus.flake(greeting='one')}#web")
    incus.flake(greeting="two")
    restart(incus, name)
    assert sees_its_closure_alone(incus, name) == first, (
        "its source has not changed, so nothing is evaluated"
    )
    for each in name, shared:
        incus("stop", each)
    assert host.run(["stat", "-c", "%a %u %s", KEY]).stdout.split() == ["600", "0", "32"]
    host.sh(
        'cp -p "$K" "$K.saved"; head -c "$N" /dev/urandom >"$K"', env={"K": KEY, "N": str(size)}
    )
    try:
        incus.start(name)
        incus.wait_inside(name)
        second = sees_its_closure_alone(incus, name)
        assert second != first
        assert says(incus, name, "two")
        incus.wait_status(name, "ready$")
        incus.start(shared)
        incus.wait_inside(shared)
        assert says(incus, shared, "one")
        assert host.run(["stat", "-c", "%a %u %s", KEY]).stdout.split() == ["600", "0", "32"]
        incus.flake(greeting="three")
        restart(incus, name)
        assert sees_its_closure_alone(incus, name) == second, "it has a seal of this key now"
    finally:
        host.run(["mv", f"{KEY}.saved", KEY])
    restart(incus, name)
    incus.wait_status(name, "ready$")
    sees_its_closure_alone(incus, name)
    assert says(incus, name, "three")
