"""One sentence gives the reason of a failed build."""

import time

import pytest

from inx_sidecar.base.process import Completed
from inx_sidecar.builds.failure_reason import failure_of, failure_reason

pytestmark = pytest.mark.main

DRV = f"/nix/store/{'1' * 32}"
MISSING = f"/nix/store/{'0' * 32}-nixos-system-web"


def reason(output: str, status: int = 1) -> str:
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
    assert reason(output) == "attribute 'y' missing"


def test_a_thrown_message_is_the_reason() -> None:
    output = """error:
       … while calling the 'throw' builtin
         at /t.nix:3:132:

       error: Failed assertions:
       - The 'fileSystems' option does not specify your root file system.
"""
    assert reason(output).startswith("Failed assertions")


def test_an_incomplete_trace_gives_a_reason() -> None:
    assert reason("error:\n       … while calling the 'seq' builtin\n") != ""


def test_the_builder_that_failed_is_the_reason_and_not_its_dependents() -> None:
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
    assert reason(output).startswith(f"builder for '{DRV}-a.drv' failed with exit code 3")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["Reason: platform mismatch", "Required system: 'a'", "Current system: 'b'"],
            "Reason: platform mismatch; Required system: 'a'; Current system: 'b'",
        ),
        (
            ["Reason: missing features", "Required features: {kvm}", "Available features: {}"],
            "Reason: missing features; Required features: {kvm}; Available features: {}",
        ),
        (
            ["Reason: local builds are disabled (max-jobs = 0)", "Hint: set 'max-jobs' to more"],
            "Reason: local builds are disabled (max-jobs = 0); Hint: set 'max-jobs' to more",
        ),
        (
            ["Reason: builder failed with exit code 3.", "Output paths:", f"  {MISSING}"],
            "Reason: builder failed with exit code 3",
        ),
    ],
    ids=lambda value: value[0].partition(": ")[2] if isinstance(value, list) else "",
)
def test_the_reason_has_all_its_lines_and_is_not_that_of_a_dependent(
    lines: list[str], said: str
) -> None:
    """As Nix 2.34 prints it."""
    first = "\n       ".join([f"error: Cannot build '{DRV}-a.drv'.", *lines])
    second = f"error: Cannot build '{DRV}-b.drv'.\n       Reason: 1 dependency failed.\n"
    assert reason(f"{first}\n{second}") == f"Cannot build '{DRV}-a.drv'; {said}"
    assert reason(second) == f"Cannot build '{DRV}-b.drv'; Reason: 1 dependency failed"


def test_an_error_that_a_builder_printed_is_not_the_reason() -> None:
    """The output of nix-build has the output of the builder in it."""
    output = f"""building '{DRV}-a.drv'...
hello
error: oops
error: builder for '{DRV}-a.drv' failed with exit code 3
"""
    assert reason(output, 100) == f"builder for '{DRV}-a.drv' failed with exit code 3"


def test_a_failed_download_is_the_reason() -> None:
    output = """warning: error: unable to download 'https://h/x': refused (7); retrying in 3 ms
error:
       … while fetching the input 'https://h/x'

       error: unable to download 'https://h/x': Could not connect to server (7)
"""
    assert reason(output) == "unable to download 'https://h/x': Could not connect to server (7)"


def test_a_missing_attribute_of_a_flake_is_the_reason() -> None:
    text = "flake 'path:/f' does not provide attribute 'nixosConfigurations.\"web\".config'"
    assert reason(f"error: {text}\n") == text


def test_a_path_that_no_cache_has_is_the_reason() -> None:
    output = (
        f"don't know how to build these paths:\n  {MISSING}\nerror: build of '{MISSING}' failed"
    )
    assert reason(output) == f"build of '{MISSING}' failed"


@pytest.mark.parametrize("status", [137, 143, -9, -15])
def test_the_reason_of_a_killed_build_names_the_limits(status: int) -> None:
    assert "build_memory_max or build_timeout" in reason("building ...", status)


