"""The flake that inx writes for modules."""

import json
from dataclasses import replace
from typing import Any

import pytest

from inx_sidecar.builds import module_flake
from inx_sidecar.builds.module_flake import body_text, flake_files, is_impure, nodes_of_base
from inx_sidecar.config.locks import Lock
from inx_sidecar.config.sources import Flake, Modules

pytestmark = pytest.mark.main

KEY = "user.inx.config"
TEXT = "a = 1;\nb = 2;"
LOCK = Lock("", "", (("narHash", "sha256-x"), ("path", "/nix/store/x"), ("type", "path")))
SOURCE = Modules(((KEY, TEXT),), (), "web", nixpkgs="flake:nixpkgs")


def flake(source: Modules, lock: Lock | None = None) -> str:
    return flake_files(source, frozenset(), lock)["flake.nix"]


def test_a_text_is_a_file_of_its_key() -> None:
    whole = flake_files(SOURCE, frozenset(), LOCK)
    assert whole[KEY] == TEXT
    body = flake_files(SOURCE, frozenset({KEY}), LOCK)
    assert body[KEY] == body_text(TEXT)
    # The lines keep their numbers.
    assert body[KEY].splitlines()[1] == "b = 2;" and body[KEY].count("\n") == TEXT.count("\n") + 2


def test_nixpkgs_is_what_the_lock_says() -> None:
    files = flake_files(SOURCE, frozenset(), LOCK)
    node = json.loads(files["flake.lock"])["nodes"]["source"]
    assert node["locked"] == dict(LOCK.attributes)
    # Nix takes the node only for an input that is written like this.
    assert node["original"] == {"type": "indirect", "id": "source"} and node["flake"] is False
    assert 'inputs.source = { url = "flake:source"; flake = false; };' in files["flake.nix"]
    assert "nixpkgs = inputs.source;" in files["flake.nix"]
    assert 'inputs.source + "/nixos"' in flake(SOURCE, replace(LOCK, below="/nixos"))


def test_a_directory_of_the_host_is_no_input() -> None:
    local = replace(SOURCE, nixpkgs="/srv/nixpkgs")
    assert 'nixpkgs = /. + "/srv/nixpkgs";' in flake(local) and "inputs.source" not in flake(local)
    assert "flake.lock" not in flake_files(local, frozenset(), None)


def test_modules_extend_a_flake() -> None:
    text = flake(replace(SOURCE, base=Flake("path:/srv/x", "web.a", attr_given=True)))
    assert ".extended {" in text and 'flake = builtins.getFlake "path:/srv/x";' in text
    assert 'attr = "web.a";' in text and "hostPlatform" not in text and "factsOf" not in text


def test_the_lock_of_a_flake_that_is_an_input() -> None:
    """As 'nix flake metadata --json' tells of it: with what follows another input."""
    leaf = {"locked": {"type": "path"}, "original": {"type": "indirect", "id": "nixpkgs"}}
    told = {
        "locked": {"type": "github", "narHash": "sha256-x", "__final": True},
        "locks": {
            "nodes": {
                "nixpkgs": leaf,
                "utils": leaf | {"inputs": {"nixpkgs": ["nixpkgs"], "systems": "systems"}},
                "systems": leaf,
                "top": {"inputs": {"nixpkgs": "nixpkgs", "utils": "utils"}},
            },
            "root": "top",
            "version": 7,
        },
    }
    base = nodes_of_base(told)
    name = base["root"]["inputs"]["source"]
    assert base[name]["locked"] == {"type": "github", "narHash": "sha256-x"}
    assert base[name]["inputs"] == {"nixpkgs": "nixpkgs", "utils": "utils"}
    assert base["utils"]["inputs"] == {"nixpkgs": ["source", "nixpkgs"], "systems": "systems"}
    assert base["nixpkgs"] == leaf and "top" not in base
    source = replace(SOURCE, base=Flake("github:o/r", "web", attr_given=True))
    files = flake_files(source, frozenset(), None, base)
    assert json.loads(files["flake.lock"])["nodes"] == base
    assert 'inputs.source.url = "flake:source";' in files["flake.nix"]
    assert "flake = inputs.source;" in files["flake.nix"]
    strange: list[dict[str, Any]] = [{}, {"locked": {}}, told | {"locks": []}, told | {"locked": 1}]
    for wrong in strange:
        with pytest.raises((KeyError, TypeError, AttributeError)):
            nodes_of_base(wrong)


def test_the_first_build_takes_the_release_of_nixpkgs() -> None:
    assert "stateVersion = null;" in flake(SOURCE, LOCK)
    assert 'stateVersion = "25.11";' in flake(replace(SOURCE, state_version="25.11"), LOCK)


IMPURE = {
    "a text": (SOURCE, False),
    "a file": (replace(SOURCE, files=(("user.inx.module", "/srv/x.nix"),)), True),
    "nixpkgs here": (replace(SOURCE, nixpkgs="/srv/nixpkgs"), True),
    "a flake here": (replace(SOURCE, base=Flake("path:/srv/x", "web", False)), True),
    "a flake elsewhere": (replace(SOURCE, base=Flake("github:o/r", "web", False)), False),
}


@pytest.mark.parametrize(("source", "impure"), IMPURE.values(), ids=IMPURE)
def test_only_what_lies_on_the_host_is_evaluated_impurely(source: Modules, impure: bool) -> None:
    assert is_impure(source) is impure


def test_strings_of_nix() -> None:
    strange = 'a"b\\c${d}$$e\n'
    assert module_flake._string(strange) == '"a\\"b\\\\c\\${d}$$e\n"'


@pytest.mark.parametrize(
    ("machine", "platform"),
    [
        ("x86_64", "x86_64-linux"),
        ("aarch64", "aarch64-linux"),
        ("armv7l", "armv7l-linux"),
        ("i686", "i686-linux"),
        ("ppc64le", "powerpc64le-linux"),
        ("riscv64", "riscv64-linux"),
    ],
)
def test_platforms(machine: str, platform: str) -> None:
    assert module_flake.platform(machine) == platform
