"""The host reboots; the sidecar, incusd or a container monitor dies; instances go on."""

import time
from collections.abc import Callable

import pytest
from support.disposable import Host
from support.health import is_healthy, stop_and_start
from support.incus import Incus
from support.refusals import refused
from support.services import (
    SERVICE,
    SOCKET,
    UNITS,
    is_active,
    kill_sidecar,
    property_of,
    restart_incus,
    restart_sidecar,
    stopped_sidecar,
    wait_build,
)
from support.sources import slow, start_building

from inx_sidecar.hook import DEADLINE_SECONDS

pytestmark = pytest.mark.main


def test_autostarted_instances_come_back_without_flake_and_nix_daemon(
    incus: Incus, host: Host
) -> None:
    flake = incus.flake("a", "b", greeting="back again")
    auto = ["-c", "boot.autostart=true"]
    names = [incus.launch(*auto, name=incus.name(n), flake=f"{flake}#{n}") for n in "ab"]
    pids = [incus.pid(name) for name in names]
    host.run(["rm", "-r", flake])
    host.run(["systemctl", "mask", "--now", "nix-daemon.socket", "nix-daemon.service"])
    try:
        restart_incus(host)
        assert [incus.pid(name) for name in names] == pids
        stop_and_start(incus, names[0])

        begin = time.monotonic()
        host.reboot()
        assert time.monotonic() - begin < DEADLINE_SECONDS, (
            "a stop hook waited for a sidecar that had ended"
        )
        for name in names:
            incus.wait_state(name, "RUNNING")
            is_healthy(incus, name)
            assert incus.said(name, "cat", "/etc/greeting") == "back again"
            incus.wait_ready(name)
        stop_and_start(incus, names[1])
    finally:
        host.run(["systemctl", "unmask", "nix-daemon.socket", "nix-daemon.service"])
        host.run(["systemctl", "start", "nix-daemon.socket"])


def test_twenty_instances_start_while_the_sidecar_is_killed_again_and_again(
    incus: Incus, host: Host
) -> None:
    flake = incus.flake("built", *(f"b{number}" for number in range(4)), greeting="tough")
    system = incus.get(incus.launch(flake=f"{flake}#built"), "user.inx.status.system")
    names = [incus.init(name=incus.name(f"s{number}"), system=system) for number in range(16)]
    names += [
        incus.init(name=incus.name(f"b{number}"), flake=f"{flake}#b{number}") for number in range(4)
    ]
    script = """
        pids=
        for i in $NAMES; do incus start $i </dev/null & pids+=" $!"; done
        for kill in {1..25}; do
            sleep 0.2
            systemctl kill --signal=KILL inx-sidecar.service || :
        done
        failed=0
        for pid in $pids; do wait $pid || failed=1; done
        exit $failed
    """
    host.sh(script, env={"NAMES": " ".join(names)})
    assert int(property_of(host, "NRestarts")) > 0
    for name in names:
        is_healthy(incus, name)
        assert incus.said(name, "cat", "/etc/greeting") == "tough"
    for name in names:
        incus.wait_ready(name)
        assert incus.get(name, "user.inx.status.generation") == "1"
    assert set(incus.states(names)) == {"RUNNING,ready"}


@pytest.mark.parametrize("disturb", [kill_sidecar, restart_sidecar])
def test_a_new_sidecar_takes_over_a_build_that_an_instance_waits_for(
    incus: Incus, host: Host, disturb: Callable[[Host], None]
) -> None:
    name = start_building(incus, slow(incus, 2))
    disturb(host)
    incus.wait_ready(name)
    is_healthy(incus, name)
    incus.run(name, "test", "-e", "/etc/slow")
    assert incus.get(name, "user.inx.status.generation") == "1"


def test_an_instance_that_waits_for_a_build_outlives_incusd(incus: Incus, host: Host) -> None:
    name = start_building(incus, slow(incus, 2))
    init = incus.pid(name)
    host.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "incus"])
    host.run(["systemctl", "start", "incus"])
    incus.wait_ready(name)
    assert incus.pid(name) == init
    stop_and_start(incus, name)


def test_a_restarted_sidecar_changes_no_running_instance(incus: Incus, host: Host) -> None:
    names = [incus.launch(name=incus.name(s), flake="/etc/nixos#web") for s in "ab"]
    before = [(incus.pid(name), incus.info(name)["config"]) for name in names]
    mounts = [incus.said(name, "cat", "/proc/mounts") for name in names]
    restart_sidecar(host)
    kill_sidecar(host)
    incus.eventually(lambda: is_active(host, SERVICE), incus.story)
    assert [(incus.pid(name), incus.info(name)["config"]) for name in names] == before
    assert [incus.said(name, "cat", "/proc/mounts") for name in names] == mounts
    for name in names:
        is_healthy(incus, name)
        stop_and_start(incus, name)


def test_without_a_sidecar_starts_fail_at_once_and_nothing_else(incus: Incus, host: Host) -> None:
    running, stopped, deleted = (
        incus.launch(name=incus.name(s), flake="/etc/nixos#web") for s in ("run", "stop", "del")
    )
    incus("stop", stopped)
    uuid = incus.uuid(deleted)
    is_healthy(incus, running)  # its Nix daemon starts now: without a sidecar, none does
    host.run(["systemctl", "stop", *UNITS])
    try:
        begin = time.monotonic()
        said = refused(incus, stopped)
        assert time.monotonic() - begin < DEADLINE_SECONDS / 2
        assert said.startswith("the inx sidecar is not reachable; run 'systemctl start inx-")
        is_healthy(incus, running)
        incus("stop", running)
        incus("delete", "-f", deleted)
    finally:
        host.run(["systemctl", "start", SOCKET])
    for name in running, stopped:
        incus.start(name)
        is_healthy(incus, name)
        incus.wait_ready(name)
    # Once the sidecar is back, it removes the rest of the deleted instance.
    restart_sidecar(host)
    incus.eventually(
        lambda: (
            uuid not in host.run(["ls", "/run/inx"]).stdout
            and not is_active(host, f"inx-nix-daemon@{uuid}.socket")
        ),
        incus.story,
    )


def test_a_start_repairs_what_a_missed_stop_hook_left(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    host.sh('kill -9 "$(pgrep -f "^\\[lxc monitor\\] .* $N\\$")"', env={"N": name})
    incus.wait_state(name, "STOPPED")
    incus.start(name)
    is_healthy(incus, name)
    incus.wait_ready(name)
    stop_and_start(incus, name)


def test_a_slow_rebuild_of_the_same_system_ends_with_its_status(incus: Incus) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    incus("stop", name)
    system = incus.get(name, "user.inx.status.system")
    incus.set(name, f"user.inx.flake={slow(incus, 1.5, same=True)}#web")
    incus.start(name)
    wait_build(incus, name)
    incus.wait_status(name, "building")
    incus.wait_ready(name)
    assert incus.get(name, "user.inx.status.system") == system


def test_a_status_that_a_killed_sidecar_left_behind_is_put_right(incus: Incus, host: Host) -> None:
    """The sidecar died after it released the init, and before Incus took the status."""
    name = incus.launch(flake="/etc/nixos#web")
    with stopped_sidecar(host):
        incus.set(name, "user.inx.status=building", "user.inx.status.generation=")
    incus.wait_status(name, "ready$")
    assert incus.get(name, "user.inx.status.generation") == "1"
