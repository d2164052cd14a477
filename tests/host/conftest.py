"""One disposable host for the whole run; each test gets instance names of its own."""

import itertools
import os
from collections.abc import Generator, Iterator

import pytest
from disposable import Host
from incus import Incus

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A host with inx installed and the example flake in /etc/nixos."""
    with Host.up(f"test-{os.getpid()}") as host:
        yield host


@pytest.fixture
def incus(host: Host, request: pytest.FixtureRequest) -> Iterator[Incus]:
    """The verbs of incus; what a test launches is deleted after it."""
    incus = Incus(host, f"t{next(_numbers)}")
    yield incus
    if getattr(request.node, "failed", False):
        print(incus.story())
    incus.clean_up()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.failed = report.failed  # type: ignore[attr-defined]
    return report
