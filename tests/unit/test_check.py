"""`inx-sidecar check` reports what is missing on a host."""

import pytest
import yaml
from support.disposable import REPO

from inx_sidecar.check import Finding, _at_least, missing_lines, store_owner

pytestmark = pytest.mark.main

WANTED = "lxc.init.cmd = /dev/.inx/init\nlxc.hook.stop = /etc/inx/hooks/stop\n"


def test_an_equal_text_lacks_no_line() -> None:
    assert missing_lines(WANTED, WANTED) == ""


def test_spaces_order_and_more_lines_do_not_matter() -> None:
    present = "lxc.cap.drop =\n\nlxc.hook.stop=/etc/inx/hooks/stop\n lxc.init.cmd  =/dev/.inx/init"
    assert missing_lines(WANTED, present) == ""


def test_every_missing_line_is_reported() -> None:
    text = missing_lines(WANTED, "lxc.init.cmd = /sbin/init\n")
    assert "lacks 'lxc.init.cmd = /dev/.inx/init', 'lxc.hook.stop = /etc/inx/hooks/stop'" in text
    assert "lxc.hook.stop" in missing_lines(WANTED, "lxc.init.cmd = /dev/.inx/init")


def test_an_empty_raw_lxc_lacks_all_lines() -> None:
    profile = yaml.safe_load((REPO / "profiles/inx.yaml").read_text())
    raw = profile["config"]["raw.lxc"]
    assert missing_lines(raw, raw) == ""
    assert all(repr(line) in missing_lines(raw, "") for line in raw.splitlines())


def test_the_former_name_of_a_hook_is_accepted() -> None:
    wanted = "lxc.hook.start-host = /etc/inx/hooks/mount"
    assert missing_lines(wanted, "lxc.hook.start-host = /etc/inx/hooks/start-host") == ""
    assert missing_lines(wanted, "lxc.hook.start-host = /etc/inx/hooks/stop") != ""


def test_a_line_in_a_comment_is_missing() -> None:
    assert missing_lines(WANTED, WANTED.replace("lxc.hook", "# lxc.hook")) != ""


@pytest.mark.parametrize(
    ("text", "ok"),
    [("6.0", True), ("6.0.4", True), ("7.1", True), ("6.12.3-arch", True), ("5.21", False),
     ("", False), ("six", False)],
)  # fmt: skip
def test_versions_compare_by_number(text: str, ok: bool) -> None:
    finding = _at_least("Incus", text, (6, 0), "why")
    assert finding.ok is ok and finding.subject == f"Incus {text}"


def test_a_finding_is_one_line() -> None:
    assert Finding("x").describe() == "ok    x"
    assert Finding("x", "do y").describe() == "FAIL  x: do y"


def test_a_store_of_another_user_than_root_is_reported() -> None:
    assert store_owner(0).ok
    assert "run the Nix daemon as root" in store_owner(350).advice
