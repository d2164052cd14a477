"""A log message has a level and an instance, with and without a journal."""

import logging

import pytest

from inx_sidecar.base.journal import _Journal, instance_log

pytestmark = pytest.mark.main


def test_without_a_journal_every_line_has_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    handler = _Journal(None)
    for level, prefix in ((logging.ERROR, "<3>"), (logging.INFO, "<6>"), (logging.DEBUG, "<7>")):
        handler.emit(logging.LogRecord("x", level, "", 0, "web: one\ntwo", None, None))
        assert capsys.readouterr().err == f"{prefix}web: one\n{prefix}two\n"


def test_what_is_about_an_instance_names_it(caplog: pytest.LogCaptureFixture) -> None:
    instance_log("shop_web").warning("%s of %d", "one", 2)
    (record,) = caplog.records
    assert record.getMessage() == "shop_web: one of 2"
    assert record.__dict__["INX_INSTANCE"] == "shop_web"
