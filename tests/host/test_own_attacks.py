"""Root inside an instance with a store of its own attacks the host, and other store paths."""

import os
from collections.abc import Iterator

import pytest
from support.attacker.handles import handles_of, open_handles, wrapped
from support.attacker.mounting import mount_tricks, reconfigurations, redirects
from support.attacker.reading import names_in, reach, target_of
from support.attacker.stalling import never_answer, never_answer_below_overlay
from support.attacker.writing import links_and_renames, system_calls
from support.attacks import inside, on_host, stalled
from support.disposable import Host
from support.fingerprint import unchanged
from support.gc import ROOTS
from support.incus import POOL, Incus
from support.own import NIX_CONFIG, is_right
from support.refusals import refusal, start
from support.running import PROFILES
from support.services import constant, sync
from support.shell_tricks import ALL_TRICKS, succeeded
from support.store import STORE
from support.vault import Vault, build_foreign

from inx_sidecar.links.indirect_roots import name_of

pytestmark = pytest.mark.isolated

# Where the shown layer is mounted inside.
SHOWN = "/nix/.inx"


@pytest.fixture(scope="module")
def vault(host: Host) -> Iterator[Vault]:
    """One instance for all tests; a path of another system is in the store, too."""
    incus = Incus(host, "own-attacks")
    build_foreign(incus, "other")
    yield Vault(incus, store="own").launch()
    incus.clean_up()


def done(outcome: dict[str, str]) -> set[str]:
    """The attempts that succeeded."""
    assert "254" not in outcome.values(), outcome
    return {what for what, how in outcome.items() if how == "done"}


def test_no_way_leads_to_another_path(vault: Vault) -> None:
    assert set(vault.do(names_in, STORE)) == set(vault.do(names_in, SHOWN)) == vault.visible()
    tops = [STORE, SHOWN, *(f"{SHOWN}/{way}" for way in ("..", "../entries", "../../all", "upper"))]
    tops += [f"{top}/{vault.shown_name}/../.." for top in (STORE, SHOWN)]
    assert vault.do(reach, [f"{top}/{name}" for top in tops for name in vault.foreign()]) == {}
    found = vault.do(reach, [f"{top}/{vault.shown_name}" for top in tops])
    assert found.keys() >= {f"{top}/{vault.shown_name}" for top in (STORE, SHOWN)}


def test_no_file_handle_opens_another_path(vault: Vault, host: Host) -> None:
    paths = [vault.secret, f"{vault.secret}/file", vault.shown, f"{vault.shown}/below", STORE]
    known = on_host(host, handles_of, paths)
    bases = ["/", STORE, SHOWN, vault.shown, f"{SHOWN}/{vault.shown_name}", "/nix/var/nix"]
    told = vault.do(open_handles, known, bases)
    assert "opened" not in told.values(), told
    overlaid = vault.do(wrapped, known, f"{SHOWN}/{vault.shown_name}")
    told = vault.do(open_handles, overlaid, [STORE, SHOWN, "/"])
    assert "opened" not in told.values(), told


@pytest.mark.parametrize("place", [STORE, SHOWN])
def test_no_mount_inside_shows_another_path(vault: Vault, place: str) -> None:
    sample = f"{place}/{vault.shown_name}"
    found = done(vault.do(mount_tricks, place, vault.shown_name, sample))
    assert found >= {"look_at_once", "bind_it", "copy", "move_it", "pivot_root", "chroot"}
    told = vault.do(mount_tricks, place, vault.secret_name, sample)
    assert done(told) == set(), told
    vault.incus.run(vault.name, "mkdir", "-p", "/mnt")
    for user in (False, True):
        told = vault.do(redirects, place, vault.secret_name, user)
        assert done(told) == set(), told


