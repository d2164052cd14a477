"""What an instance keeps of nixpkgs, and what Nix is not given although the key says it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inx_sidecar.config.locks import Lock, digest_of, is_release, lock_of, parse_lock

pytestmark = pytest.mark.main

REV = "0123456789abcdef0123456789abcdef01234567"
HASH = "sha256-XM1gT4UCJuvRsYesNJlpgqCR+IJVmaBWXs3ySozk/xY="
STORE = f"/nix/store/{'a' * 32}-source"
GITHUB = {
    "type": "github",
    "owner": "NixOS",
    "repo": "nixpkgs",
    "rev": REV,
    "lastModified": 1780000000,
}
TARBALL = {"type": "tarball", "url": "https://example.org/nixpkgs.tar.gz"}


def fetched(**locked: Any) -> dict[str, Any]:
    """As 'nix flake prefetch --json' prints it."""
    return {"hash": HASH, "storePath": STORE, "locked": locked, "original": {}}


def lock(**locked: Any) -> Lock:
    found = lock_of("nixpkgs", "1", fetched(**locked))
    assert found is not None
    return found


@pytest.mark.parametrize("locked", [GITHUB, TARBALL, {"type": "path", "path": STORE}])
def test_a_lock_is_read_as_it_was_written(locked: dict[str, Any]) -> None:
    found = lock(**locked, __final=True)
    assert dict(found.attributes) == locked | {"narHash": HASH}
    assert parse_lock(found.text()) == found
    assert found.update == digest_of("1") != digest_of("2")


def test_a_lock_says_what_it_is() -> None:
    assert str(lock(**GITHUB)) == f"github:NixOS/nixpkgs/{REV} (2026-05-28)"
    assert str(lock(**TARBALL)) == f"https://example.org/nixpkgs.tar.gz {HASH}"
    below = lock_of("", "", fetched(type="path", path=STORE), "/nixos")
    assert below is not None and str(below) == f"{STORE}/nixos"


ELSEWHERE = [
    {"type": "path", "path": "/srv/nixpkgs"},
    {"type": "git", "url": "file:///srv/nixpkgs", "rev": REV},
    {"type": "tarball", "url": "file:///srv/nixpkgs.tar.gz"},
    {"type": "git", "url": "https://user:secret@example.org/nixpkgs", "rev": REV},
    {"type": "tarball", "url": "https://example.org/nixpkgs.tar.gz?token=secret"},
]


@pytest.mark.parametrize("locked", ELSEWHERE)
def test_what_is_on_no_server_or_has_a_credential_is_taken_from_the_store(
    locked: dict[str, Any],
) -> None:
    assert dict(lock(**locked).attributes) == {"type": "path", "path": STORE, "narHash": HASH}


def test_nix_2_18_says_only_where_it_is_in_the_store() -> None:
    found = lock_of("nixpkgs", "", {"hash": HASH, "storePath": STORE})
    assert found is not None and found.store_path == STORE


PLANTED = [
    *ELSEWHERE,
    {"type": "path", "path": f"{STORE}/../../../etc"},
    {"type": "path", "path": "/nix/store/../../var/lib/inx-build"},
    {"type": "file", "url": "https://example.org/x"},
    {"type": "indirect", "id": "nixpkgs"},
    {"type": "github", "owner": "NixOS", "repo": ["nixpkgs"]},
    {"type": "tarball", "url": "https://example.org/\n"},
    {"type": "tarball", "url": "https://example.org/" + "x" * 9000},
    {"type": 1},
    {},
]


@pytest.mark.parametrize("locked", PLANTED)
def test_a_key_that_somebody_else_wrote_is_no_lock(locked: dict[str, Any]) -> None:
    """Nix would read files with the rights of the user who evaluates."""
    value = {"of": "", "update": "", "below": "", "locked": locked | {"narHash": HASH}}
    assert parse_lock(json.dumps(value)) is None


def test_without_a_hash_there_is_no_lock() -> None:
    value = {"of": "", "update": "", "below": "", "locked": GITHUB}
    assert parse_lock(json.dumps(value)) is None
    value["locked"] = GITHUB | {"narHash": HASH}
    assert parse_lock(json.dumps(value)) is not None
    for below in ("/../..", "nixos", "/a b", '/"', "/" + "x" * 200):
        assert parse_lock(json.dumps(value | {"below": below})) is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.one_of(st.text(), _json.map(json.dumps)))
def test_any_text_of_the_key_is_read(text: str) -> None:
    assert parse_lock(text) is None


@given(_json)
def test_anything_that_nix_prints_is_read(value: Any) -> None:
    assert lock_of("", "", value) is None
    assert lock_of("", "", {"hash": HASH, "storePath": STORE, "locked": value}) is not None


@pytest.mark.parametrize("text", ["26.05", "24.11"])
def test_a_release(text: str) -> None:
    assert is_release(text)


@pytest.mark.parametrize("text", ["", "26.5", "26.05pre", '26.05"', None, 26.05])
def test_no_release(text: object) -> None:
    assert not is_release(text)
