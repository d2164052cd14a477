"""Credentials in references are recognised, and nowhere shown."""

import time

import pytest

from inx_sidecar.base.errors import ConfigError
from inx_sidecar.config.credentials import has_credentials, redact
from inx_sidecar.config.settings import Settings
from unit.config.test_keys import refusal, spec

pytestmark = pytest.mark.main

SECRET = "s3cr3t"
WITH = [
    f"github:o/r?token={SECRET}",
    f"github:o/r?dir=x&access_token={SECRET}&ref=main",
    f"https://user:{SECRET}@host/x.tar.gz",
    f"https://{SECRET}@github.com/o/r/archive/main.tar.gz",
    f"git+https://x-access-token:{SECRET}@github.com/o/r",
    f"git+ssh://git:{SECRET}@host/r",
    f"git+http://{SECRET}@host/r?ref=main",
    f"tarball+https://host/x.tar.gz?private_token={SECRET}",
    f"https://bucket/x.tar.gz?X-Amz-Signature={SECRET}&X-Amz-Date=1",
    f"https://host/x.tar.gz?sv=1&sig={SECRET}",
    f"https://host/x.tar.gz?%74oken={SECRET}",
    f"https://host/x.tar.gz?api_key={SECRET}",
    f"gitlab:o/r?host=user:{SECRET}@host",
    f"https://host/x.tar.gz?ref=main%26token={SECRET}",
    f"https://host/x.tar.gz?ref=main%252526x={SECRET}",
    f"https://host/x.tar.gz?ref=main;token={SECRET}",
    f"https://host/x.tar.gz?pw%3D{SECRET}",
    f"git+ssh://ghp_{SECRET}0123456789@host/r",
    f"git+ssh://{SECRET}a0123456789abcdef@host/r",
    # A place as a parameter.
    f"gitlab:o/r?host={SECRET}@host",
    f"github:o/r?dir=x&host={SECRET}%40host",
    f"sourcehut:~o/r?host={SECRET}%2540host",
    f"github:o/r?host={SECRET}%25252540host",
    f"github:o/r?host={SECRET}%25%34%30host",
    f"github:o/r?h%6Fst={SECRET}@host",
    f"github:o/r?host%3D{SECRET}@host",
    f"github:o/r?host=a%26{SECRET}@host",
    f"github:o/r?host={SECRET}%{'25' * 40}40host",
    f"git+https://host/r?url=https://{SECRET}@host",
    f"git+https://host/r?url=https%3a%2f%2f{SECRET}%40host",
    f"git+https://host/r?url=git+ssh://{SECRET}@host",
    f"github:o/r?%75rl={SECRET}@host",
    # Slashes that are missing, that are too many, or encoded.
    f"https:/{SECRET}@host/x.tar.gz",
    f"https:///{SECRET}@host/x.tar.gz",
    f"https:///////{SECRET}@host/x.tar.gz",
    f"https:{SECRET}@host/x.tar.gz",
    f"git+https:/{SECRET}@host/r",
    f"git:/{SECRET}@host/r",
    f"git://{SECRET}@host/r",
    f"https://{SECRET}%40host/x.tar.gz",
    f"https://{SECRET}%252540host/x.tar.gz",
    f"https:/{SECRET}%40host/x.tar.gz",
    f"https:%2F%2F{SECRET}%40host/x.tar.gz",
    f"https://a@{SECRET}@host/x.tar.gz",
    f"git+ssh:///git:{SECRET}@host/r",
    f"git+ssh:/git%3A{SECRET}@host/r",
    f"git+ssh:/{SECRET}a0123456789abcdef@host/r",
    f"github:{SECRET}@host/o/r",
    f"gitlab:/{SECRET}%40host/o/r",
    f"sourcehut://{SECRET}@host/o/r",
    *(
        f"https://host/x.tar.gz?dir=x&{name}={SECRET}"
        for name in (
            "pw",
            "psw",
            "passcode",
            "code",
            "t",
            "tok",
            "sas",
            "ticket",
            "session",
            "sign",
            "hmac",
            "api",
            "key",
            "k",
            "u",
            "REF",
            "ref%00",
            "%2574oken",
        )
    ),
]
WITHOUT = [
    "github:o/r",
    "github:o/r?dir=x&ref=main&host=github.example.org",
    "git+ssh://git@host/r?ref=main",
    "/etc/nixos?dir=web&submodules=1",
    "git+file:///srv/x?rev=0123&narHash=sha256-x=",
    "https://host/x.tar.gz?format=tar&sha=0123",
    "git+ssh://APKAEIBAERJR2EXAMPLE@git-codecommit.eu-central-1.amazonaws.com/v1/repos/x",
    "git+https://host/r?rev=0123456789012345678901234567890123456789&allRefs=1&lfs=1&shallow=1",
    "https://host:8080/user@example.org/x.tar.gz",
    "nixpkgs/nixos-25.05",
    "git+ssh:/git@host/r",
    "git+ssh:///git@host/r",
    "git+ssh://git%40host/r",
    "git+ssh://deploy.user@host:22/~git@x/r?ref=v1@2",
    "path:/user@1/flake",
    "path:/long-name-0123456789-0123456789@1/flake",
    "git+file:///me@home/flake",
    "file:/me@home/x.tar.gz",
    "/srv/user@host/flake",
    "github:o/r/v1@2",
    "gitlab:group%2Fsub/r?host=gitlab.example.org:8443",
    "sourcehut:~user/r?host=git.example.org",
    "https://host/@scope/x%40y.tar.gz?ref=a@b",
    "git+https://host/r?url=https%3A%2F%2Fhost%2Fr",
]