def test_the_shown_layer_can_neither_be_reconfigured_nor_written(vault: Vault, host: Host) -> None:
    before = vault.do(names_in, SHOWN)
    told = vault.do(reconfigurations, SHOWN)
    assert set(told.values()) <= {"EPERM", "EINVAL"}, told
    file = f"{SHOWN}/{vault.shown_name}/file"
    with unchanged(host):
        for place in SHOWN, os.path.dirname(file):
            assert succeeded(vault.incus, vault.name, ALL_TRICKS, place, file) == set(), place
            told = inside(vault.incus, vault.name, system_calls, place, file, {}, [])
            assert not {"done", "254"} & set(told.values()), (place, told)
    assert vault.do(names_in, SHOWN) == before


def test_what_is_written_to_the_store_is_in_the_instance_alone(vault: Vault, host: Host) -> None:
    """Each way to write is tried; the host's files stay as they are."""
    incus, name = vault.incus, vault.name
    with unchanged(host):
        tricks = succeeded(incus, name, ALL_TRICKS, vault.shown, f"{vault.shown}/file")
        assert {"create", "append", "mode", "remove"} <= tricks
        vault.do(links_and_renames, vault.shown, vault.secret)
        incus.sh(
            name, f"mkdir -p {vault.secret}; echo mine >{vault.secret}/file; rm -rf {vault.shown}"
        )
    neighbour = incus.launch(name=incus.name("neighbour"), store="own",
                             system=vault.system, store_include=vault.shown)  # fmt: skip
    try:
        incus.sh(neighbour, f"grep -q 'bytes of' {vault.shown}/file; ! test -e {vault.secret}")
    finally:
        incus("delete", "-f", neighbour)
    incus.sh(name, f"rm -rf {vault.secret}")


# What Nix inside is asked about the secret path $S, and may answer only with what it was given.
ASK = """
    export HOME=/root
    nix() { command nix --extra-experimental-features 'nix-command flakes' "$@"; }
    for what in \
        "nix-store --query --references $S" "nix-store --query --hash $S" "nix-store --dump $S" \
        "nix-store --check-validity $S" "nix-store --export $S" "nix-store --realise $S" \
        "nix store dump-path $S" "nix path-info $S" "nix store ls $S" \
        "nix path-info $S --store local?root=/root/own" \
        "nix-instantiate --eval -E builtins.readDir(builtins.storePath(/.$S))" \
        "nix-store --store unix:///nix/var/nix/daemon-socket/socket --check-validity $S"
    do
        timeout 30 $what >/dev/null 2>&1 </dev/null && echo "$what" >>/root/answered
    done
    nix path-info --all >/root/all
    ! [ -e /root/answered ] && ! grep -q "$S" /root/all
"""


def test_nix_inside_knows_nothing_of_another_path(vault: Vault) -> None:
    conf = f"{NIX_CONFIG}\nsubstituters =\n"
    env = ["--env", f"S={vault.secret}", "--env", f"NIX_CONFIG={conf}"]
    script = ["exec", vault.name, *env, "--", "sh", "-uc", ASK]
    asked = vault.incus(*script, check=False)
    assert asked.returncode == 0, vault.incus.sh(vault.name, "cat /root/answered", check=False)


def boot(vault: Vault) -> None:
    vault.incus("restart", "-f", vault.name)
    vault.incus.wait_inside(vault.name)
    vault.incus.wait_ready(vault.name)


