"""A running instance follows its configuration."""

import json
import time

import pytest
from support.disposable import Host
from support.incus import Incus
from support.running import PROFILE, booted, newest_system, says, visible
from support.services import journal, restart_sidecar, sync
from support.sources import bump, launched, offer, source
from support.store import closure, collect

pytestmark = pytest.mark.life

STORES = ["shared", pytest.param("isolated", marks=pytest.mark.isolated)]


@pytest.mark.sid
@pytest.mark.parametrize("store", STORES)
def test_a_changed_source_is_built_and_activated_and_pid_1_stays(
    incus: Incus, host: Host, store: str
) -> None:
    name = launched(incus, store=store)
    before, old = incus.pid(name), incus.get(name, "user.inx.status.system")
    incus.sh(name, f"{old}/sw/bin/sleep 1000 >/dev/null 2>&1 & echo $! >/root/sleeper")
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    new = incus.get(name, "user.inx.status.system")
    assert says(incus, name, "two") and booted(incus, name, old)
    assert incus.pid(name) == before and new != old
    incus.sh(name, "kill -0 $(cat /root/sleeper)")
    if store == "isolated":
        assert visible(incus, name) == closure(host, old, new)
    incus("restart", "-f", name)
    incus.wait_ready(name)
    assert says(incus, name, "two") and booted(incus, name, new)
    if store == "isolated":
        assert visible(incus, name) == closure(host, new)


@pytest.mark.parametrize("store", STORES)
def test_a_system_that_is_there_and_a_generation_are_activated_without_a_build(
    incus: Incus, host: Host, store: str
) -> None:
    name = launched(incus, store=store)
    first = incus.get(name, "user.inx.status.system")
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    incus.set(name, "user.inx.generation=1")
    incus.wait_generation(name, "1")
    assert says(incus, name, "one")
    incus("config", "unset", name, "user.inx.generation")
    incus.wait_generation(name, "2")
    incus.set(name, f"user.inx.system={first}", "user.inx.flake=")
    incus.wait_generation(name, "3")
    assert says(incus, name, "one")
    assert len([line for line in journal(host, name) if "building" in line]) <= 2


def test_activation_at_boot_waits_for_the_next_start(incus: Incus) -> None:
    name = launched(incus, activate="boot")
    old = newest_system(incus, name)
    source(incus, "two")
    bump(incus, name)
    incus.eventually(lambda: newest_system(incus, name) != old, incus.story)
    incus.wait_generation(name, "1")
    assert says(incus, name, "one") and incus.get(name, "user.inx.status.system") == old
    key = "user.inx.status.changes"
    incus.eventually(lambda: incus.get(name, key).startswith("1 rebuilt, "), incus.story)
    incus("restart", "-f", name)
    incus.wait_generation(name, "2")
    incus.wait_ready(name)
    assert says(incus, name, "two") and incus.get(name, key).startswith("1 rebuilt, ")


@pytest.mark.parametrize("store", STORES)
def test_a_system_on_trial_is_gone_at_the_next_start(incus: Incus, host: Host, store: str) -> None:
    name = launched(incus, activate="test", store=store)
    source(incus, "two")
    bump(incus, name)
    incus.eventually(lambda: says(incus, name, "two"), incus.story)
    collect(host)
    assert says(incus, name, "two")
    incus("restart", "-f", name)
    incus.wait_generation(name, "1")
    incus.wait_ready(name)
    restart_sidecar(host)
    incus.set(name, "user.other=1")
    incus.wait_generation(name, "1")
    assert says(incus, name, "one"), "the system on trial was activated again"
    incus.set(name, "user.inx.activate=switch")
    incus.wait_generation(name, "2")
    assert says(incus, name, "two")


def test_no_activation_leaves_the_change_to_the_next_start(incus: Incus, host: Host) -> None:
    name = launched(incus, activate="none")
    source(incus, "two")
    bump(incus, name)
    sync(host)
    assert says(incus, name, "one") and incus.status(name) == "ready"
    incus("restart", "-f", name)
    incus.wait_generation(name, "2")
    incus.wait_ready(name)
    assert says(incus, name, "two")


def test_a_system_that_still_boots_is_waited_for(incus: Incus) -> None:
    slow = "[ -e /run/current-system ] || sleep 4"
    name = incus.init(flake=f"{source(incus, 'one', activate=slow)}#web")
    incus.start(name)
    incus.wait_status(name, "ready")
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    assert says(incus, name, "two")
    system = incus.get(name, "user.inx.status.system")
    incus.sh(name, f"[ $(readlink /run/current-system) = {system} ]")


