"""One disposable host for the whole test run."""

import os
from collections.abc import Iterator

import pytest
from support.disposable import Host


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A host with inx. /etc/nixos has the example flake."""
    with Host.up(f"test-{os.getpid()}") as host:
        yield host
