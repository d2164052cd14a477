"""`inx-sidecar check` reports what is missing on a host."""

import pytest

from inx_sidecar.checks.finding import Finding, at_least
from inx_sidecar.checks.nix import store_owner

pytestmark = pytest.mark.main


@pytest.mark.parametrize(
    ("text", "ok"),
    [("6.0", True), ("6.0.4", True), ("7.1", True), ("6.12.3-arch", True), ("5.21", False),
     ("", False), ("six", False)],
)  # fmt: skip
def test_versions_compare_by_number(text: str, ok: bool) -> None:
    finding = at_least("Incus", text, (6, 0), "why")
    assert finding.ok is ok and finding.subject == f"Incus {text}"


def test_a_finding_is_one_line() -> None:
    assert Finding("x").describe() == "ok    x"
    assert Finding("x", "do y").describe() == "FAIL  x: do y"


def test_a_store_of_another_user_than_root_is_reported() -> None:
    assert store_owner(0).ok
    assert "run the Nix daemon as root" in store_owner(350).advice
