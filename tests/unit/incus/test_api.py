"""URLs quote names of instances and projects; booleans are read as Incus reads them."""

import pytest

from inx_sidecar.incus.api import _instance, is_true

pytestmark = pytest.mark.main


@pytest.mark.parametrize("text", ["true", "TRUE", "1", "yes", "On"])
def test_what_incus_takes_for_true(text: str) -> None:
    assert is_true(text)


@pytest.mark.parametrize("text", ["", "false", "0", "no", "off", "y", " true"])
def test_what_incus_does_not_take_for_true(text: str) -> None:
    assert not is_true(text)


def test_a_name_stays_one_part_of_the_url() -> None:
    assert _instance("default", "web") == "/1.0/instances/web?project=default"
    url = _instance("a&b/c", "../x?y", "/state")
    assert url == "/1.0/instances/..%2Fx%3Fy/state?project=a%26b%2Fc"
