"""A look at the open files of a Nix daemon of an instance sees all of them."""

import configparser

import pytest
from support.disposable import REPO

from inx_sidecar.kernel.flocks import FILES_MAX

pytestmark = pytest.mark.main


def test_a_daemon_has_no_more_files_open_than_are_looked_at() -> None:
    """A client could make its worker hide a lock behind others."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(REPO / "systemd/inx-nix-daemon@.service")
    assert unit["Service"]["LimitNOFILE"] == str(FILES_MAX)  # one number: soft and hard
