"""The view of an isolated instance grows with each update."""

import pytest
from support.disposable import Host
from support.incus import Incus
from support.running import PROFILES, says, visible
from support.sources import bump, launched, source
from support.store import closure

pytestmark = [pytest.mark.life, pytest.mark.isolated]


def test_the_view_of_a_service_with_its_own_mounts_grows_too(incus: Incus) -> None:
    name = launched(incus, store="isolated")
    old = incus.get(name, "user.inx.status.system")
    incus.sh(
        name,
        f"""mkfifo /root/go; {old}/sw/bin/unshare -m --propagation slave sh -c '
            read word </root/go; ls /nix/store >/root/seen; echo done >/root/go
        ' >/dev/null 2>&1 &""",
    )
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    incus.sh(name, "echo go >/root/go; read word </root/go")
    new = incus.get(name, "user.inx.status.system")
    incus.sh(name, f"grep -qx {new.removeprefix('/nix/store/')} /root/seen")


def test_an_update_shows_no_system_that_the_container_chose(incus: Incus) -> None:
    """The old system stays visible, but no system that a link inside leads to."""
    other = incus.launch(flake="/etc/nixos#second", name=incus.name("other"))
    foreign = incus.get(other, "user.inx.status.system")
    name = launched(incus, store="isolated")
    incus.sh(name, f"ln -sfn {foreign} {PROFILES}/system-1-link")
    source(incus, "two")
    bump(incus, name)
    incus.eventually(lambda: says(incus, name, "two"), incus.story)
    assert incus.get(name, "user.inx.status.system") in visible(incus, name)
    assert foreign not in visible(incus, name)


def test_the_view_holds_the_booted_the_last_and_the_new_system(incus: Incus, host: Host) -> None:
    name = launched(incus, store="isolated")
    seen = [incus.get(name, "user.inx.status.system")]
    for number in "234":
        source(incus, number)
        bump(incus, name, number)
        incus.wait_generation(name, number)
        seen.append(incus.get(name, "user.inx.status.system"))
    assert visible(incus, name) == closure(host, seen[0], *seen[2:])
