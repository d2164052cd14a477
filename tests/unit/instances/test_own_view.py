"""The status counts what was built inside and cannot be valid any more."""

import pytest

from inx_sidecar.instances.own_view import incomplete_text

pytestmark = pytest.mark.isolated


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (1, "1 store path that was built inside lacks what it needs; build it again"),
        (2, "2 store paths that were built inside lack what they need; build them again"),
    ],
)
def test_the_text_fits_the_number(count: int, text: str) -> None:
    assert incomplete_text(count) == text
