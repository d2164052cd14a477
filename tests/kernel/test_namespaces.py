"""A container has the namespaces of a running process; its id maps say who its root is."""

import os
import signal
from pathlib import Path

import pytest

from inx_sidecar.base.errors import InstanceError
from inx_sidecar.container.namespaces import Container
from inx_sidecar.kernel.syscalls import CLONE_NEWUSER, unshare
from kernel.test_mounts import descriptors

pytestmark = pytest.mark.main


def test_a_process_that_is_gone_is_no_container() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    before = descriptors()
    with pytest.raises(InstanceError, match=f"process {pid} of 'web' is gone"):
        Container(pid, "web")
    assert descriptors() == before


def test_a_process_that_has_ended_but_is_still_listed_is_no_container() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    before = descriptors()
    try:
        with pytest.raises(InstanceError, match=f"process {pid} of 'web' is gone"):
            Container(pid, "web")
        assert descriptors() == before
    finally:
        os.waitpid(pid, 0)


def test_the_ids_of_a_containers_root_are_those_of_its_maps() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        unshare(CLONE_NEWUSER)
        os.write(writer, b"u")
        signal.pause()
    try:
        assert os.read(reader, 1) == b"u"
        Path(f"/proc/{pid}/uid_map").write_text("5 3000 1\n0 2000 1\n")
        Path(f"/proc/{pid}/gid_map").write_text("0 8000 3\n")
        with Container(pid, "web") as container:
            assert container.root_ids() == (2000, 8000)
        with Container(os.getpid(), "web") as container:
            assert container.root_ids() == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