def test_the_reason_of_a_terminated_build_names_the_timeout() -> None:
    """systemd sends SIGTERM after RuntimeMaxSec=. Nix 2.26 then says that a user interrupted it."""
    output = f"building '{DRV}-s.drv'...\nerror: interrupted by the user\n"
    assert "build_timeout" in reason(output)


def test_without_an_error_the_last_line_is_the_reason() -> None:
    assert reason("one\n  two  \n\n") == "two"
    assert reason("\n") == "nix ended with status 1"
    assert reason("error:\n\n", 7) == "error:"


def test_the_word_error_in_the_middle_of_a_line_is_not_the_reason() -> None:
    assert reason("checking for error: none\nerror: real\nno error: here\n") == "real"


def test_what_a_build_needs_is_said_in_one_sentence() -> None:
    """As Nix 2.29 to 2.33 print it, with the colours of the daemon."""
    output = f"""error: Cannot build '\x1b[35;1m{DRV}-arm.drv\x1b[0m'.
       Reason: \x1b[31;1mrequired system or feature not available\x1b[0m
       Required system: '\x1b[35;1maarch64-linux\x1b[0m' with features {{}}
       Current system: 'x86_64-linux' with features {{benchmark, kvm}}
error: Cannot build '{DRV}-top.drv'.
       Reason: 1 dependency failed.
       Output paths:
         {DRV}-top
error: Build failed due to failed dependency
"""
    assert reason(output) == (
        f"Cannot build '{DRV}-arm.drv'; Reason: required system or feature not available; "
        "Required system: 'aarch64-linux' with features {}; "
        "Current system: 'x86_64-linux' with features {benchmark, kvm}"
    )


def test_a_platform_and_features_that_are_missing_are_both_said() -> None:
    """As Nix 2.34 prints it."""
    output = f"""error: Cannot build '{DRV}-arm.drv'.
       Reason: platform mismatch
       Required system: 'aarch64-linux'
       Current system: 'x86_64-linux'
       Reason: missing system features
       Required features: {{big-parallel}}
       Available features: {{}}
"""
    said = reason(output)
    assert "'aarch64-linux'" in said and said.endswith(
        "Required features: {big-parallel}; Available features: {}"
    )


def test_a_builder_of_newer_nix_that_failed_is_the_reason() -> None:
    output = f"""error: Cannot build '{DRV}-a.drv'.
       Reason: builder failed with exit code 3.
       Output paths:
         {DRV}-a
       Last 1 log lines:
       > it does not compile
       For full logs, run:
         nix log {DRV}-a.drv
error: Cannot build '{DRV}-b.drv'.
       Reason: 1 dependency failed.
"""
    assert reason(output) == (
        f"Cannot build '{DRV}-a.drv'; Reason: builder failed with exit code 3"
    )


def test_a_builder_that_may_have_found_no_space_says_so() -> None:
    """As Nix 2.18 to 2.34 add it (cleanupDecideWhetherDiskFull in libstore)."""
    output = f"""error: builder for '{DRV}-a.drv' failed with exit code 1;
       last 1 log lines:
       > tar: write error
       note: build failure may have been caused by lack of free disk space
"""
    details = failure_of(Completed(("nix", "build"), 1, output)).details
    assert "'df -h /nix /tmp'" in details and details.endswith("; its log says: tar: write error")


@pytest.mark.parametrize("begin", ["error: a:", "       at ", "       > ", "       b", "error: @:"])
def test_a_long_output_takes_no_long_time(begin: str) -> None:
    """The event loop waits meanwhile. base.process keeps 200 lines of 8 KiB."""
    long = begin + "x:1 @" * 1600
    started = time.process_time()
    for lines in ([long] * 200, ["error: a:", *[long] * 199], ["error: a:", long] * 100):
        failure_of(Completed(("nix", "build"), 1, "\n".join(lines)))
    assert time.process_time() - started < 5
