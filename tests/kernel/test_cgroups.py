"""A service kills what it left in its control group, and nothing else."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.disposable import REPO
from support.links import join_cgroup, remove_cgroup

from inx_sidecar.kernel import cgroups

pytestmark = pytest.mark.main

MAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from inx_sidecar.kernel.cgroups import kill_others_of_service
input()
print(*kill_others_of_service(sys.argv[2]))
"""


@pytest.fixture
def service() -> Iterator[Path]:
    group = Path(f"{cgroups.hierarchy()}/inx-test-{os.getpid()}.service")
    group.mkdir()
    yield group
    remove_cgroup(group)


def killed_by_main(group: Path, unit: str) -> tuple[list[int], int, int]:
    """What the main process of the service `unit` kills; how a process of its group, and one of
    another group, are then (0: it runs)."""
    with ExitStack() as stack:

        def start(*argv: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        main = start(sys.executable, "-I", "-c", MAIN, os.fspath(REPO), unit)
        left, other = start("cat"), start("cat")
        for process in main, left:
            join_cgroup(group, process.pid)
        said, _ = main.communicate("\n", timeout=30)
        if said.split():
            left.wait(30)
        assert {int(word) for word in said.split()} <= {left.pid}
        return [int(word) for word in said.split()], left.poll() or 0, other.poll() or 0


def test_the_main_process_of_a_service_kills_the_others_of_its_group(service: Path) -> None:
    killed, left, other = killed_by_main(service, service.name)
    assert len(killed) == 1 and left == -signal.SIGKILL and other == 0


def test_a_process_outside_of_the_service_kills_nothing(service: Path) -> None:
    assert killed_by_main(service, "another.service") == ([], 0, 0)


def test_the_container_of_a_process_is_the_outermost_one() -> None:
    assert cgroups.container_of(os.getpid()) is None
    outer = Path(f"{cgroups.hierarchy()}/lxc.payload.shop_web-{os.getpid()}")
    inner = outer / "system.slice/lxc.payload.inner"
    inner.mkdir(parents=True)
    try:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            for group in outer, inner:
                join_cgroup(group, process.pid)
                assert cgroups.container_of(process.pid) == f"shop_web-{os.getpid()}"
                assert cgroups.process_of(process.pid) == process.pid
            process.kill()
    finally:
        remove_cgroup(outer)
