"""Fixtures of the host tests: each test has its own instance names."""

import itertools
from collections.abc import Generator, Iterator

import pytest
from support.disposable import Host
from support.incus import Incus

_numbers = itertools.count(1)


@pytest.fixture
def incus(host: Host, request: pytest.FixtureRequest) -> Iterator[Incus]:
    """Incus on the host. The instances of a test are deleted after the test."""
    incus = Incus(host, f"t{next(_numbers)}")
    yield incus
    if getattr(request.node, "failed", False):
        print(incus.story())
    incus.clean_up()


@pytest.fixture(scope="module", autouse=True)
def no_traceback(host: Host) -> Iterator[None]:
    """A traceback in the log of the sidecar or of the hooks is a bug, and fails the module."""
    script = """
        journalctl --quiet --no-pager --unit=inx-sidecar --cursor-file=/root/inx-seen
        cat /var/log/inx/hooks.log 2>/dev/null || :
        : >/var/log/inx/hooks.log || :
    """
    host.sh(script)
    yield
    logs = host.sh(script).stdout
    assert "Traceback" not in logs, logs[logs.index("Traceback") - 500 :][:4000]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.failed = report.failed  # type: ignore[attr-defined]
    return report
