"""A seal counts for one system in one instance and its copies, on the host that made it."""

import hashlib
import hmac
import os
import re
import stat
from pathlib import Path
from typing import Final

import pytest

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.nix.generations import Generations
from inx_sidecar.nix.seals import Sealer

pytestmark = pytest.mark.isolated

SYSTEM = f"/nix/store/{'0' * 32}-nixos-system-web"
OTHER: Final = f"{SYSTEM}-other"
WEB, DB, MAIL = (f"{number}0000000-0000-4000-8000-000000000000" for number in (1, 2, 3))


def seal_of(system: str, uuid: str = WEB) -> str:
    return Sealer(uuid).seal_of(system)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The key of a host that has none yet."""
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(paths, "STATE", str(tmp_path / "state"))
    return tmp_path / "state/seal.key"


def test_a_host_seals_a_system_always_alike_and_each_differently(key: Path) -> None:
    first = seal_of(SYSTEM)
    assert re.fullmatch("[0-9a-f]{64}", first)
    content = key.read_bytes()
    assert (seal_of(SYSTEM), key.read_bytes()) == (first, content)
    assert seal_of(f"{SYSTEM}-2") != first


def test_the_key_is_for_root_alone_and_nothing_lies_beside_it(key: Path) -> None:
    seal_of(SYSTEM)
    assert oct(key.stat().st_mode) == oct(stat.S_IFREG | 0o600)
    assert (len(key.read_bytes()), os.listdir(key.parent)) == (32, ["seal.key"])


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_replaced(key: Path, length: int) -> None:
    first = seal_of(SYSTEM)
    key.write_bytes(bytes(length))
    again = seal_of(SYSTEM)
    assert len(key.read_bytes()) == 32
    assert oct(key.stat().st_mode) == oct(stat.S_IFREG | 0o600)
    assert again != first and seal_of(SYSTEM) == again


def test_another_key_makes_another_seal(key: Path) -> None:
    key.write_bytes(b"a" * 32)
    first = seal_of(SYSTEM)
    key.write_bytes(b"b" * 32)
    second = seal_of(SYSTEM)
    key.write_bytes(b"a" * 32)
    assert second != first == seal_of(SYSTEM)


def test_a_key_that_cannot_be_read_is_named(key: Path) -> None:
    key.mkdir()
    with pytest.raises(UnsupportedError, match=f"^cannot read {key}: Is a directory$"):
        seal_of(SYSTEM)


@pytest.mark.parametrize("current", [1, 2, 3, 4, 5, None])
def test_generations_count_only_with_the_seal_of_their_own_system(
    key: Path, current: int | None
) -> None:
    links = dict.fromkeys(range(1, 6), SYSTEM)
    seals = {1: seal_of(SYSTEM), 2: seal_of(OTHER), 3: "", 5: "\udcff\u00e9", 6: seal_of(SYSTEM)}
    present = Generations(links, current, "fingerprint", pinned=True, seals=seals)
    found = Sealer(WEB).trusted(present)
    assert found.links == {1: SYSTEM}
    assert found.current == (1 if current == 1 else None)
    assert found.system == (SYSTEM if current == 1 else None)
    assert (found.newest, found.fingerprint, found.pinned) == (1, "fingerprint", True)


def test_no_generation_counts_on_a_host_with_another_key(key: Path) -> None:
    present = Generations({1: SYSTEM}, 1, seals={1: seal_of(SYSTEM)})
    assert Sealer(WEB).trusted(present) == present
    key.unlink()
    assert Sealer(WEB).trusted(present).links == {}


@pytest.mark.parametrize(
    "seal",
    ["", "0" * 63, "0" * 65, "\udcff" * 64, "\u00e9" * 64, "\u0661" * 64, "A" * 64, "0" * 4000],
)
def test_a_text_that_is_no_seal_does_not_count(key: Path, seal: str) -> None:
    assert not Sealer(WEB, DB, [SYSTEM]).counts(SYSTEM, seal)


def test_a_seal_counts_in_its_own_instance_and_in_a_copy_of_that(key: Path) -> None:
    seal = seal_of(SYSTEM, WEB)
    assert Sealer(WEB).counts(SYSTEM, seal)
    assert not Sealer(DB).counts(SYSTEM, seal)
    assert Sealer(DB, WEB).counts(SYSTEM, seal)
    assert not Sealer(DB, MAIL).counts(SYSTEM, seal)
    assert not Sealer(DB, WEB).is_own(SYSTEM, seal)


def test_a_copy_gets_seals_of_its_own_for_what_counts(key: Path) -> None:
    links = {1: SYSTEM, 2: OTHER, 3: OTHER}
    seals = {1: seal_of(SYSTEM, WEB), 2: seal_of(OTHER, MAIL), 3: seal_of(OTHER, DB)}
    missing = Sealer(DB, WEB).missing_seals(Generations(links, 1, seals=seals))
    assert missing == {1: (SYSTEM, seal_of(SYSTEM, DB))}


def test_a_seal_of_the_former_format_counts_for_what_the_instance_ran(key: Path) -> None:
    seal_of(SYSTEM)
    former = hmac.new(key.read_bytes(), SYSTEM.encode(), hashlib.sha256).hexdigest()
    assert Sealer(WEB, "", [SYSTEM]).counts(SYSTEM, former)
    assert not Sealer(WEB, "", [OTHER]).counts(SYSTEM, former)
    assert not Sealer(WEB, "", [OTHER]).counts(OTHER, former)
    assert Sealer(WEB, "", [SYSTEM]).missing_seals(
        Generations({4: SYSTEM}, 4, seals={4: former})
    ) == {4: (SYSTEM, seal_of(SYSTEM))}


def test_the_key_is_read_once_for_any_number_of_generations(key: Path) -> None:
    sealer = Sealer(WEB)
    first = sealer.seal_of(SYSTEM)
    key.unlink()
    assert sealer.seal_of(SYSTEM) == first
