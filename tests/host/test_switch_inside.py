"""A system that is selected or activated inside: the status follows, and updates go on from it."""

import pytest
from support.disposable import Host
from support.incus import POOL, Incus
from support.running import PROFILE, PROFILES, says
from support.services import stopped_sidecar, sync
from support.sources import bump, launched, source
from support.store import collect, exists

pytestmark = pytest.mark.life

SWITCH = f"{PROFILE}/bin/switch-to-configuration switch"


def system_from(host: Host, incus: Incus, greeting: str) -> str:
    """A system in the store of the host, which no instance has as its source."""
    directory = incus.flake("other", directory=f"/srv/{incus.prefix}-{greeting}", greeting=greeting)
    attribute = f"{directory}#nixosConfigurations.other.config.system.build.toplevel"
    nix = ["nix", "--extra-experimental-features", "nix-command flakes", "build"]
    return host.run([*nix, "--no-link", "--print-out-paths", attribute]).stdout.strip()


def told(incus: Incus, name: str, system: str, generation: str) -> None:
    """The status says so, without an event of Incus, and long before the next comparison."""
    keys = ("user.inx.status.system", "user.inx.status.generation")
    incus.eventually(
        lambda: [incus.get(name, key) for key in keys] == [system, generation], incus.story
    )
    assert incus.status(name) == "ready"


def test_the_status_follows_what_is_selected_and_activated_inside(incus: Incus, host: Host) -> None:
    name = launched(incus)
    one = incus.get(name, "user.inx.status.system")
    two, three = (system_from(host, incus, greeting) for greeting in ("two", "three"))
    # nixos-rebuild switch
    incus.sh(name, f"nix-env -p {PROFILE} --set {two}; {SWITCH}")
    told(incus, name, two, "2")
    # A generation that is selected, and not activated, does not run.
    incus.sh(name, f"nix-env -p {PROFILE} --set {three}")
    incus.sh(name, f"nix-env -p {PROFILE} --rollback; nix-env -p {PROFILE} --rollback; {SWITCH}")
    told(incus, name, one, "1")
    # nixos-rebuild test, and a specialisation: the profile stays.
    four = system_from(host, incus, "four")
    incus.sh(name, f"{four}/bin/switch-to-configuration test")
    told(incus, name, four, "")
    with stopped_sidecar(host):
        incus.sh(name, f"{three}/bin/switch-to-configuration test")
    told(incus, name, three, "3")
    # The next start boots the generation that the profile has.
    incus("restart", "-f", name)
    incus.wait_inside(name)
    told(incus, name, one, "1")
    incus.sh(name, f"nix-env -p {PROFILE} --switch-generation 3")
    incus("restart", "-f", name)
    incus.wait_inside(name)
    told(incus, name, three, "3")


def test_a_collection_keeps_what_was_activated_inside(incus: Incus, host: Host) -> None:
    """No link leads to the system but /run/current-system: it is a root, as on a NixOS host."""
    name = launched(incus)
    one = incus.get(name, "user.inx.status.system")
    two, three = (system_from(host, incus, greeting) for greeting in ("two", "three"))
    incus.sh(name, f"{two}/bin/switch-to-configuration test")
    collect(host)
    incus.sh(name, f"[ -e {two}/init ]")
    assert not exists(host, three)
    # Right after another change, long before the next look is due.
    four, five = (system_from(host, incus, greeting) for greeting in ("four", "five"))
    for system in (five, four, five, four):
        incus.sh(name, f"{system}/bin/switch-to-configuration test")
    collect(host)
    incus.sh(name, f"[ -e {four}/init ]")
    told(incus, name, four, "")
    # What was let go is collected.
    incus.sh(name, f"{one}/bin/switch-to-configuration test")
    told(incus, name, one, "1")
    incus.eventually(lambda: gone(host, two, four, five), incus.story)


def gone(host: Host, *systems: str) -> bool:
    sync(host)
    collect(host)
    return not any(exists(host, system) for system in systems)


@pytest.mark.isolated
def test_an_isolated_container_gains_nothing_by_what_it_says(incus: Incus, host: Host) -> None:
    """Root inside knows the name of a system, and says that it runs."""
    name = launched(incus, store="isolated")
    one = incus.get(name, "user.inx.status.system")
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    incus.sh(name, f"nix-env -p {PROFILE} --rollback; {SWITCH}")
    told(incus, name, one, "1")
    secret = system_from(host, incus, "secret")
    incus.sh(name, f"ln -sfn {secret} /run/current-system")
    told(incus, name, secret, "")
    source(incus, "three")
    bump(incus, name, "3")
    incus.wait_generation(name, "3")
    incus.sh(name, f"[ $(cat /etc/greeting) = three ]; [ ! -e {secret} ]")
    sync(host)
    collect(host)
    assert not exists(host, secret), "it was rooted"


def test_an_update_after_a_switch_inside_builds_the_source_if_it_is_asked_for(
    incus: Incus, host: Host
) -> None:
    name = launched(incus)
    two = system_from(host, incus, "two")
    incus.sh(name, f"nix-env -p {PROFILE} --set {two}; {SWITCH}")
    told(incus, name, two, "2")
    # The source changes, and nobody asks for a build. Other keys do not concern the source.
    source(incus, "three")
    incus.set(name, "user.other=1", "user.inx.keep=7")
    incus("restart", "-f", name)
    incus.wait_inside(name)
    told(incus, name, two, "2")
    bump(incus, name)
    incus.wait_generation(name, "3")
    assert says(incus, name, "three")
    # Also a source that has not changed replaces what was selected inside.
    incus.sh(name, f"nix-env -p {PROFILE} --rollback; {SWITCH}")
    told(incus, name, two, "2")
    bump(incus, name, "3")
    incus.wait_generation(name, "3")
    assert says(incus, name, "three")


def test_seals_go_with_their_generations(incus: Incus, host: Host) -> None:
    name = launched(incus)
    for number, greeting in ((2, "two"), (3, "three")):
        source(incus, greeting)
        bump(incus, name, str(number))
        incus.wait_generation(name, str(number))
    seals = f"cd {PROFILES}; echo system-*-seal"
    assert incus.said(name, "sh", "-c", seals).split() == [f"system-{n}-seal" for n in (1, 2, 3)]
    # The victim of a link must stay.
    incus.sh(name, f"cd {PROFILES}; echo x >/root/victim; ln -sfn /root/victim system-2-seal")
    incus.sh(name, f"nix-env -p {PROFILE} --delete-generations 1 2")
    incus.eventually(
        lambda: incus.inside(name, f'cd {PROFILES}; [ "$(echo system-*-seal)" = system-3-seal ]'),
        incus.story,
    )
    incus.sh(name, f"[ -s /root/victim ]; cd {PROFILES}; mkdir system-8-seal")
    incus("stop", "-f", name)
    left = f"{POOL}/{name}/rootfs{PROFILES}/system-77-seal"
    host.run(["ln", "-s", "x", left])
    incus.start(name)
    assert host.run(["test", "-L", left], check=False).returncode
    incus.wait_inside(name)
    incus.sh(name, f"[ -d {PROFILES}/system-8-seal ]")
    incus.wait_generation(name, "3")
