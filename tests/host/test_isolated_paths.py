"""Root inside an isolated container looks for other store paths by path."""

import pytest
from support.attacker.reading import ALL_OF_A_DIRECTORY, names_in, reach
from support.attacks import inside
from support.incus import Incus
from support.store import STORE
from support.vault import Vault, build_foreign, name_of_path, names_of_closure

pytestmark = pytest.mark.isolated


def test_the_view_lists_the_closure_and_nothing_else(incus: Incus) -> None:
    vault = Vault(incus).launch()
    assert set(vault.do(names_in, STORE)) == vault.visible()
    assert incus.said(vault.name, "ls", "-A", STORE).split() == sorted(vault.visible())
    assert vault.secret_name in vault.foreign()
    other = names_of_closure(incus, build_foreign(incus, "other"))
    assert {".links", *other} - vault.visible()


def test_no_other_store_path_can_be_reached_by_its_name(incus: Incus) -> None:
    vault = Vault(incus).launch()
    build_foreign(incus, "other")
    names = vault.foreign()
    assert {".links", vault.secret_name} < set(names)
    paths = [f"{STORE}/{name}" for name in (*names, ".links/0secret")]
    assert vault.do(reach, [*paths, vault.shown]) == {vault.shown: ALL_OF_A_DIRECTORY}
    shared = incus.launch(name=incus.name("shared"), flake="/etc/nixos#web")
    reached = inside(incus, shared, reach, paths)
    assert reached.keys() == set(paths)
    assert reached[vault.secret] == ALL_OF_A_DIRECTORY


def ways_to_the_store(store: str, shown: str) -> list[str]:
    """Directories from which one might reach the store, or the layers of the view."""
    name = name_of_path(shown)
    return [
        f"{store}/.",
        f"{store}/../store",
        f"{store}/..",
        f"{store}/../entries",
        f"{store}/../../all",
        f"{store}/../all",
        f"{store}/../../0.layers/all",
        f"{store}/{name}/..",
        f"{store}/{name}/../..",
        f"{store}/{name}/below/../..",
        f"{store}/{name}/below/../../..",
        "/proc/self/root/nix/store",
        "/proc/1/root/nix/store",
        "/proc/1/root/../nix/store",
        "/proc/1/root/../../../../../../../nix/store",
        "/proc/1/cwd/../../../../nix/store",
        "/run/inx/0.layers/all",
        "/run/inx/0.layers/overlay",
        "/../../nix/store",
    ]


def test_no_steps_upwards_lead_out_of_the_view(incus: Incus) -> None:
    vault = Vault(incus).launch()
    secret, shown = vault.secret_name, vault.shown_name
    places = ways_to_the_store(STORE, vault.shown)
    assert vault.do(reach, [f"{place}/{secret}" for place in places]) == {}
    found = vault.do(reach, [f"{place}/{shown}" for place in places])
    assert len(found) == 10, found
    assert set(vault.do(names_in, f"{STORE}/..")) == {"store", "var"}
    for place in (f"{STORE}/../..", f"{vault.shown}/../../..", "/proc/1/root/.."):
        assert "nix" in vault.do(names_in, place)
        assert "lost+found" not in vault.do(names_in, place)
    assert not {"all", "named", "entries"} & set(vault.do(names_in, f"{STORE}/../.."))


# Exit status 0 if a process leads to the store path $3, else 3.
LOOK_IN_PROC = """
    cd "$1"; exec 8<"$1" 9<"$2"
    name=${3##*/} status=3
    for process in /proc/[0-9]*; do
        for way in $process/root $process/cwd $process/fd/* $process/map_files/* \
                $process/task/*/root $process/task/*/cwd; do
            for up in . .. ../.. nix/store ../nix/store ../../../../nix/store ../all ../../all; do
                [ ! -e "$way/$up/$name" ] || status=0
            done
        done
    done
    exit $status
"""


def test_no_process_inside_leads_to_another_path(incus: Incus) -> None:
    vault = Vault(incus).launch()

    def found(path: str) -> int:
        look = ["sh", "-uc", LOOK_IN_PROC, "sh", vault.shown, STORE, path]
        return incus.run(vault.name, *look, check=False).returncode

    assert found(vault.shown) == 0
    assert found(vault.secret) == 3
