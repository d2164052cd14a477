"""The names that a source has instead of the one that was asked for."""

import pytest

from inx_sidecar.builds.missing_attribute import is_missing, missing_text, names_command
from inx_sidecar.config.spec import Flake, NixFile, System

pytestmark = pytest.mark.main

FLAKE = Flake("/etc/nixos", "wbe", attr_given=False)
NO_ATTRIBUTE = "flake 'path:/etc/nixos' does not provide attribute 'a', 'b' or 'c'"


def in_file(attr: str, missing: str) -> tuple[NixFile, str]:
    reason = f"attribute '{missing}' in selection path '{attr}' not found"
    return NixFile("/x.nix", attr, attr_given=True), reason


def test_only_these_errors_ask_for_names() -> None:
    assert is_missing(FLAKE, NO_ATTRIBUTE) and is_missing(*in_file("a.b", "b"))
    assert not is_missing(FLAKE, "attribute 'x' missing")
    assert not is_missing(FLAKE, f"builder printed: {NO_ATTRIBUTE}")
    assert not is_missing(System("/nix/store/x"), NO_ATTRIBUTE)


@pytest.mark.parametrize("path", ["x;reboot.web", "$(id).web", "evil.web", "a.web.x", "web"])
def test_a_path_that_the_source_names_itself_is_not_repeated(path: str) -> None:
    """As by throw "attribute 'web' in selection path '...' not found"."""
    source = NixFile("/x.nix", "hosts.web", attr_given=True)
    reason = f"attribute 'web' in selection path '{path}' not found"
    assert not is_missing(source, reason)
    assert not is_missing(FLAKE, reason) and not is_missing(source, NO_ATTRIBUTE)
    assert names_command(source, reason)[-1] == "hosts"
    assert missing_text(source, reason, "inx-names wbe").endswith("; set user.inx.attr=hosts.wbe")


@pytest.mark.parametrize(
    "printed",
    ["inx-names ;reboot $(id) a#b ../x -x 'web' x;y", "trace: inx-names web", "inx-names\tweb"],
)
def test_no_odd_name_gets_into_what_is_to_be_set(printed: str) -> None:
    text = missing_text(FLAKE, NO_ATTRIBUTE, printed)
    assert text == f"/etc/nixos has no nixosConfigurations.wbe: {NO_ATTRIBUTE}"


def test_the_nearest_name_comes_first_and_few_are_shown() -> None:
    printed = "warning: dirty\n\ninx-names db second systemd\ninx-names web a b c"
    text = missing_text(FLAKE, NO_ATTRIBUTE, printed)
    assert text == (
        "/etc/nixos has no nixosConfigurations.wbe; it has web, db, second, systemd, a, b and "
        "more; set user.inx.flake=/etc/nixos#web"
    )
    text = missing_text(FLAKE, NO_ATTRIBUTE, "inx-names zz")
    assert text.endswith("; it has zz; set user.inx.flake=/etc/nixos#NAME")


def test_names_that_nobody_can_ask_for_are_left_out() -> None:
    printed = f"inx-names \x1b[31mred $(id) {'x' * 65} -x é 'y' web\nweb2\n inx-names web3"
    assert "; it has web; " in missing_text(FLAKE, NO_ATTRIBUTE, printed)


def test_a_system_that_is_no_system_and_a_flake_without_systems_are_told_apart() -> None:
    text = missing_text(FLAKE, NO_ATTRIBUTE, "inx-names wbe")
    assert text == "nixosConfigurations.wbe of /etc/nixos has no config.system.build.toplevel"
    none = f"error: {NO_ATTRIBUTE}"
    assert missing_text(FLAKE, NO_ATTRIBUTE, none) == "/etc/nixos has no nixosConfigurations"
    text = missing_text(FLAKE, NO_ATTRIBUTE, "error: something else")
    assert text == f"/etc/nixos has no nixosConfigurations.wbe: {NO_ATTRIBUTE}"


def test_no_token_of_a_reference_is_repeated() -> None:
    flake = Flake("https://user:s3cret@h/x.tar.gz", "wbe", attr_given=True)
    assert "s3cret" not in missing_text(flake, NO_ATTRIBUTE, "inx-names web")


@pytest.mark.parametrize(
    ("attr", "missing", "parent"),
    [("web", "web", ""), ("a.b.c", "c", "a.b"), ("a.b.c", "a", ""), ('"x.y"', "x.y", "")],
)
def test_a_file_is_asked_where_the_attribute_is_missing(
    attr: str, missing: str, parent: str
) -> None:
    source, reason = in_file(attr, missing)
    assert names_command(source, reason)[-4:] == ["--file", "/x.nix", "--", parent]
    text = missing_text(source, reason, f"inx-names {missing}2")
    prefix = f"{parent}." if parent else ""
    assert text.startswith(f"/x.nix has no {attr}; it has {prefix}{missing}2; set user.inx.attr=")


def test_a_flake_is_asked_without_a_change_of_its_lock_file() -> None:
    argv = names_command(FLAKE, NO_ATTRIBUTE)
    assert argv[-1] == "/etc/nixos#nixosConfigurations" and "--no-write-lock-file" in argv
