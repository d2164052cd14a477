"""The variables of a build: as systemd reads them, and without passwords where nobody is known."""

import pytest

from inx_sidecar.builds.build_service import environment_text, passed_on

pytestmark = pytest.mark.main

PLAIN = {
    "NIX_PATH": "nixpkgs=/etc/nixpkgs", "NIX_SSL_CERT_FILE": "/etc/a@b.crt",
    "http_proxy": "http://proxy:3128", "no_proxy": "localhost,.example",
}  # fmt: skip


def test_the_owner_of_a_source_gets_the_proxy_and_its_password() -> None:
    given = PLAIN | {"https_proxy": "http://u:pw@proxy:3128", "LD_PRELOAD": "x"}
    assert passed_on(given, alone=False) == PLAIN | {"https_proxy": "http://u:pw@proxy:3128"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("https_proxy", "http://u:pw@proxy:3128"),
        ("http_proxy", "u:pw@proxy:3128"),
        ("https_proxy", "http://token@proxy"),
        ("NIX_PATH", "nixpkgs=https://u:pw@host/x.tar.gz"),
        ("NIX_PATH", "nixpkgs=https://host/x.tar.gz?token=pw"),
    ],
)
def test_a_user_of_one_build_alone_gets_no_password(name: str, value: str) -> None:
    found = passed_on(PLAIN | {name: value}, alone=True)
    assert found == {key: text for key, text in PLAIN.items() if key != name}


def test_quotes_are_as_systemd_reads_them() -> None:
    text = environment_text({"A": 'x "y" $z `w` \\ #; \'', "B": "two\nlines"})
    assert text == 'A="x \\"y\\" \\$z \\`w\\` \\\\ #; \'"\nB="two\nlines"\n'
