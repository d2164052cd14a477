"""One sentence says why a build failed."""

import pytest

from inx_sidecar.base.process import Completed
from inx_sidecar.builds.build_failure import failure_reason

pytestmark = pytest.mark.main

DRV = f"/nix/store/{'1' * 32}"
MISSING = f"/nix/store/{'0' * 32}-nixos-system-web"


def told(output: str, status: int = 1) -> str:
    return failure_reason(Completed(("nix", "build"), status, output))


def test_the_innermost_error_of_a_trace_is_the_reason() -> None:
    """As Nix 2.26 prints it."""
    output = """error:
       … while evaluating the attribute 'x.y'
         at /t.nix:3:11:
            2| in rec { a = 1;
            3|  attr = { x = {}; }.x.y;
             |           ^
            4|

       error: attribute 'y' missing
       at /t.nix:3:9:
            2| in rec { a = 1;
            3|  attr = { x = {}; }.x.y;
             |         ^
            4|
"""
    assert told(output) == "attribute 'y' missing"


def test_a_thrown_message_is_the_reason() -> None:
    output = """error:
       … while calling the 'throw' builtin
         at /t.nix:3:132:

       error: Failed assertions:
       - The 'fileSystems' option does not specify your root file system.
"""
    assert told(output).startswith("Failed assertions")


def test_a_trace_that_ends_early_still_gives_a_line() -> None:
    assert told("error:\n       … while calling the 'seq' builtin\n") != ""


def test_the_builder_that_failed_is_the_reason_and_not_what_depends_on_it() -> None:
    """As Nix 2.26 prints it with --print-build-logs."""
    output = f"""these 3 derivations will be built:
  {DRV}-a.drv
building '{DRV}-a.drv'...
error: builder for '{DRV}-a.drv' failed with exit code 3;
       last 2 log lines:
       > hello
       > error: oops
       For full logs, run:
         nix log {DRV}-a.drv
error: 1 dependencies of derivation '{DRV}-b.drv' failed to build
error: 1 dependencies of derivation '{DRV}-c.drv' failed to build
"""
    assert told(output).startswith(f"builder for '{DRV}-a.drv' failed with exit code 3")


def test_an_error_that_a_builder_printed_is_not_the_reason() -> None:
    """nix-build mixes the builder's output into its own."""
    output = f"""building '{DRV}-a.drv'...
hello
error: oops
error: builder for '{DRV}-a.drv' failed with exit code 3
"""
    assert told(output, 100) == f"builder for '{DRV}-a.drv' failed with exit code 3"


def test_a_failed_download_is_the_reason() -> None:
    output = """warning: error: unable to download 'https://h/x': refused (7); retrying in 3 ms
error:
       … while fetching the input 'https://h/x'

       error: unable to download 'https://h/x': Could not connect to server (7)
"""
    assert told(output) == "unable to download 'https://h/x': Could not connect to server (7)"


def test_a_missing_attribute_of_a_flake_is_the_reason() -> None:
    text = "flake 'path:/f' does not provide attribute 'nixosConfigurations.\"web\".config'"
    assert told(f"error: {text}\n") == text


def test_a_path_that_nobody_has_is_the_reason() -> None:
    output = (
        f"don't know how to build these paths:\n  {MISSING}\nerror: build of '{MISSING}' failed"
    )
    assert told(output) == f"build of '{MISSING}' failed"


@pytest.mark.parametrize("status", [137, 143, -9, -15])
def test_a_killed_build_tells_of_the_limits(status: int) -> None:
    assert "build_memory_max or build_timeout" in told("building ...", status)


def test_a_build_that_was_ended_from_outside_tells_of_the_limits() -> None:
    """Nix 2.26 on SIGTERM, which systemd sends after RuntimeMaxSec=; no user interrupted it."""
    output = f"building '{DRV}-s.drv'...\nerror: interrupted by the user\n"
    assert "build_timeout" in told(output)


def test_without_an_error_the_last_line_is_the_reason() -> None:
    assert told("one\n  two  \n\n") == "two"
    assert told("\n") == "nix ended with status 1"
    assert told("error:\n\n", 7) == "error:"


def test_the_word_error_within_a_line_is_no_error() -> None:
    assert told("checking for error: none\nerror: real\nno error: here\n") == "real"
