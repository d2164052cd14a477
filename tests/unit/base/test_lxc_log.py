"""A message is appended to the log that LXC writes, in LXC's own format, if there is one."""

import re
from pathlib import Path

import pytest

from inx_sidecar.base import lxc_log

pytestmark = pytest.mark.main

LINE = r"lxc web \d{14}\.\d{3} ERROR    inx - the reason\n"


def test_a_reason_is_appended_to_the_log_that_the_configuration_names(tmp_path: Path) -> None:
    config, log = tmp_path / "lxc.conf", tmp_path / "lxc.log"
    config.write_text(f"lxc.log.level = warn\n lxc.log.file = {log}\nlxc.log.file = /other\n")
    log.write_text("earlier\n")
    line = lxc_log.append(str(config), "web", "the reason")
    assert re.fullmatch(LINE, line)
    assert log.read_text() == f"earlier\n{line}"


@pytest.mark.parametrize("text", ["", "lxc.log.level = warn\n", "lxc.log.file = /missing/log\n"])
def test_without_a_log_the_line_is_only_returned(tmp_path: Path, text: str) -> None:
    config = tmp_path / "lxc.conf"
    config.write_text(text)
    assert re.fullmatch(LINE, lxc_log.append(str(config), "web", "the reason"))
    assert [path.name for path in tmp_path.iterdir()] == ["lxc.conf"]


def test_without_a_configuration_the_line_is_only_returned(tmp_path: Path) -> None:
    assert re.fullmatch(LINE, lxc_log.append(str(tmp_path / "gone"), "web", "the reason"))
