"""Root inside an isolated container writes links that may mislead the next start."""

import pytest
from support.attacker.reading import links_below, names_in, reach, target_of
from support.attacks import inside
from support.incus import Incus
from support.refusals import refusal, start
from support.running import PROFILES
from support.store import STORE
from support.vault import Vault, build_foreign

from inx_sidecar.links.indirect_roots import name_of

pytestmark = pytest.mark.isolated


# Shell text that runs in the directory of the profiles; the instance was never given the system
# $T, and runs the system $A.
PLANTED = {
    "the generation leads elsewhere": "ln -sfn $T system-1-link",
    "the system leads elsewhere": "ln -sfn $T system",
    "another generation": "ln -s $T system-2-link; ln -sfn system-2-link system",
    "another with the seal of the first": """
        ln -s $T system-2-link; ln -sfn system-2-link system; cp -P system-1-seal system-2-seal
    """,
    "another with the seal's own text": """
        ln -s $T system-2-link; ln -sfn system-2-link system; ln -s system-1-seal system-2-seal
    """,
    "another with the digest of its name": """
        ln -s $T system-2-link; ln -sfn system-2-link system
        ln -s "$(printf %s $T | sha256sum | cut -c1-64)" system-2-seal
    """,
    "another with a seal made up": """
        ln -s $T system-2-link; ln -sfn system-2-link system
        ln -s "$(printf %064d 0)" system-2-seal
    """,
    "seals that are none": """
        for n in 2 3 4 5; do ln -s $T system-$n-link; done; ln -sfn system-5-link system
        ln -s "$(printf '\\377\\376')" system-2-seal; mkdir system-3-seal; : >system-4-seal
        ln -s "$(printf '%01000d' 0)" system-5-seal
    """,
    "pinned": """
        ln -s $T system-2-link; ln -sfn system-2-link system; ln -s 2 system-pinned
        cp -P system-1-seal system-2-seal
    """,
    "numbers that are one": """
        ln -s $T system-01-link; ln -s $T system-+1-link; cp -P system-1-seal system-01-seal
        ln -sfn system-01-link system
    """,
    "steps": "ln -sfn ${A%/*}/../store/${T##*/} system-1-link; ln -sfn system-1-link system",
    "no seal at all": "rm system-1-seal",
    "nothing": "rm -rf system*",
}


def boot(incus: Incus, name: str) -> None:
    incus("restart", "-f", name)
    incus.wait_inside(name)
    incus.wait_ready(name)


def test_no_planted_link_shows_or_starts_another_system(incus: Incus) -> None:
    vault = Vault(incus).launch()
    foreign, system, name = build_foreign(incus, "other"), vault.system, vault.name
    # A shared instance boots such a generation.
    shared = incus.launch(name=incus.name("shared"), system=system)
    variables = f"T={foreign} A={system}; cd {PROFILES};"
    incus.sh(shared, f"{variables} {PLANTED['another generation']}")
    boot(incus, shared)
    assert inside(incus, shared, target_of, "/run/current-system") == foreign

    incus.sh(name, f"cp -a {PROFILES} /root/saved")
    wrong = {}
    for what, script in PLANTED.items():
        incus.sh(name, f"{variables} rm -rf ./*; cp -a /root/saved/. .; {script}")
        boot(incus, name)
        booted = vault.do(target_of, "/run/current-system")
        listed = set(vault.do(names_in, STORE))
        reached = vault.do(reach, [foreign, f"{foreign}/init"])
        if booted != system or vault.system != system or listed != vault.visible() or reached:
            wrong[what] = (booted, vault.system, listed - vault.visible(), reached)
    assert wrong == {}


def test_a_generation_that_was_planted_cannot_be_chosen(incus: Incus) -> None:
    vault = Vault(incus).launch()
    foreign, name, first = build_foreign(incus, "other"), vault.name, vault.system
    script = f"T={foreign}; cd {PROFILES}; {PLANTED['another with the seal of the first']}"
    incus.sh(name, f"{script}\nln -sfn system-1-link system")
    incus("stop", "-f", name)
    incus.set(name, "user.inx.generation=2")
    assert start(incus, name) != 0
    text = refusal(incus, name)
    assert text.startswith(
        f"user.inx.generation is 2, but {name!r} has no such generation (it has 1)"
    )
    incus.set(name, "user.inx.generation=1")
    assert start(incus, name) == 0
    incus.wait_ready(name)
    assert (vault.system, vault.do(reach, [foreign])) == (first, {})


