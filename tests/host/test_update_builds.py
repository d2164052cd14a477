"""Builds for an instance that runs or waits: taken back, overtaken, lost and found again."""

from collections.abc import Callable

import pytest
from support.disposable import Host
from support.incus import Incus
from support.running import says
from support.services import builds, restart_incus, restart_sidecar, stopped_sidecar, wait_build
from support.sources import at_switch, bump, endless, launched, source

pytestmark = pytest.mark.life


def test_a_bad_value_ends_an_init_that_waits(incus: Incus, host: Host) -> None:
    endless(incus)
    name = incus.init(flake=f"/srv/{incus.prefix}#web")
    incus.start(name)
    wait_build(incus, name)
    incus.set(name, "user.inx.generation=first")
    incus.wait_state(name, "STOPPED")
    assert "user.inx.generation is 'first'" in incus.wait_status(name, "failed: ")
    assert builds(host) == ""


def test_a_newer_change_ends_the_build_of_an_older_one(incus: Incus, host: Host) -> None:
    name = launched(incus)
    endless(incus)
    bump(incus, name)
    wait_build(incus, name)
    source(incus, "three")
    bump(incus, name, "3")
    incus.wait_generation(name, "2")
    assert says(incus, name, "three")
    assert builds(host) == ""


def test_a_change_taken_back_ends_its_build(incus: Incus, host: Host) -> None:
    name = launched(incus)
    endless(incus)
    bump(incus, name)
    wait_build(incus, name)
    incus.wait_status(name, "building")
    incus("config", "unset", name, "user.inx.update")
    incus.wait_generation(name, "1")
    assert builds(host) == ""


def test_a_newer_change_is_built_for_an_init_that_waits(incus: Incus, host: Host) -> None:
    source(incus, "one")
    endless(incus)
    name = incus.init(flake=f"/srv/{incus.prefix}#web")
    incus.start(name)
    wait_build(incus, name)
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "1")
    incus.wait_ready(name)
    assert says(incus, name, "two")


def kill_main_process(host: Host) -> None:
    """Kill the main process of the sidecar, as soon as there is one."""
    host.sh(
        """until pid=$(systemctl show --property=MainPID --value inx-sidecar); [ "$pid" != 0 ]; do
               sleep 0.05
           done
           kill -9 "$pid" """
    )


@pytest.mark.parametrize("disturb", [kill_main_process, restart_incus, restart_sidecar])
def test_a_lost_event_or_build_heals(
    incus: Incus, host: Host, disturb: Callable[[Host], None]
) -> None:
    name = launched(incus)
    endless(incus)
    bump(incus, name)
    wait_build(incus, name)
    source(incus, "three")
    disturb(host)
    bump(incus, name, "3")
    disturb(host)
    incus.eventually(lambda: says(incus, name, "three"), incus.story)
    incus.wait_generation(name, "2")
    incus.eventually(lambda: builds(host) == "", incus.story)


def test_a_change_while_the_sidecar_is_down_is_found(incus: Incus, host: Host) -> None:
    name = launched(incus)
    source(incus, "two")
    with stopped_sidecar(host):
        bump(incus, name)
    incus.wait_generation(name, "2")


def test_an_activation_goes_on_after_the_sidecar_died(incus: Incus, host: Host) -> None:
    name = launched(incus)
    source(incus, "two", activate=at_switch("until [ -e /root/go ]; do sleep 0.05; done"))
    bump(incus, name)
    begun = ["test", "-e", "/run/inx-activation.log"]
    incus.eventually(lambda: incus.run(name, *begun, check=False).returncode == 0, incus.story)
    kill_main_process(host)
    incus.sh(name, "touch /root/go")
    incus.eventually(
        lambda: incus.get(name, "user.inx.status.generation") == "2" and says(incus, name, "two"),
        incus.story,
    )
    incus.wait_generation(name, "2")
