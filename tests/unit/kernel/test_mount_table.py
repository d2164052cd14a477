"""Lines of mountinfo, and places within file systems."""

import pytest

from inx_sidecar.kernel.mount_table import Mount, Place, parse_mounts

pytestmark = pytest.mark.main


def test_a_line_is_read_with_and_without_optional_fields() -> None:
    text = (
        "416 395 0:59 / / rw,relatime shared:120 master:1 - overlay overlay rw,lowerdir=/x\n"
        "430 416 254:0 /a\\040b /mnt/c\\134d rw - ext4 /dev/vda rw\n"
    )
    assert parse_mounts(text) == [
        Mount(416, "0:59", "/", "/", "overlay", "overlay"),
        Mount(430, "254:0", "/a b", "/mnt/c\\d", "ext4", "/dev/vda"),
    ]


def test_a_place_is_within_itself_and_what_is_above() -> None:
    place = Place("8:1", "/a/b")
    for above in ("/a/b", "/a", "/"):
        assert place.is_within(Place("8:1", above))
        assert not place.is_within(Place("8:2", above))
    for other in ("/a/b/c", "/a/bb", "/b", "/a/x"):
        assert not place.is_within(Place("8:1", other))
