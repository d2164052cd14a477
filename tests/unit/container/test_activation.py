"""The exit status of switch-to-configuration becomes a note for the operator, or an error."""

from pathlib import Path

import pytest

from inx_sidecar.base.errors import ActivationError
from inx_sidecar.container.activation import (
    check_can_switch,
    describe_dry_run,
    describe_result,
    units_of,
)
from inx_sidecar.incus.instance import Instance, LxcFacts

pytestmark = pytest.mark.life

SYSTEM = f"/nix/store/{'0' * 32}-nixos-system-web"
WEB = Instance("web", "default", "uuid", LxcFacts("web", "", ""), privileged=False, config={})


def test_a_success_needs_no_note_whatever_it_printed() -> None:
    assert describe_result(0, [], SYSTEM, "web") == ""
    assert describe_result(0, ["warning: one", "two"], SYSTEM, "web") == ""


@pytest.mark.parametrize(
    ("status", "note"),
    [
        (2, "parts of the activation failed"),
        (3, "some units could not be reloaded"),
        (4, "some units failed"),
        (100, "it takes a restart of the instance to switch"),
    ],
)
def test_what_went_wrong_though_the_system_is_active_is_noted(status: int, note: str) -> None:
    assert describe_result(status, [], SYSTEM, "web") == note
    assert describe_result(status, ["first", "the reason"], SYSTEM, "web") == f"{note}: the reason"


UNITS = "the following units failed: web.service, mail.service"
SNIPPET = "Activation script snippet 'users' failed (1)"
# What the two programs print, shortened.
PRINTED = [
    "activating the configuration...", "setting up /etc...", f"warning: {UNITS}",
    "\u00d7 web.service - Web", "     Loaded: loaded (/etc/systemd/system/web.service; enabled)",
    "Nov 27 10:00:00 web systemd[1]: Failed to start web.service - Web.",
]  # fmt: skip
SCRIPT = "Failed to run activate script"
START = "Failed to start web.service"
USERS = "the following user units failed: a.service"
ALICE = "warning: user activation for alice failed"
OTHER = "a service says: the following units failed: x"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (PRINTED, UNITS),
        ([SNIPPET, *PRINTED], f"{SNIPPET}; {UNITS}"),
        ([SNIPPET, "setting up /etc..."], SNIPPET),
        (["first", OTHER], OTHER),
        # switch-to-configuration in Rust
        (
            ["Failed to run activate script", SNIPPET, "restarting sysinit-reactivation.target"],
            SNIPPET,
        ),
        (["Failed to run activate script", "reloading user units for root..."], SCRIPT),
        (["Failed to start web.service", "Failed to start web.service", "x"], START),
        (
            [f"warning: {USERS}", "See `systemctl --user status a` for details.", ALICE],
            f"{USERS}; {ALICE[9:]}",
        ),
    ],
)
def test_the_reason_names_what_failed_not_the_last_line(lines: list[str], reason: str) -> None:
    assert describe_result(4, lines, SYSTEM, "web") == f"some units failed: {reason}"


@pytest.mark.parametrize("status", [1, 5, 126, 127, 137])
def test_a_system_that_is_not_active_is_an_error(status: int) -> None:
    message = f"activating {SYSTEM} in 'web' ended with status {status}"
    with pytest.raises(ActivationError) as caught:
        describe_result(status, [], SYSTEM, "web")
    assert str(caught.value) == message
    with pytest.raises(ActivationError) as caught:
        describe_result(status, ["first", "the reason"], SYSTEM, "web")
    assert str(caught.value) == f"{message}: the reason"


def test_a_system_without_the_program_can_only_be_booted(tmp_path: Path) -> None:
    with pytest.raises(ActivationError, match="'web' cannot switch to it while it runs; restart"):
        check_can_switch(WEB, str(tmp_path))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/switch-to-configuration").symlink_to("/missing/on/this/host")
    check_can_switch(WEB, str(tmp_path))


# What the two programs print (nixpkgs, switch-to-configuration).
DRY_RUN = [
    "would stop the following units: old.service", "would NOT stop the following changed units: a",
    "would activate the configuration...", "would restart systemd",
    "would reload the following units: dbus.service",
    "would restart the following units: nginx.service, sshd.service",
    "would start the following units: new.service",
    "would restart the following user units: mail.service",
]  # fmt: skip
WOULD = [
    "would stop old.service", "would NOT stop a", "would restart systemd",
    "would reload dbus.service", "would restart nginx.service, sshd.service",
    "would start new.service", "would restart mail.service",
]  # fmt: skip
SWITCH = [
    "stopping the following units: old.service", "NOT restarting the following changed units: a",
    "activating the configuration...", "restarting systemd...", "setting up /etc...",
    "restarting the following units: nginx.service", "warning: the following units failed: x",
    "the following new units were started: new.service",
]  # fmt: skip
DID = [
    "stopping old.service", "NOT restarting a", "restarting systemd", "restarting nginx.service",
    "started new.service",
]  # fmt: skip


def test_what_happens_to_units_is_found_in_the_output() -> None:
    assert units_of(DRY_RUN) == WOULD
    assert units_of(SWITCH) == DID
    assert units_of([*DRY_RUN] * 100) == (WOULD * 100)[:50], "a container prints without end"
    assert describe_dry_run(0, DRY_RUN, SYSTEM, "web", 60) == "; ".join(WOULD)
    assert describe_dry_run(0, [], SYSTEM, "web", 60) == "no unit would change"
    restart = "it takes a restart of the instance to switch"
    assert describe_dry_run(100, ["Warning: ..."], SYSTEM, "web", 60) == restart


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (1, "ended with status 1: Pre-switch checks failed"),
        (2, "ended with status 2: Pre-switch checks failed"),
        (137, "took over 60 s, or was killed"),
    ],
)
def test_a_dry_run_that_fails_is_an_error(status: int, says: str) -> None:
    lines = ["pre-switch check x", "Pre-switch checks failed"]
    with pytest.raises(ActivationError) as caught:
        describe_dry_run(status, lines, SYSTEM, "web", 60)
    assert str(caught.value) == f"dry-activate of {SYSTEM} in 'web' {says}"
