"""What a build prints, and how long the value of a key is, is anybody's choice."""

import time

import pytest
from support.disposable import Host
from support.gc import SYNC, main_pid
from support.incus import PROMPT, SECONDS, Incus

pytestmark = pytest.mark.main

LONG = 'builtins.concatStringsSep "" (builtins.genList (_: "a") 60000)'
MANY = 'builtins.concatStringsSep "\\n" (builtins.genList (_: "") 20000)'
PRINTED = {
    "long lines": f'builtins.genList (_: {LONG} + " @") 40',
    "many lines": f"builtins.genList (_: {MANY}) 10",
}


@pytest.mark.parametrize("texts", PRINTED.values(), ids=PRINTED)
def test_what_a_build_prints_delays_nobody_else(incus: Incus, host: Host, texts: str) -> None:
    file = f"/srv/{incus.prefix}.nix"
    host.sh(
        f"cat >{file}",
        input=f"{{ web = builtins.foldl' (web: text: builtins.trace text web) "
        f"(import /etc/nixos).web ({texts}); }}",
    )
    other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    before = main_pid(host)
    name = incus.init(file=file, attr="web")
    incus.start(name)
    longest, latest = 0.0, time.monotonic() + SECONDS
    while incus.status(name) != "ready" and time.monotonic() < latest:
        begin = time.monotonic()
        host.run(SYNC)
        longest = max(longest, time.monotonic() - begin)
    assert incus.status(name) == "ready" and longest < PROMPT / 2
    incus("restart", "-f", other)
    assert main_pid(host) == before


def test_a_value_of_any_length_is_refused_at_once(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    before = main_pid(host)
    value = "a" * 120_000 + "@"
    incus("config", "set", name, "user.inx.flake", "-", input=value)
    incus.wait_status(
        name, r"failed: user.inx.flake has 120001 characters; at most 65536 are allowed"
    )
    host.run(SYNC)
    assert main_pid(host) == before, "the sidecar was busy, and its watchdog ended it"
