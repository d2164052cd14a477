"""One disposable host for the tests of a process, and which tests belong to one process."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.disposable import Host, NoHostError
from support.host_files import NO_HOST, RELEASE, SUITE
from xdist.scheduler import LoadScopeScheduling

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


class ByGroup(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """With `-n 3`, three processes share the work, each with a host of its own."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(Path(nodeid.partition("::")[0]).relative_to("tests"))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    return ByGroup(config, log)


def group_of(path: Path) -> str:
    """Tests of one group run one after the other: those of a file in host/, which share what is
    expensive to make, and all of another directory, which use the machine itself."""
    if path.parts[0] != "host":
        return path.parts[0]
    return "leases" if path.name in LEASES else path.name


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """With several processes, name what fails at once: the report comes at the end."""
    if report.outcome not in ("passed", "skipped") and hasattr(report, "node"):
        print(f"\n{report.outcome}: {report.nodeid}", flush=True)
