"""One disposable host for the whole run."""

import os
from collections.abc import Iterator

import pytest
from support.disposable import Host


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A host with inx installed and the example flake in /etc/nixos."""
    with Host.up(f"test-{os.getpid()}") as host:
        yield host
