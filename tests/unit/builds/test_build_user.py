"""The owner of a source evaluates it, unless an instance can write what is read."""

from dataclasses import replace

import pytest

from inx_sidecar.builds.build_user import SharedPlaces, choose_owner
from inx_sidecar.builds.local_source import LocalSource
from inx_sidecar.kernel.mount_table import Place

pytestmark = pytest.mark.main

DISK, OTHER = "8:1", "8:2"
SOURCE = LocalSource(
    owner=0,
    doubt="",
    steps=tuple(Place(DISK, path) for path in ("/", "/etc", "/etc/nixos", "/etc/nixos/flake.nix")),
    trees=(Place(DISK, "/etc/nixos"), Place(OTHER, "/mounted")),
    ref="path:/etc/nixos",
    directory="/etc/nixos",
)
BY = "the disk device 'data' of the instance 'web' shares"


def owner(*places: Place, source: LocalSource = SOURCE) -> int | None:
    return choose_owner(source, [SharedPlaces(BY, places)])[0]


def test_what_lies_elsewhere_is_no_matter() -> None:
    assert owner() == 0
    for place in (
        Place(DISK, "/srv"), Place(DISK, "/etc/nixos-2"), Place(DISK, "/etc/nix"),
        Place(OTHER, "/else"), Place("8:3", "/etc/nixos"), Place("8:11", "/"),
    ):  # fmt: skip
        assert owner(place) == 0, place


@pytest.mark.parametrize(
    "place",
    [
        Place(DISK, "/"),
        Place(DISK, "/etc"),
        Place(DISK, "/etc/nixos"),
        Place(DISK, "/etc/nixos/deep/below"),
        Place(DISK, "/etc/nixos/flake.nix"),
        Place(OTHER, "/"),
        Place(OTHER, "/mounted/x"),
    ],
)
def test_what_is_shared_above_or_below_is_not_evaluated_as_its_owner(place: Place) -> None:
    found, why = choose_owner(SOURCE, [SharedPlaces("nobody has", ()), SharedPlaces(BY, (place,))])
    assert (found, why) == (None, f"{BY} files of /etc/nixos")


def test_a_link_on_the_way_counts_by_its_own_place() -> None:
    """Who can write the directory of a link can lead it elsewhere."""
    source = replace(SOURCE, steps=(*SOURCE.steps, Place("9:9", "/shared/link")))
    assert owner(Place("9:9", "/shared"), source=source) is None
    assert owner(Place("9:9", "/shared/link/below"), source=source) == 0


def test_what_is_not_known_is_a_doubt() -> None:
    assert choose_owner(SOURCE, "Incus does not answer") == (None, "Incus does not answer")
    unknown = SharedPlaces(
        "raw.lxc of x reads a file, which may share", (), "the files of the host"
    )
    assert choose_owner(SOURCE, [unknown])[0] is None
    several = replace(SOURCE, owner=None, doubt="several users can change /etc/nixos")
    assert choose_owner(several, []) == (None, "several users can change /etc/nixos")
