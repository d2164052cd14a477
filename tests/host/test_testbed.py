"""The disposable hosts themselves, and what the repository ships for them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.disposable import REPO, Host, HostError, Process

pytestmark = pytest.mark.main

OWNER = """
import sys
from support.disposable import Host
Host.up(sys.argv[1], bare=True)
print("up", flush=True)
sys.stdin.read()
"""


def test_a_host_whose_maker_was_killed_is_removed_and_no_other(host: Host) -> None:
    """By the next one that comes up; several are up at once meanwhile."""
    name = f"left-{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, name],
        env=os.environ | {"PYTHONPATH": str(REPO / "tests")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as maker:
        assert maker.stdout is not None and maker.stdin is not None
        assert maker.stdout.readline() == "up\n"
        left = Host(name)
        leader = Process.of(left.pid)
        with pytest.raises(HostError, match=f"host '{name}' belongs to process {maker.pid}"):
            Host.up(name, bare=True)
        maker.send_signal(signal.SIGKILL)
        maker.wait()
    assert leader.alive(), "its host outlives it"
    with Host.up(f"next-{os.getpid()}", bare=True) as other:
        assert other.run(["hostname"]).stdout.strip() == other.name
        assert not leader.alive()
        assert not left.directory.exists()
    mounts = Path("/proc/self/mounts").read_text()
    assert name not in mounts and other.name not in mounts
    assert host.run(["systemctl", "is-active", "incus"]).stdout.strip() == "active"


def test_every_nix_file_parses(host: Host) -> None:
    files = sorted(str(path.relative_to(REPO)) for path in REPO.rglob("*.nix"))
    assert "example/flake.nix" in files
    for file in files:
        host.run(["nix-instantiate", "--parse", f"/root/inx/{file}"])
