"""Modules in the keys of an instance."""

from dataclasses import replace

import pytest

from inx_sidecar.base.errors import ConfigError
from inx_sidecar.config.keys import parse_spec
from inx_sidecar.config.locks import Lock, digest_of
from inx_sidecar.config.module_keys import nixpkgs_reference
from inx_sidecar.config.settings import Settings
from inx_sidecar.config.sources import Flake, Modules
from inx_sidecar.config.spec import InstanceSpec
from inx_sidecar.incus.status_keys import LOCKED, STATE_VERSION

pytestmark = pytest.mark.main

HASH = "sha256-XM1gT4UCJuvRsYesNJlpgqCR+IJVmaBWXs3ySozk/xY="
TEXT = "services.nginx.enable = true;"


def spec(**keys: str) -> InstanceSpec:
    """Keys of inx, with "__" for "."."""
    config = {f"user.inx.{key.replace('__', '.')}": value for key, value in keys.items()}
    return parse_spec(config, "web", "/etc/nixos")


def modules(**keys: str) -> Modules:
    source = spec(**keys).source
    assert isinstance(source, Modules)
    return source


def refusal(**keys: str) -> str:
    with pytest.raises(ConfigError) as error:
        spec(**keys)
    return str(error.value)


def test_texts_and_files_become_one_source() -> None:
    source = modules(config__b="b = 1;", config="a = 1;", module="/srv/x.nix", module__y="/srv/y")
    assert source.texts == (("user.inx.config", "a = 1;"), ("user.inx.config.b", "b = 1;"))
    assert source.files == (("user.inx.module", "/srv/x.nix"), ("user.inx.module.y", "/srv/y"))
    assert source.base is None and source.nixpkgs == "" and source.attr == "web"
    assert str(source) == "user.inx.config, user.inx.config.b and 2 more"
    assert str(modules(config=TEXT)) == "user.inx.config"


def test_modules_extend_a_flake_that_is_named() -> None:
    source = modules(config=TEXT, flake="/srv/x#other")
    assert source.base == Flake("/srv/x", "other", attr_given=True)
    assert str(source) == "/srv/x#other with user.inx.config"
    # Not the default one.
    assert modules(config=TEXT).base is None


@pytest.mark.parametrize(
    "change",
    [
        {"config": "a = 2;"},
        {"config__more": "b = 1;"},
        {"module": "/srv/x.nix"},
        {"nixpkgs": "nixos-26.05"},
        {"update": "2"},
        {"flake": "/srv/x"},
    ],
)
def test_what_changes_the_source(change: dict[str, str]) -> None:
    before = {"config": "a = 1;"}
    assert spec(**before).fingerprint() != spec(**before | change).fingerprint()


def test_what_is_kept_of_a_build_does_not_change_the_source() -> None:
    lock = Lock("", digest_of(""), (("narHash", HASH), ("type", "github")))
    config = {"user.inx.config": TEXT, LOCKED: lock.text(), STATE_VERSION: "25.11"}
    kept = parse_spec(config, "web", "/etc/nixos")
    assert isinstance(kept.source, Modules)
    assert kept.source.lock == lock and kept.source.state_version == "25.11"
    assert kept.fingerprint() == spec(config=TEXT).fingerprint()
    # A copy has another name, and the same system.
    assert parse_spec(config, "copy", "/etc/nixos").fingerprint() == kept.fingerprint()


def test_a_lock_is_for_one_reference_and_one_update() -> None:
    def lock_of(reference: str, of: str, **keys: str) -> Lock | None:
        attributes = (("narHash", HASH), ("owner", "o"), ("repo", "r"), ("type", "github"))
        text = Lock(reference, digest_of(of), attributes).text()
        return modules(config=TEXT, **{LOCKED.removeprefix("user.inx."): text}, **keys).lock

    assert lock_of("", "") is not None
    assert lock_of("", "1", update="1") is not None
    assert lock_of("nixos-26.05", "", nixpkgs="nixos-26.05") is not None
    assert lock_of("", "", update="1") is None
    assert lock_of("", "", nixpkgs="nixos-26.05") is None
    assert lock_of("nixos-26.05", "") is None


