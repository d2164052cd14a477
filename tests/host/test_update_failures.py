"""An update that fails: the instance goes on as it is, and the status tells the reason."""

from functools import partial

import pytest
from support.disposable import Host
from support.incus import Incus
from support.running import PROFILE, PROFILES, newest_system, says
from support.services import journal, restart_sidecar, sync, unreadable_database
from support.sources import at_switch, broken, bump, derivation, launched, offer, source
from support.store import collect

pytestmark = pytest.mark.life

STORES = ["shared", pytest.param("isolated", marks=pytest.mark.isolated)]


@pytest.mark.parametrize("store", STORES)
def test_a_build_that_fails_changes_nothing(incus: Incus, host: Host, store: str) -> None:
    name = launched(incus, store=store)
    before = incus.pid(name)
    broken(incus)
    bump(incus, name)
    said = incus.wait_status(name, "failed: cannot build")
    assert "no such luck" in said and said.endswith("; generation 1 runs on")
    assert says(incus, name, "one") and incus.pid(name) == before
    before_that = journal(host, name)
    incus.set(name, "user.other=1")
    restart_sidecar(host)
    incus.set(name, "user.other=2")
    source(incus, "two")
    bump(incus, name, "3")
    incus.wait_generation(name, "2")
    assert says(incus, name, "two")
    more = journal(host, name)[len(before_that) :]
    assert len([line for line in more if "building the system" in line]) == 1, more


@pytest.mark.parametrize("store", STORES)
def test_an_activation_that_fails_leaves_the_generation_from_before(
    incus: Incus, store: str
) -> None:
    name = launched(incus, store=store)
    old = incus.get(name, "user.inx.status.system")
    source(incus, "two", activate=at_switch("echo no disk; exit 1"))
    bump(incus, name)
    said = incus.wait_status(name, "failed: activating ")
    assert "ended with status 1: no disk; generation 1 runs on" in said
    assert incus.get(name, "user.inx.status.system") == old
    incus.sh(name, f"[ $(readlink -f {PROFILE}) = {old} ]")
    incus("restart", "-f", name)
    incus.wait_ready(name)
    assert says(incus, name, "two"), "a start tries again"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (2, "parts of the activation failed"),
        (3, "some units could not be reloaded"),
        (4, "some units failed"),
    ],
)
def test_an_activation_that_fails_in_part_is_told(incus: Incus, status: int, said: str) -> None:
    name = launched(incus)
    source(incus, "two", activate=at_switch(f"echo x.service; _status={status}"))
    bump(incus, name)
    assert incus.wait_status(name, r"ready \(") == f"ready ({said}: x.service)"
    assert incus.get(name, "user.inx.status.generation") == "2"
    assert says(incus, name, "two")


def test_a_system_that_takes_a_restart_does_not_run_before(incus: Incus) -> None:
    """switch-to-configuration ends before it activates, and /run/current-system stays."""
    name = launched(incus)
    source(incus, "two", activate=at_switch("exit 100"))
    bump(incus, name)
    incus.wait_status(name, r"ready \(it takes a restart of the instance to switch\)")
    incus.wait_told(name, 1)
    incus("restart", "-f", name)
    incus.wait_generation(name, "2")


@pytest.mark.parametrize("store", STORES)
def test_a_system_on_trial_outlives_a_failed_update(incus: Incus, host: Host, store: str) -> None:
    name = launched(incus, activate="test", store=store)
    source(incus, "two")
    bump(incus, name)
    incus.eventually(lambda: says(incus, name, "two"), incus.story)
    source(incus, "three", activate=at_switch("exit 1"))
    bump(incus, name, "3")
    incus.wait_status(name, "failed: activating")
    trial = incus.get(name, "user.inx.status.system")
    assert incus.get(name, "user.inx.status.generation") == ""
    sync(host)
    collect(host)
    incus.sh(name, f"{trial}/sw/bin/true; [ $(cat {trial}/etc/greeting) = two ]")
    incus("restart", "-f", name)
    incus.wait_ready(name)
    sync(host)
    roots = host.run(["ls", f"/nix/var/nix/gcroots/inx/{name}.{incus.uuid(name)}"]).stdout.split()
    assert set(roots) == {"booted-system", "links", "system-1"}


def failed_anew(incus: Incus, name: str, before: str) -> bool:
    said = incus.status(name)
    return said.startswith("failed: activating") and said != before


def test_the_last_good_generation_outlives_failures(incus: Incus) -> None:
    name = launched(incus, keep="1")
    old = newest_system(incus, name)
    said = ""
    for number in "23":
        source(incus, number, activate=at_switch("exit 1"))
        bump(incus, name, number)
        incus.eventually(partial(failed_anew, incus, name, said), incus.story)
        said = incus.status(name)
        assert newest_system(incus, name) == old
        incus.sh(
            name,
            f'[ "$(echo {PROFILES}/system-*-link)" = {PROFILES}/system-1-link ]',
        )
    source(incus, "four")
    bump(incus, name, "4")
    incus.wait_generation(name, "2")
    incus.sh(name, f"[ ! -L {PROFILES}/system-1-link ]")


def test_a_system_that_cannot_be_switched_to_is_told(incus: Incus) -> None:
    name = launched(incus)
    make = "${deps.busybox}/bin/busybox mkdir $out; : >$out/init"
    offer(incus, derivation(f"{incus.prefix}-no-switch", make))
    bump(incus, name)
    said = incus.wait_status(name, "failed: ")
    assert "has no bin/switch-to-configuration" in said and "restart it" in said
    assert says(incus, name, "one")


def test_a_fallback_is_told_also_where_nothing_has_to_be_done(incus: Incus) -> None:
    name = launched(incus, activate="none")
    broken(incus)
    bump(incus, name)
    incus("restart", "-f", name)
    said = incus.wait_status(name, "failed: cannot build")
    incus.set(name, "user.other=1")
    incus("config", "unset", name, "user.other")
    assert incus.status(name) == said and said.endswith("; started generation 1")


def test_a_system_that_is_nowhere_is_told_though_another_is_activated(incus: Incus) -> None:
    name = launched(incus)
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    incus.set(name, "user.inx.generation=1")
    incus.wait_generation(name, "1")
    incus.set(name, "user.inx.generation=", "user.inx.flake=", "user.inx.system=/srv/nowhere")
    said = incus.wait_status(name, "failed: ")
    assert "/srv/nowhere" in said and said.endswith("; generation 2 runs on")
    assert says(incus, name, "two")


def test_a_decision_that_failed_is_made_later(incus: Incus, host: Host) -> None:
    """The sidecar looks again by itself: there is no event between failure and success."""
    name = launched(incus)
    source(incus, "two")
    with unreadable_database(host):
        bump(incus, name)
        said = incus.wait_status(name, "failed: cannot read Nix's database")
        assert "; generation 1 runs on" in said
    incus.wait_generation(name, "2")
    assert says(incus, name, "two")
