"""Root of a container lets the Nix daemon of its instance hold what the host waits for."""

import pytest
from support.attacker import holding
from support.attacks import attacking, inside
from support.daemon_builds import begin, command, launch
from support.disposable import Host
from support.gc import CONFIG
from support.incus import Incus

pytestmark = pytest.mark.main

SECONDS = 90.0
# The same output as a build inside that never ends: its hash is that of the name.
SAME = """
let
  gathered = builtins.fromJSON (builtins.readFile /etc/nixos/deps.json);
  busybox = builtins.storePath gathered.busybox;
in derivation {
  name = "NAME"; inherit (gathered) system; builder = "${busybox}/bin/sh";
  args = [ "-c" "printf NAME >$out" ];
  outputHashMode = "flat"; outputHashAlgo = "sha256";
  outputHash = builtins.hashString "sha256" "NAME";
}
"""


def told(host: Host, name: str) -> str:
    argv = ["journalctl", "-u", "inx-guard", "-o", "cat", f"INX_INSTANCE={name}"]
    return host.run(argv).stdout


def test_the_host_waits_for_no_lock_of_an_instance_for_long(incus: Incus, host: Host) -> None:
    """Nix waits in two ways: in flock(2), and by a try every five seconds."""
    name = launch(incus)
    host.run(["tee", CONFIG], input="lock_patience = 2\n")
    try:
        text = f"{name}-text"
        with attacking(incus, name, holding.hold_a_text, text, text, 5):
            expression = f'builtins.toFile "{text}" "{text}"'
            argv = ["nix-instantiate", "--eval", "--read-write-mode", "--expr", expression]
            host.run(argv, timeout=SECONDS)
        output = f"{name}-output"
        build = command("exec sleep 5354", name=output, fixed=True)
        begin(incus, name, f"while :; do {build}; done")
        argv = ["sh", "-c", f"ls /nix/store/*-{output}.lock"]
        incus.eventually(lambda: host.run(argv, check=False).returncode == 0, incus.story)
        argv = ["nix-build", "--no-out-link", "--expr", SAME.replace("NAME", output)]
        host.run(argv, timeout=SECONDS)
    finally:
        host.run(["rm", CONFIG])
    said = told(host, name)
    assert "ended a process of its Nix daemon: the host waited" in said
    assert "ended its whole Nix daemon: the host still waited for a lock" in said


def test_a_client_fills_no_file_of_temporary_roots(incus: Incus, host: Host) -> None:
    """Each collection reads these files."""
    name = launch(incus)
    assert 16 <= inside(incus, name, holding.add_temporary_roots, 400) < 400
    assert "its file of temporary roots had" in told(host, name)
    assert inside(incus, name, holding.add_temporary_roots, 8) == 8
