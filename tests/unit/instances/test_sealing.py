"""The seals of its source count for a copy until its first start, whoever is asked then."""

from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.incus.instance import SEALED, Instance, LxcFacts
from inx_sidecar.instances.sealing import note_renewed, sealer_of
from inx_sidecar.nix.seals import Sealer

pytestmark = pytest.mark.isolated

SYSTEM = f"/nix/store/{'0' * 32}-nixos-system-web"
WEB, COPY = (f"{number}0000000-0000-4000-8000-000000000000" for number in (1, 2))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "STATE", str(tmp_path))
    monkeypatch.setattr(paths, "GCROOTS", str(tmp_path / "gcroots"))
    Path(paths.state_dir(COPY)).mkdir()


def copy(sealed_for: str) -> Instance:
    return Instance("copy", "default", COPY, LxcFacts("copy", "", ""), False, {SEALED: sealed_for})


def counts_for_copy(sealed_for: str) -> bool:
    """Whether a seal of the source counts; `sealed_for` is what Incus has."""
    return sealer_of(copy(sealed_for)).counts(SYSTEM, Sealer(WEB).seal_of(SYSTEM))


def test_seals_of_the_source_count_until_the_first_start() -> None:
    assert counts_for_copy(WEB)
    note_renewed(copy(WEB))
    for _ in range(2):
        assert not counts_for_copy(WEB), "Incus does not have the key yet"
    assert list(Path(paths.state_dir(COPY)).iterdir()), "the next sidecar finds it"
    assert not counts_for_copy(COPY)


def test_seals_count_again_in_a_snapshot_from_before(caplog: pytest.LogCaptureFixture) -> None:
    """Incus restores the key together with the links."""
    note_renewed(copy(WEB))
    assert not counts_for_copy(COPY)
    assert counts_for_copy(WEB)


def test_a_note_that_cannot_be_made_stops_no_start(caplog: pytest.LogCaptureFixture) -> None:
    Path(paths.state_dir(COPY)).rmdir()
    note_renewed(copy(WEB))
    assert "seals of its source still count" in caplog.text
