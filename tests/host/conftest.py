"""Each test gets instance names of its own."""

import itertools
from collections.abc import Generator, Iterator

import pytest
from support.disposable import Host
from support.incus import Incus

_numbers = itertools.count(1)


@pytest.fixture
def incus(host: Host, request: pytest.FixtureRequest) -> Iterator[Incus]:
    """The verbs of incus; what a test launches is deleted after it."""
    incus = Incus(host, f"t{next(_numbers)}")
    yield incus
    if getattr(request.node, "failed", False):
        print(incus.story())
    incus.clean_up()


@pytest.fixture(scope="module", autouse=True)
def no_traceback(host: Host) -> Iterator[None]:
    """What the sidecar and the hooks did not foresee is a bug, whether or not a test saw it."""
    script = """
        journalctl --quiet --no-pager --unit=inx-sidecar --cursor-file=/root/inx-seen
        cat /var/log/inx/hooks.log 2>/dev/null || :
        : >/var/log/inx/hooks.log || :
    """
    host.sh(script)
    yield
    said = host.sh(script).stdout
    assert "Traceback" not in said, said[said.index("Traceback") - 500 :][:4000]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.failed = report.failed  # type: ignore[attr-defined]
    return report
