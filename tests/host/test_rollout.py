"""A change of a profile reaches its instances in their order, and stops after some failures."""

import re
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.incus import Incus
from support.services import SERVICE

pytestmark = pytest.mark.life

CONFIG = "/etc/inx/config.toml"


@pytest.fixture
def one_failure(host: Host) -> Iterator[None]:
    host.sh('cat >"$P"', env={"P": CONFIG}, input="max_failures = 1\n")
    yield
    host.run(["rm", "-f", CONFIG])


def flake(incus: Incus, names: list[str], greeting: str, broken: str = "") -> str:
    """A system for each of `names`, which says `greeting`; that of `broken` cannot be built."""
    systems = "".join(
        f"""{name}.config.system.build.toplevel = {
            'throw "no such luck"'
            if name == broken
            else f'import ./system.nix {{ inherit deps; name = "web"; '
            f'extra.greeting = "{greeting}"; }}'
        };"""
        for name in names
    )
    return incus.flake_text(f"nixosConfigurations = {{ {systems} }};", f"/srv/{incus.prefix}")


def test_a_canary_that_fails_keeps_the_others_from_the_change(
    incus: Incus, host: Host, one_failure: None
) -> None:
    canary, *others = names = [incus.name(letter) for letter in "zab"]
    profile = incus.profile()
    incus("profile", "set", profile, f"user.inx.flake={flake(incus, names, 'one')}")
    incus.init("--profile", profile, name=canary)
    for name in others:
        incus.init("--profile", profile, "-c", "user.inx.order=1", name=name)
    incus("start", *names)
    for name in names:
        incus.wait_status(name, "ready$")

    flake(incus, names, "two", broken=canary)
    incus("profile", "set", profile, "user.inx.update=2")
    incus.wait_status(canary, "failed: .*no such luck")
    for name in others:
        incus.wait_status(name, f"failed: the update is held back, since that of {canary} failed")
        assert "generation 1 runs on" in incus.get(name, "user.inx.status")
        incus.sh(name, "[ $(cat /etc/greeting) = one ]")
    # A sidecar that starts anew goes on to hold them back.
    host.run(["systemctl", "restart", SERVICE])

    flake(incus, names, "three")
    incus("profile", "set", profile, "user.inx.update=3")
    for name in names:
        incus.wait_status(name, "ready$")
        incus.wait_generation(name, "2")
        incus.sh(name, "[ $(cat /etc/greeting) = three ]")
    said = host.run(["journalctl", "-u", "inx-sidecar", "-o", "cat", "--no-pager"]).stdout
    ends = re.findall(rf"^({'|'.join(names)}): runs ", said, re.M)
    assert ends[-3] == canary and sorted(ends[-2:]) == sorted(others)


def test_an_order_counts_at_the_next_change(incus: Incus, host: Host) -> None:
    """Nothing else than the launch says that there is an order."""
    canary, web = names = [incus.name(letter) for letter in "zb"]
    profile = incus.profile()
    incus("profile", "set", profile, f"user.inx.flake={flake(incus, names, 'one')}")
    incus.launch("--profile", profile, name=canary)
    incus.launch("--profile", profile, "-c", "user.inx.order=1", name=web)
    incus.wait_status(web, "ready$")
    flake(incus, names, "two", broken=canary)
    incus("profile", "set", profile, "user.inx.update=2")
    incus.wait_generation(web, "2")
    said = host.run(["journalctl", "-u", "inx-sidecar", "-o", "cat", "--no-pager"]).stdout
    assert said.rindex(f"{canary}: cannot build ") < said.rindex(f"{web}: inx: building the system")


def test_a_change_of_one_instance_waits_for_nobody(
    incus: Incus, host: Host, one_failure: None
) -> None:
    names = [incus.name(letter) for letter in "ab"]
    source = flake(incus, names, "one")
    for number, name in enumerate(names):
        incus.launch(name=name, flake=source, order=str(number))
        incus.wait_status(name, "ready$")
    flake(incus, names, "two", broken=names[0])
    for name in names:
        incus.set(name, "user.inx.update=2")
    incus.wait_status(names[0], "failed: .*no such luck")
    incus.wait_generation(names[1], "2")