def test_no_name_that_is_planted_shows_or_keeps_another_path(vault: Vault, host: Host) -> None:
    """Generations, records of what was shown and roots name a path of the host, with seals that
    were made for others."""
    incus, name, system = vault.incus, vault.name, vault.system
    foreign = build_foreign(incus, "other")
    auto = "/nix/var/nix/gcroots/auto"
    planted = (
        f"umount {SHOWN}; cd {PROFILES}",
        f"ln -s {foreign} system-9-link; ln -sfn system-9-link system",
        "cp -P system-1-seal system-9-seal",
        *(
            f"ln -sfn $(readlink system-1-seal) {SHOWN}/shown/{os.path.basename(path)}"
            for path in (foreign, vault.secret)
        ),
        f"mkdir -p {auto} ../gcroots/inx",
        f"ln -s {vault.secret} ../gcroots/inx/there; ln -s {vault.secret} ../gcroots/there",
        f"ln -s {vault.secret} /root/there; ln -s /root/there {auto}/{name_of('/root/there')}",
        f"ln -s {vault.secret} {auto}/{name_of(vault.secret)}",
        # As if Nix inside had made it. Only what the upper layer has counts.
        f"mkdir {SHOWN}/upper/{os.path.basename(foreign)}",
    )
    incus.sh(name, "\n".join(planted))
    boot(vault)
    sync(host)
    assert vault.do(target_of, "/run/current-system") == system == vault.system
    assert vault.do(reach, [vault.secret, f"{foreign}/init"]) == {}
    valid = incus.said(name, "nix", "path-info", "--all").split()
    assert vault.secret not in valid and foreign not in valid
    roots = f"find {ROOTS}/{name}.{incus.uuid(name)} -type l -exec readlink {{}} +"
    # A generation keeps its system on the host, as everywhere, but does not show it.
    assert vault.secret not in host.sh(roots).stdout.split()
    incus.sh(name, "nix-store --gc; rm -f /root/there")
    is_right(incus, name)


# What root inside, or an archive from elsewhere, may have put into the root file system. Each
# script runs in /nix, and knows the names of a shown path, a secret one and the system: $A, $S, $T.
HARMLESS = {
    "whiteouts of everything": """
        for path in $A $T $(ls /nix/store | head -n 200); do
            rm -rf .inx/upper/$path; mknod .inx/upper/$path c 0 0
        done
    """,
    "changes, attributes and links": """
        mkdir -p .inx/upper/$A/below .inx/upper/$T
        mknod .inx/upper/$A/below/file c 0 0; echo broken >.inx/upper/$T/init
        ln -s /etc/shadow .inx/upper/$A/file
        for space in user trusted; do
            mkdir -p .inx/upper/$space
            for directory in .inx/upper .inx/upper/$space .inx/upper/$T; do
                setfattr -n $space.overlay.opaque -v y $directory
                setfattr -n $space.overlay.redirect -v "/$S" $directory
            done
        done
        rm -rf .inx/shown; mkdir .inx/shown; mkfifo .inx/shown/$A
        rm -f var/nix/gc.lock; ln -s /etc/shadow var/nix/gc.lock
    """,
    "many files, programs and devices": """
        rm -rf .inx/work/work var/nix/db; mkdir .inx/work/work
        seq 2000 | sed s,^,.inx/upper/, | xargs touch
        seq 2000 | sed s,^,.inx/work/work/, | xargs touch
        cp /bin/sh .inx/upper/mine; chmod 6755 .inx/upper/mine; mknod .inx/upper/disk b 8 0
        ln .inx/upper/mine .inx/upper/again
    """,
}
# More of what stands in the way: tests/kernel/test_own_store.py, tests/kernel/test_own_database.py.
REFUSED = {
    "an upper layer of the host": (
        "mv .inx/upper .inx/away; ln -s /etc .inx/upper",
        "/nix/.inx/upper of {name} cannot be used",
    ),
    "a database of the host": (
        "ln -sf /nix/var/nix/db/db.sqlite var/nix/db/db.sqlite",
        "/nix/var/nix/db of {name} cannot be used (db.sqlite is not a file)",
    ),
    "roots that lead elsewhere": (
        "rm -r var/nix/gcroots/inx; ln -s /nix/var/nix/gcroots/auto var/nix/gcroots/inx",
        "/nix/var/nix/gcroots/inx of {name} cannot be used",
    ),
    "too many records": (
        "cd .inx/shown; seq 10001 | sed s,^,$A-, | xargs -n 1000 touch",
        "/nix/.inx/shown of {name} holds over 10000 entries",
    ),
}


