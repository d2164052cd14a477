"""A service starts with what it needs alone; click knows all commands."""

import hashlib
import ssl
import subprocess
import sys

import pytest

from inx_sidecar import cli, services
from inx_sidecar.base.errors import UnsupportedError

pytestmark = pytest.mark.main

# The sidecar ends at once, as systemd passes no socket to it.
SIDECAR = """
import sys
from inx_sidecar import command
sys.argv = ["inx-sidecar", "run"]
try:
    command.main()
except SystemExit as end:
    print(end.code)
print(*(name for name, module in sys.modules.items() if module))
import hashlib
print(hashlib.sha1(b"inx").hexdigest(), hashlib.sha256(b"inx").hexdigest())
import pyroute2, ssl  # as for an instance with static addresses
print(ssl.OPENSSL_VERSION)
"""


def test_the_sidecar_keeps_neither_click_nor_openssl_in_memory(processes: None) -> None:
    """Each of these is more than a MiB."""
    argv = [sys.executable, "-c", SIDECAR]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert done.stderr.startswith("<3>the sidecar is started by its socket"), done.stderr
    status, modules, hashes, version = done.stdout.splitlines()
    assert int(status) == UnsupportedError.status
    loaded = set(modules.split())
    assert {"asyncio", "hashlib", "inx_sidecar.server"} <= loaded
    assert not loaded & {"click", "ssl", "_ssl", "_hashlib", "importlib.metadata", "pyroute2"}
    assert hashes.split() == [
        hashlib.sha1(b"inx").hexdigest(),
        hashlib.sha256(b"inx").hexdigest(),
    ]
    assert version == ssl.OPENSSL_VERSION


def test_hashes_that_python_lacks_are_left_to_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_HASHES", ("_no_such_module",))
    before = dict(sys.modules)
    with services.without_openssl():
        assert sys.modules == before


def test_click_shows_each_service() -> None:
    assert services.SERVICES.keys() <= cli.main.commands.keys()