def test_systemd_is_waited_for_until_it_has_booted(incus: Incus, host: Host) -> None:
    def slow(greeting: str) -> str:
        # systemd is starting as long as this service has not started.
        return offer(
            incus,
            f"""import ./systemd.nix {{
                inherit deps; name = "web"; extra = {{
                    greeting = {json.dumps(greeting)};
                    "systemd/system/slow.service" = ''
                        [Service]
                        Type=oneshot
                        RemainAfterExit=yes
                        ExecStart=/run/current-system/sw/bin/sleep 6
                    '';
                    "systemd/system/multi-user.target.d/slow.conf" = ''
                        [Unit]
                        Wants=slow.service
                        After=slow.service
                    '';
                }};
            }}""",
        )

    name = incus.init(flake=f"{slow('one')}#web")
    incus.start(name)
    incus.wait_status(name, "ready")
    slow("two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    incus.sh(name, "[ $(cat /etc/greeting) = two ]; systemctl is-active slow.service")


def test_the_kind_of_store_holds_from_start_to_stop(incus: Incus, host: Host) -> None:
    """An update leaves the kind of store, the included paths and the daemon as they are."""
    included = host.run(["nix-store", "--add", "/etc/hosts"]).stdout.strip()
    name = launched(incus, store="isolated", store_include=included)
    old = incus.get(name, "user.inx.status.system")
    incus.set(name, "user.inx.store=shared", "user.inx.store.include=")
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    new = incus.get(name, "user.inx.status.system")
    for _ in range(2):
        sync(host)
        collect(host)
        assert visible(incus, name) == closure(host, old, new, included)
        incus.sh(name, f"cat {included} >/dev/null; ! nix store info 2>/dev/null")
        restart_sidecar(host)
    incus("restart", "-f", name)
    incus.wait_ready(name)
    incus.sh(name, "nix store info")
    incus.set(name, "user.inx.store=isolated")
    source(incus, "three")
    bump(incus, name, "3")
    incus.wait_generation(name, "3")
    incus.sh(name, "nix store info")


def test_a_key_that_changes_nothing_builds_nothing(incus: Incus, host: Host) -> None:
    name = launched(incus)
    before = journal(host, name)
    incus.set(name, "user.other=1", "user.inx.keep=7")
    incus("profile", "set", "inx", "user.other=1")
    incus("profile", "unset", "inx", "user.other")
    incus.set(name, "user.inx.typo=x")
    said = incus.wait_status(name, "failed: ")
    assert "user.inx.typo" in said and said.endswith("; generation 1 runs on")
    incus("config", "unset", name, "user.inx.typo")
    incus.wait_generation(name, "1")
    said_since = journal(host, name)[len(before) :]
    assert said_since and all("user.inx.typo" in line for line in said_since), said_since


def test_a_system_chosen_inside_is_left_alone(incus: Incus) -> None:
    name = launched(incus)
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    incus.sh(
        name,
        f"nix-env -p {PROFILE} --switch-generation 1; {PROFILE}/bin/switch-to-configuration switch",
    )
    incus.set(name, "user.other=1")
    incus.eventually(lambda: incus.get(name, "user.inx.status.generation") == "1", incus.story)
    assert says(incus, name, "one")


def test_links_that_the_container_writes_start_no_build(incus: Incus, host: Host) -> None:
    name = launched(incus)
    before = journal(host, name)
    incus.sh(name, "ln -sfn forged /nix/var/nix/profiles/system-source")
    for number in range(3):
        incus.set(name, f"user.other={number}")
    restart_sidecar(host)
    incus.sh(name, "rm /nix/var/nix/profiles/system-*; mount -t tmpfs none /nix/var/nix/profiles")
    incus.set(name, "user.other=3")
    incus.set(name, "user.inx.typo=x")
    incus.wait_status(name, "failed: ")
    assert not [line for line in journal(host, name)[len(before) :] if "building" in line]


def test_a_new_instance_gets_no_status_of_one_that_had_its_name(incus: Incus) -> None:
    """The sidecar tells a status a moment late, perhaps when the instance has been deleted."""
    name = launched(incus)
    source(incus, "two")
    bump(incus, name)
    incus.eventually(lambda: says(incus, name, "two"), incus.story)
    source(incus, "three")
    incus("delete", "-f", name)
    incus.init(name=name, flake=f"/srv/{incus.prefix}#web")
    until = time.monotonic() + 3
    while time.monotonic() < until:
        assert incus.status(name) == ""
    incus.start(name)
    incus.wait_generation(name, "1")
    assert says(incus, name, "three")


def test_a_description_outlives_a_new_status(incus: Incus) -> None:
    name = launched(incus)
    incus.set(name, "--property", "description=of its operator")
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    assert incus.info(name)["description"] == "of its operator"