def test_an_init_of_the_containers_own_finds_no_other_system(incus: Incus) -> None:
    """The bootstrap follows the links of the container, but shows only the recorded system."""
    vault = Vault(incus).launch()
    foreign, name = build_foreign(incus, "other"), vault.name
    script = f"""
        mkdir -p /mine/system-1-link; cd /mine/system-1-link
        printf '#!/dev/.inx/busybox sh\n/dev/.inx/busybox ls {vault.system}/init $T/init\n' >init
        echo 'exec "$T/init"' >>init
        sed -i 's,$T,{foreign},' init; chmod +x init; ln -sfn /mine/system-1-link {PROFILES}/system
    """
    incus.sh(name, script)
    incus("restart", "-f", name, check=False)
    incus.wait_state(name, "STOPPED")
    incus.eventually(lambda: "not found" in incus.console(name), lambda: incus.console(name))
    console = incus.console(name).split("inx: starting")[-1]
    assert f"\n{vault.system}/init" in console
    assert f"\n{foreign}/init" not in console


def test_a_generation_of_its_own_can_be_chosen_and_shows_itself_alone(incus: Incus) -> None:
    """A generation with a seal starts, so that the seal decides, and nothing else."""
    flake = incus.flake(greeting="one")
    vault = Vault(incus, flake=f"{flake}#web").launch()
    first = vault.system
    incus.flake(greeting="two")
    incus.set(vault.name, "user.inx.update=2")
    incus.restart_into(vault.name, generation=2)
    second = vault.system
    assert second != first
    assert vault.do(reach, [first]) == {}
    incus.sh(vault.name, f"ln -sfn system-1-link {PROFILES}/system")
    incus.restart_into(vault.name, generation=1)
    assert vault.system == first
    assert vault.do(reach, [second]) == {}
    assert set(vault.do(names_in, STORE)) == vault.visible()


def test_planted_roots_show_nothing_and_tell_nothing(incus: Incus) -> None:
    """A link to a path in the store and a link to no path have the same fate."""
    vault = Vault(incus).launch()
    gone = f"{STORE}/{'0' * 32}-{incus.prefix}-gone"
    auto = "/nix/var/nix/gcroots/auto"
    entries = {path: name_of(path) for path in ("/root/there", "/root/gone", vault.secret, gone)}
    entries |= {f"{vault.secret}/file": name_of(f"{vault.secret}/file")}
    script = f"""
        mkdir -p {auto}; cd {PROFILES}
        ln -s {vault.secret} system-7-link; ln -s {gone} system-8-link
        ln -s {vault.secret} mine-1-link; ln -s {gone} mine-2-link
        ln -s {vault.secret} ../gcroots/there; ln -s {gone} ../gcroots/gone
        ln -s {vault.secret} /root/there; ln -s {gone} /root/gone
    """
    script += "".join(f"ln -s {path} {auto}/{name}\n" for path, name in entries.items())
    incus.sh(vault.name, script)
    before = vault.do(links_below, ["/nix/var/nix", "/root"])
    assert len(before) >= 8 + len(entries)
    for _ in range(2):
        boot(incus, vault.name)
        assert vault.do(reach, [vault.secret, f"{auto}/{entries[vault.secret]}/."]) == {}
        assert set(vault.do(names_in, STORE)) == vault.visible()
        after = vault.do(links_below, ["/nix/var/nix", "/root"])
        lost = {path for path in before if path not in after}
        assert {path.replace("there", "gone").replace("-1-", "-2-") for path in lost} <= lost
        assert ("system-7-link" in str(lost)) == ("system-8-link" in str(lost))
        here, there = (f"{auto}/{entries[path]}" in after for path in ("/root/there", "/root/gone"))
        assert here == there
        here, there = (f"{auto}/{entries[path]}" in after for path in (vault.secret, gone))
        assert here == there