def test_a_wrong_state_version_counts_as_none() -> None:
    config = {"user.inx.config": TEXT, STATE_VERSION: '26.05"; evil = "'}
    source = parse_spec(config, "web", "/etc/nixos").source
    assert isinstance(source, Modules) and source.state_version == ""


REFUSED = {
    "file": ({"config": TEXT, "file": "/srv/x.nix"}, "config and user.inx.file exclude each other"),
    "system": ({"module__a": "/x", "system": "/x"}, "module.a and user.inx.system exclude"),
    "nixpkgs alone": ({"nixpkgs": "nixpkgs"}, "nixpkgs goes with user.inx.config or"),
    "nixpkgs of a flake": (
        {"config": TEXT, "flake": "/x", "nixpkgs": "nixpkgs"},
        "the flake has its own nixpkgs",
    ),
    "a part of nixpkgs": ({"config": TEXT, "nixpkgs": "nixpkgs#hello"}, "without '#'"),
    "a relative path": ({"module": "web.nix"}, "an absolute path"),
    "a blank": ({"module": "/srv/web.nix\n"}, "without blanks around it"),
    "a flake": ({"module": "/srv/flake.nix"}, "a flake goes into user.inx.flake"),
    "a step up": ({"module": "/srv/../root/x.nix"}, "the absolute path of a module"),
    "NUL": ({"config": "a = 1;\nb = \0;"}, r"user.inx.config:2: the control character '\x00'"),
    "a surrogate": ({"config__a": "\n\n\ud800"}, "user.inx.config.a:3: a character that is not"),
    "a name": ({"config__a b": TEXT}, "unknown key 'user.inx.config.a b'"),
    "a long name": ({f"config__{'a' * 65}": TEXT}, "unknown key"),
    "two levels": ({"config__a__b": TEXT}, "unknown key"),
    "size": ({"config": "#" * 65_530, "config__a": "# x\n# y"}, "config.a:2: here the texts"),
    "number": ({f"config__{n}": "#" for n in range(65)}, "are 65; at most 64 are allowed"),
}


@pytest.mark.parametrize(("keys", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(keys: dict[str, str], told: str) -> None:
    assert told in refusal(**keys)


def test_a_channel_is_a_branch_of_nixpkgs() -> None:
    assert nixpkgs_reference("nixos-26.05") == "nixpkgs/nixos-26.05"
    assert nixpkgs_reference("nixos-unstable-small") == "nixpkgs/nixos-unstable-small"
    for other in ("nixpkgs", "github:o/r", "/srv/nixpkgs", "flake:nixpkgs"):
        assert nixpkgs_reference(other) == other


def check(source: Modules, *allowed: str) -> str:
    try:
        replace(Settings(), allowed_flakes=allowed).check_allowed(source)
    except ConfigError as error:
        return str(error)
    return ""


def test_a_host_that_allows_some_sources_alone() -> None:
    text, file = modules(config=TEXT), modules(module="/srv/x.nix")
    assert "add 'user.inx.config' there" in check(text, "/srv")
    assert check(text, "user.inx.config") == "" == check(text, "")
    assert check(file, "/srv") == "" and "user.inx.module is '/srv/x.nix'" in check(file, "/etc")
    extended = modules(config=TEXT, flake="/etc/nixos")
    assert "user.inx.flake is '/etc/nixos'" in check(extended, "user.inx.config")
    assert check(extended, "user.inx.config", "/etc/nixos") == ""
    other = modules(config=TEXT, nixpkgs="github:evil/nixpkgs")
    assert "user.inx.nixpkgs is" in check(other, "user.inx.config", "github:NixOS/")
    secret = modules(config=TEXT, nixpkgs="git+https://me:hush@example.org/nixpkgs")
    assert "password" in check(secret, "") and "hush" not in check(secret, "")
