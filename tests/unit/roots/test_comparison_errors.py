"""A complaint is logged once, until a comparison does not have it."""

import pytest

from inx_sidecar.roots.comparison_errors import ComparisonErrors

pytestmark = pytest.mark.gc


def test_a_complaint_is_logged_once_until_a_comparison_is_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    complaints = ComparisonErrors(lambda _uuid, _text: None)
    for complains in (True, True, False, True):
        complaints.begin_comparison()
        if complains:
            complaints.add("uuid", "web", OSError("no disk"))
    assert [record.getMessage() for record in caplog.records] == ["web: no disk"] * 2


def test_another_complaint_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    complaints = ComparisonErrors(lambda _uuid, _text: None)
    complaints.add("uuid", "web", OSError("no disk"))
    complaints.add("uuid", "web", OSError("no room"))
    complaints.add("other", "shop_web", OSError("no room"))
    assert [record.getMessage() for record in caplog.records] == [
        "web: no disk", "web: no room", "shop_web: no room",
    ]  # fmt: skip


def test_each_complaint_is_shown_and_the_first_one_of_a_comparison_is_kept() -> None:
    shown: list[tuple[str, str]] = []
    complaints = ComparisonErrors(lambda uuid, text: shown.append((uuid, text)))
    assert complaints.first == ""
    complaints.add("2", "web", OSError("b"))
    complaints.add("1", "mail", OSError("a"))
    assert shown == [("2", "b"), ("1", "a")] and complaints.first == "a"
    complaints.begin_comparison()
    assert complaints.first == ""