@pytest.mark.parametrize("ref", WITH)
def test_a_credential_is_found_and_left_out(ref: str) -> None:
    assert has_credentials(ref)
    assert SECRET not in redact(ref) and "***" in redact(ref)
    assert SECRET not in redact(f"error: unable to download '{ref}': HTTP error 404")
    assert redact(redact(ref)) == redact(ref)


@pytest.mark.parametrize("ref", WITHOUT)
def test_an_ordinary_reference_has_none(ref: str) -> None:
    assert not has_credentials(ref) and redact(ref) == ref


@pytest.mark.parametrize("ref", WITH)
def test_a_source_with_a_credential_is_not_built_and_not_shown(ref: str) -> None:
    source = spec(flake=f"{ref}#web").source
    assert SECRET not in str(source)
    with pytest.raises(ConfigError, match=r"netrc or access-tokens of builder, see") as refused:
        Settings(build_user="builder").check_allowed(source)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("ref", WITHOUT)
def test_a_source_without_one_may_be_built(ref: str) -> None:
    Settings().check_allowed(spec(flake=ref).source)


@pytest.mark.parametrize(
    "line",
    [
        f"> Authorization: Bearer {SECRET}",
        f"curl -H 'Authorization: token {SECRET}' https://host",
        f'{{"authorization": "Basic {SECRET}"}}',
        f"PRIVATE-TOKEN: {SECRET}",
        f"db_password={SECRET} user=x",
        f"Password: {SECRET}",
        f"access-tokens = github.com={SECRET}",
        f"export API_KEY='{SECRET} with blanks'",
        f"error: unable to download 'https://host/x?pw={SECRET}': HTTP error 404",
        f"remote: ghp_{SECRET}0123456789 is not valid",
        f"remote: glpat-{SECRET}0123456789 is not valid",
        f"HTTPS:///{SECRET}@host/x.tar.gz",
        f"github:o/r?host=a%3B{SECRET}@host",
        f"path:/https://{SECRET}@host/x",
        f"warning: x:https://{SECRET}@host/x",
        f"fatal: unable to access 'https:/{SECRET}@host/r/': refused",
        f"… while fetching the input 'gitlab:o/r?host={SECRET}@host'",
    ],
)
def test_the_output_of_a_program_shows_none(line: str) -> None:
    assert SECRET not in redact(line)
    assert redact(redact(line)) == redact(line)


@pytest.mark.parametrize(
    "line",
    [
        "error: syntax error, unexpected ')', expecting end of file",
        "building '/nix/store/ybcz1i6brrlbvx6vf1bz96ywk0ml5073-token-web-1.drv'...",
        "error: cannot look up '<nixpkgs>' in pure evaluation mode; use '--impure' to override",
        "warning: unknown setting 'access-tokens'",
        "getting status of '/root/inx-secret': Permission denied",
        "http://h:8123 asks inx-build for a password: put it into /var/lib/inx-build/.netrc",
        "copying path '/nix/store/x-glibc-locales-2.40-66' from 'https://cache.nixos.org'...",
        "src/token.c:12:3: warning: unused variable",
        "src/token.c: In function 'next':",
        "copying path '/nix/store/x-secrets' from 'https://cache.nixos.org'...",
        "at /etc/nixos/flake.nix:12:3: a = b; c = d;",
        "fetching https://host/x.tar.gz?rev=1&narHash=sha256-x=",
    ],
)
def test_other_output_stays(line: str) -> None:
    assert redact(line) == line


@pytest.mark.parametrize("key", ["flake", "file", "system", "attr", "store"])
def test_a_value_that_is_refused_does_not_show_it(key: str) -> None:
    value = f"https://user:{SECRET}@host/a b?token={SECRET}"
    keys = {key: value} | ({"file": "/x"} if key == "attr" else {})
    assert SECRET not in refusal(**keys)


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "a@",
        ":a",
        "=a:",
        "http://",
        "http://a:b",
        "?a",
        "&",
        "a.b",
        "?a=b",
        "'",
        "a ",
        "token",
        "token=",
        "token='",
        "authorization: bearer ",
        "%25",
        "%2526",
        "?%25",
        ";a%3D",
        "eyJa.",
        "eyJaaaaaaaaaaaaaaa-",
        "ghp_",
        "passw",
        "?a%",
        "/",
        "%2F",
        "http:%2Fa",
        "http:/a",
        "http:",
        "a:%2F",
        "x:/",
        "&host=",
        "&host=%25",
        "%40",
        "@%2540",
    ],
)
def test_the_time_for_a_text_grows_with_its_length_and_not_faster(part: str) -> None:
    """Anybody may write the text, for example the author of a flake: it delayed all instances."""

    def seconds(length: int) -> float:
        text = part * (length // len(part)) + " @="
        took = []
        for _ in range(3):
            begin = time.process_time()
            redact(text)
            took.append(time.process_time() - begin)
        return min(took)

    assert seconds(80_000) < 10 * seconds(20_000) + 0.01