class Planted:
    """The instance is stopped, and a copy of /nix of its root file system is at hand."""

    def __init__(self, vault: Vault) -> None:
        self.vault, self.incus, self.host = vault, vault.incus, vault.host
        boot(vault)
        self.system = vault.system
        self.stop()
        self.rootfs = f"{POOL}/{vault.name}/rootfs"
        self.saved = f"/var/tmp/{vault.name}"
        self.host.sh(f"rm -rf {self.saved}; cp -a {self.rootfs}/nix {self.saved}")

    def plant(self, script: str) -> None:
        restore = f"cd {self.rootfs}/nix; find . -mindepth 1 -delete; cp -a {self.saved}/. .\n"
        env = {"A": self.vault.shown_name, "S": self.vault.secret_name}
        self.host.sh(restore + script, env=env | {"T": os.path.basename(self.system)})

    def stop(self) -> None:
        self.incus("stop", "-f", self.vault.name)


def test_what_is_planted_in_the_root_file_system_does_no_harm(vault: Vault, host: Host) -> None:
    planted, incus, name = Planted(vault), vault.incus, vault.name
    wrong: dict[str, str] = {}
    with unchanged(host):
        for what, script in HARMLESS.items():
            planted.plant(script)
            if start(incus, name):
                wrong[what] = f"did not start: {refusal(incus, name)}"
                continue
            incus.wait_inside(name)
            incus.wait_ready(name)
            seen = f"""
                [ $(readlink -f /run/current-system) = {planted.system} ] && test -x {planted.system}/init
                grep -q 'bytes of' {vault.shown}/file && grep -q 'bytes of' {vault.shown}/below/file
                ! ls {vault.secret} && ! grep -r 'bytes of .*secret' /nix/store/user /nix/store/trusted
                nix-store --verify --check-contents
            """  # noqa: E501
            looked = incus.sh(name, seen, check=False)
            if looked.returncode:
                wrong[what] = f"{looked}"
            planted.stop()
        for what, (script, text) in REFUSED.items():
            planted.plant(script)
            said = refusal(incus, name) if start(incus, name) else "it has started"
            if not said.startswith(text.format(name=repr(name))):
                wrong[what] = said
                incus("stop", "-f", name, check=False)
    planted.plant("")
    incus.start(name)
    incus.wait_ready(name)
    assert wrong == {}, "\n".join(f"{what}: {how}" for what, how in wrong.items())


@pytest.fixture
def impatient(host: Host) -> Iterator[None]:
    """The sidecar gives up sooner what a container keeps waiting."""
    with constant(host, "kernel/forked", "_SECONDS", 4.0):
        yield


def test_a_file_system_that_never_answers_delays_nobody_else(
    impatient: None, vault: Vault, host: Host
) -> None:
    """It covers the shown layer, in which an update adds what is new."""
    incus, name = vault.incus, vault.name
    foreign = build_foreign(incus, "other")
    neighbour = incus.launch(name=incus.name("neighbour"), store="own", system=vault.system)
    for how, said in (
        # The kernel keeps everybody else away from a FUSE file system of the container.
        (never_answer, "failed: /nix/.inx of .* was unmounted inside"),
        (never_answer_below_overlay, "failed: showing more in the store of .* took over 4 s"),
    ):
        if not incus.pid(name):
            incus.start(name)
            incus.wait_ready(name)
        with stalled(incus, name, SHOWN, how) as requests:
            incus.set(name, f"user.inx.system={foreign}", "user.inx.flake=")
            if how is never_answer_below_overlay:
                assert requests.readline() == '"asked"\n'
            # Meanwhile others are updated and started.
            incus.set(neighbour, f"user.inx.system={foreign}")
            incus.eventually(
                lambda: incus.get(neighbour, "user.inx.status.system") == foreign, incus.story
            )
            incus.wait_status(name, said)
        incus.set(name, f"user.inx.system={vault.system}")
        incus.set(neighbour, f"user.inx.system={vault.system}")
    incus.start(name)
    incus.wait_ready(name)
    is_right(incus, name)
