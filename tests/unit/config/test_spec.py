"""A spec asks for the same system as long as its fingerprint is the same."""

import string

import pytest

from inx_sidecar.config.sources import Flake
from unit.config.test_keys import SYSTEM, spec

pytestmark = pytest.mark.main


def test_the_name_of_the_instance_is_no_part_of_the_source() -> None:
    """A copy has another name and the same system."""
    assert spec("web").fingerprint() == spec("copy").fingerprint()
    assert spec("web", flake="/x").fingerprint() == spec("copy", flake="/x").fingerprint()
    assert spec("web", file="/x").fingerprint() == spec("copy", file="/x").fingerprint()
    assert spec("web", flake="/x#web").fingerprint() != spec("web", flake="/x").fingerprint()
    file = {"file": "/x", "attr": "web"}
    assert spec("web", **file).fingerprint() != spec("web", file="/x").fingerprint()


def test_sources_of_different_kinds_never_look_alike() -> None:
    specs = [spec(flake="/x"), spec(file="/x"), spec(system="/x"), spec(flake="/x#y")]
    specs += [spec(file="/x", attr="y"), spec(file="/x", update="1"), spec(file="/y")]
    assert len({each.fingerprint() for each in specs}) == len(specs)


def test_a_system_is_known_by_where_it_leads() -> None:
    one, two = spec(system="/srv/one"), spec(system="/srv/two")
    assert one.fingerprint(SYSTEM) == two.fingerprint(SYSTEM) != one.fingerprint(SYSTEM + "x")


def test_what_changes_no_system_asks_for_no_rebuild() -> None:
    keys = {"keep": "9", "generation": "3", "daemon": "false", "store": "shared"}
    assert spec(**keys).fingerprint() == spec().fingerprint()
    assert spec(update="now").fingerprint() != spec().fingerprint()


def test_a_fingerprint_tells_nothing_about_the_source() -> None:
    found = spec(flake="git+https://token@host/r").fingerprint()
    assert len(found) == 32 and set(found) <= set(string.hexdigits)


@pytest.mark.parametrize(
    ("ref", "directory"),
    [
        ("/etc/nixos", "/etc/nixos"),
        ("/etc/nixos?dir=a", "/etc/nixos/a"),
        ("path:/srv/x", "/srv/x"),
        ("path:///srv/x", "/srv/x"),
        ("git+file:///srv/x?ref=main", "/srv/x"),
        ("git+file:/srv/x", "/srv/x"),
        ("github:o/r", None),
        ("https://host/etc/nixos", None),
        ("nixpkgs", None),
    ],
)
def test_a_flake_on_this_host_has_a_directory(ref: str, directory: str | None) -> None:
    source = spec(flake=ref).source
    assert isinstance(source, Flake) and source.directory() == directory


def test_the_installable_quotes_the_attribute() -> None:
    source = spec(flake="/etc/nixos#some.name").source
    assert isinstance(source, Flake)
    wanted = '/etc/nixos#nixosConfigurations."some.name".config.system.build.toplevel'
    assert source.installable() == wanted
