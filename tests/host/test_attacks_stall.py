"""A container keeps a process of the sidecar waiting for ever."""

import json
import subprocess

import pytest
from support.attacker.stalling import never_answer
from support.attacks import command_inside
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.main


def test_a_file_system_that_never_answers_delays_no_other_instance(
    incus: Incus, host: Host
) -> None:
    """The file system covers the profile while a build runs.

    The process that then writes the generation blocks there, and not even SIGKILL ends it.
    """
    gate = f"/srv/{incus.prefix}-gate"
    flake = incus.flake()
    host.sh(f"mkfifo {gate}")
    host.sh(
        f"cat >{flake}/gated.nix",
        input=f"""{{ held = builtins.seq (builtins.readFile {gate}) (import {flake}).web; }}""",
    )
    name = incus.init(file=f"{flake}/gated.nix", attr="held")
    incus.start(name)
    incus.wait_status(name, "building$")
    argv = host.enter(command_inside(incus, name, never_answer))
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as stall:
        try:
            assert stall.stdin and stall.stdout
            make = ["exec", name, "--", "/dev/.inx/busybox", "mkdir", "-p", "/nix/var/nix/profiles"]
            incus(*make)
            stall.stdin.write(json.dumps(["/nix/var/nix/profiles"]))
            stall.stdin.close()
            assert stall.stdout.readline() == '"mounted"\n'
            host.sh(f": >{gate}")
            assert stall.stdout.readline() == '"asked"\n'
            # The sidecar gives up after 20 s; another start must not wait for that.
            other = incus.init(name=incus.name("b"), flake="/etc/nixos#web")
            started = incus("start", other, check=False, timeout=60)
            assert started.returncode == 0, incus.log(other)
            incus.wait_status(name, "failed: .*took over")
            another = incus.init(name=incus.name("c"), flake="/etc/nixos#web")
            started = incus("start", another, check=False, timeout=60)
            assert started.returncode == 0, incus.log(another)
        finally:
            incus("stop", "-f", name, check=False)
            stall.kill()
