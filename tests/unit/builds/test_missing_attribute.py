"""The names that a source has instead of the one that was asked for."""

import pytest

from inx_sidecar.builds.missing_attribute import is_missing, missing_text, names_command
from inx_sidecar.config.sources import Flake, NixFile, System

pytestmark = pytest.mark.main

FLAKE = Flake("/etc/nixos", "wbe", attr_given=False)
NO_ATTRIBUTE = "flake 'path:/etc/nixos' does not provide attribute 'a', 'b' or 'c'"

UNREADABLE = (
    "/etc/nixos has no nixosConfigurations.wbe, and its names could not be read; correct "
    "user.inx.flake=/etc/nixos#NAME"
)


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
    assert text == UNREADABLE


def test_the_nearest_name_comes_first_and_few_are_shown() -> None:
    printed = "warning: dirty\n\ninx-names db second systemd\ninx-names web a b c"
    text = missing_text(FLAKE, NO_ATTRIBUTE, printed)
    assert text == (
        "/etc/nixos has no nixosConfigurations.wbe; it has web, db, second, systemd, a, b and 1 "
        "more; set user.inx.flake=/etc/nixos#web"
    )
    assert missing_text(FLAKE, NO_ATTRIBUTE, "inx-names zz WBE").endswith("nixos#WBE")
    counted = missing_text(FLAKE, NO_ATTRIBUTE, "inx-count 502\ninx-names a b c d e f g")
    assert "a, b, c, d, e, f and 496 more; " in counted
    assert "9 more" not in missing_text(FLAKE, NO_ATTRIBUTE, f"inx-count {'9' * 5000}\ninx-names a")
    text = missing_text(FLAKE, NO_ATTRIBUTE, "inx-names zz")
    assert text.endswith("; it has zz; set user.inx.flake=/etc/nixos#NAME")


def test_a_nixos_module_is_told_apart_from_a_set_of_systems() -> None:
    source, reason = in_file("web", "web")
    text = missing_text(source, reason, "inx-names imports services boot")
    assert text == (
        "/x.nix has no web: it has imports, services, boot, as a NixOS module; name a file with "
        "systems, such as { web = (import <nixpkgs/nixos> { configuration = /x.nix; }).system; }"
    )
    nested, reason = in_file("hosts.web", "web")
    assert "module" not in missing_text(nested, reason, "inx-names imports boot")


def test_names_that_nobody_can_ask_for_are_left_out() -> None:
    printed = f"inx-names \x1b[31mred $(id) {'x' * 65} -x é 'y' web\nweb2\n inx-names web3"
    assert "; it has web; " in missing_text(FLAKE, NO_ATTRIBUTE, printed)


def test_a_system_that_is_no_system_and_a_flake_without_systems_are_told_apart() -> None:
    text = missing_text(FLAKE, NO_ATTRIBUTE, "inx-names wbe")
    assert text.startswith(
        "nixosConfigurations.wbe of /etc/nixos has no config.system.build.toplevel: make it by "
    )
    none = f"error: {NO_ATTRIBUTE}"
    define = "define nixosConfigurations.wbe in its outputs, or name another flake"
    text = missing_text(FLAKE, NO_ATTRIBUTE, none)
    assert text == f"/etc/nixos has no nixosConfigurations: {define}"
    text = missing_text(FLAKE, NO_ATTRIBUTE, "\ninx-count 0\n")
    assert text == f"/etc/nixos has no nixosConfigurations.wbe, and no other one: {define}"
    text = missing_text(FLAKE, NO_ATTRIBUTE, "error: something else")
    assert text == UNREADABLE


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
