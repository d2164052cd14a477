"""Which substituters a fetch asks."""

import pytest

from inx_sidecar.builds.fetch import options_for

pytestmark = pytest.mark.main

MEMBER = "ssh://inx-host1?trusted=true"


def test_a_fetch_asks_what_nix_asks_on_request() -> None:
    assert options_for("") == ["--fallback"]
    assert options_for(f" {MEMBER}  https://cache.example ") == [
        "--fallback", "--option", "extra-substituters", f"{MEMBER} https://cache.example",
    ]  # fmt: skip


def test_a_password_is_on_no_command_line() -> None:
    for url in "https://user:secret@cache", "https://secret@cache", "ssh://user:secret@host":
        assert options_for(url) == ["--fallback"]
        assert options_for(f"{url} {MEMBER}")[-1] == MEMBER
    assert options_for("ssh://user@host")[-1] == "ssh://user@host"
