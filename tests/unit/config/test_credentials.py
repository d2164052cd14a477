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
]
WITHOUT = [
    "github:o/r",
    "github:o/r?dir=x&ref=main&host=github.example.org",
    "git+ssh://git@host/r?ref=main",
    "ssh://git@host/r",
    "/etc/nixos?dir=web&submodules=1",
    "git+file:///srv/x?rev=0123&narHash=sha256-x=",
    "https://host/x.tar.gz?format=tar&v=1",
    "https://host:8080/user@example.org/x.tar.gz",
    "nixpkgs/nixos-25.05",
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
    with pytest.raises(ConfigError, match=r"netrc or access-tokens of builder") as refused:
        Settings(build_user="builder").check_allowed(source)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("ref", WITHOUT)
def test_a_source_without_one_may_be_built(ref: str) -> None:
    Settings().check_allowed(spec(flake=ref).source)


@pytest.mark.parametrize("key", ["flake", "file", "system", "attr", "store"])
def test_a_value_that_is_refused_does_not_show_it(key: str) -> None:
    value = f"https://user:{SECRET}@host/a b?token={SECRET}"
    keys = {key: value} | ({"file": "/x"} if key == "attr" else {})
    assert SECRET not in refusal(**keys)


@pytest.mark.parametrize(
    "part", ["a", "a@", ":a", "=a:", "http://", "http://a:b", "?a", "&", "a.b", "?a=b", "'", "a "]
)
def test_the_time_for_a_text_grows_with_its_length_and_not_faster(part: str) -> None:
    """Anybody may write the text, for example the author of a flake: it delayed all instances."""

    def seconds(length: int) -> float:
        text = part * (length // len(part)) + " @="
        took = []
        for _ in range(3):
            begin = time.perf_counter()
            redact(text)
            took.append(time.perf_counter() - begin)
        return min(took)

    assert seconds(80_000) < 10 * seconds(20_000) + 0.01
