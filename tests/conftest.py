"""One disposable host for the tests of a process, and which tests belong to one process."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.disposable import REPO, Host, NoHostError
from support.host_files import NO_HOST, RELEASE, SUITE

# Tests that set fs.leases-enable, which is one for all hosts: they must not run at the same time.
LEASES = {
    "test_attacks_locks.py",
    "test_docs.py",
    "test_installation.py",
}


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A host with inx. /etc/nixos has the example flake."""
    try:
        up = Host.up(f"test-{os.getpid()}")
    except NoHostError as error:
        if SUITE == RELEASE:
            raise
        pytest.exit(str(error).splitlines()[0], NO_HOST)
    with up as host:
        yield host


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """With `-n 2 --dist loadgroup`, two processes share the work, each with a host of its own."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item.path.relative_to(REPO / "tests"))))


def group_of(path: Path) -> str:
    """Tests of one group run one after the other: those of a file in host/, which share what is
    expensive to make, and all of another directory, which use the machine itself."""
    if path.parts[0] != "host":
        return path.parts[0]
    return "leases" if path.name in LEASES else path.name
