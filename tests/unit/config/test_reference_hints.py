"""References that people copy from elsewhere: inx takes what can mean one thing only, and says what
to write in place of the others."""

import re

import pytest

from inx_sidecar.base.errors import ConfigError
from inx_sidecar.config.keys import parse_flake
from inx_sidecar.config.reference_hints import reference_hint
from inx_sidecar.config.references import check_flake

pytestmark = pytest.mark.main


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("nixosConfigurations.web", "web"),
        ("nixosConfigurations.web.config.system.build.toplevel", "web"),
        ('nixosConfigurations."web.example.org".config.system.build.toplevel', "web.example.org"),
        ('nixosConfigurations."web"', "web"),
        ("web", "web"),
        ("web.example.org", "web.example.org"),
    ],
)
def test_the_path_of_an_output_means_the_configuration(attribute: str, name: str) -> None:
    text = check_flake("user.inx.flake", f"/etc/nixos#{attribute}")
    flake = parse_flake(text, "x")
    assert flake == parse_flake(f"/etc/nixos#{name}", "x")
    assert flake.identity() == f"flake /etc/nixos#{name}", "a change of the form is no change"


@pytest.mark.parametrize(
    "attribute",
    [
        "nixosConfigurations.web.config.system.build.vm", "nixosConfigurations.",
        "nixosConfigurations.a.b", "nixosConfigurations.web.config",
        'nixosConfigurations."a b"', 'nixosConfigurations.""', 'nixosConfigurations."a"b"',
    ],
)  # fmt: skip
def test_another_output_is_refused(attribute: str) -> None:
    with pytest.raises(ConfigError, match=r"^user\.inx\.flake is "):
        check_flake("user.inx.flake", f"/etc/nixos#{attribute}")


@pytest.mark.parametrize(
    ("value", "better"),
    [
        ("etc/nixos#web", "/etc/nixos#web"),
        ("home/me/nixos", "/home/me/nixos"),
        ("/etc/nixos/flake.nix", "/etc/nixos"),
        ("path:/etc/nixos/flake.nix#web", "path:/etc/nixos#web"),
        ("file:///etc/nixos#web", "/etc/nixos#web"),
        ("file:/etc/nixos", "/etc/nixos"),
        ("ssh://git@host/o/r#web", "git+ssh://git@host/o/r#web"),
        ("ssh://git@host:22/o/r", "git+ssh://git@host:22/o/r"),
        ("git@github.com:o/r.git#web", "git+ssh://git@github.com/o/r.git#web"),
        ("git+git@github.com:o/r", "git+ssh://git@github.com/o/r"),
        ("git+ssh://git@github.com:o/r?ref=x#web", "git+ssh://git@github.com/o/r?ref=x#web"),
        ("https://github.com/o/r#web", "github:o/r#web"),
        ("https://www.github.com/o/r/", "github:o/r"),
        ("https://github.com/o/r.git", "github:o/r"),
        ("github.com/o/r", "github:o/r"),
        ("https://github.com/o/r/tree/main#web", "github:o/r/main#web"),
        ("https://github.com/o/r/tree/main/sub/dir", "github:o/r/main?dir=sub/dir"),
        ("https://github.com/o/r/blob/main/flake.nix", "github:o/r/main"),
        ("https://gitlab.com/o/r/-/tree/main", "gitlab:o/r/main"),
        ("https://codeberg.org/o/r", "git+https://codeberg.org/o/r"),
        (
            "https://codeberg.org/o/r/src/branch/main",
            "git+https://codeberg.org/o/r?ref=main",
        ),
        ("https://git.example.org/x.git#web", "git+https://git.example.org/x.git#web"),
        ("git:https://github.com/o/r", "git+https://github.com/o/r"),
        ("github:o#web", "github:OWNER/REPO or github:OWNER/REPO#ATTR"),
        ('"/etc/nixos#web"', "/etc/nixos#web"),
        ("\u201c/etc/nixos\u201d", "/etc/nixos"),
        (f"/nix/store/{'0' * 32}-nixos-system-web-1", "built goes into user.inx.system"),
        ("$HOME/nixos", "an absolute path, as 'realpath PATH' prints it"),
        ("~/nixos", "an absolute path, as 'realpath PATH' prints it"),
    ],
)
def test_a_reference_of_another_tool_is_answered_by_that_of_nix(value: str, better: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_flake("user.inx.flake", value)
    allowed = str(caught.value).partition("; allowed: ")[2]
    assert allowed.endswith(better), allowed
    if not re.search("PATH|OWNER|system", better):
        assert check_flake("user.inx.flake", better) == better


@pytest.mark.parametrize(
    "value",
    [
        "/etc/nixos", "/etc/nixos#web", "/srv/flake.nix.d", "nixpkgs", "nixpkgs/nixos-25.05#x",
        "home-manager", "nix", "github:o/r/branch#web", "github:o/r?dir=sub", "gitlab:o%2Fg/r",
        "https://github.com/o/r/archive/main.tar.gz", "https://host/x.tar.gz", "https://h/f/x/0.1",
        "file:///srv/x.tar.gz", "git+https://github.com/o/r.git", "git+ssh://git@host:22/r",
        "git+ssh://git@github.com/o/r", "git://host/r", "tarball+https://host/x", "flake:web",
        "https://github.com/o/r/releases/download/v1/x.tar.gz", "sourcehut:~me/r",
    ],
)  # fmt: skip
def test_a_reference_of_nix_gets_no_hint(value: str) -> None:
    assert reference_hint(value) == ""
    assert check_flake("user.inx.flake", value) == value


@pytest.mark.parametrize(
    "value",
    ["https://me:s3cret@github.com/o/r", "ssh://git:s3cret@host/r", "git+ssh://git:s3cret@h/r",
     "https://github.com/o/r?token=s3cret", "https://s3cret@github.com/o/r"],
)  # fmt: skip
def test_no_hint_repeats_a_credential(value: str) -> None:
    assert reference_hint(value) == ""
