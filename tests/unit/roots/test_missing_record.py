"""What an instance names and this host lacks: what is fetched, and what is told."""

from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.roots.missing_record import (
    MISSING_MAX,
    RETRY_SECONDS,
    MissingRecord,
    after_fetch,
    roots_to_try,
)

pytestmark = pytest.mark.gc

UUID = "11111111-2222-3333-4444-555555555555"
HERE, NOW = "place", 1000.0


def store(digit: str) -> str:
    return f"/nix/store/{digit * 32}-x{digit}"


ONE, TWO, THREE = (store(digit) for digit in "123")
ABSENT = {"system-1": ONE, "links/a.1": TWO, "links/b.1": THREE}


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "STATE", str(tmp_path))
    (tmp_path / UUID).mkdir()


def record(**lost: str) -> MissingRecord:
    return MissingRecord(HERE, NOW, {f"links/{name}.1": path for name, path in lost.items()})


def test_the_first_start_and_a_restored_instance_try_all() -> None:
    assert roots_to_try(None, ABSENT, HERE, NOW) == ABSENT
    assert roots_to_try(record(), ABSENT, "restored", NOW) == ABSENT


def test_a_later_start_tries_what_was_lost_and_is_still_named() -> None:
    before = record(a=TWO, gone=ONE)
    later = NOW + RETRY_SECONDS
    assert roots_to_try(before, ABSENT, HERE, later) == {"links/a.1": TWO}
    assert roots_to_try(record(), ABSENT, HERE, later) == {}


def test_a_start_soon_after_an_attempt_tries_nothing() -> None:
    before = record(a=TWO)
    assert roots_to_try(before, ABSENT, HERE, NOW + RETRY_SECONDS - 1) == {}
    assert roots_to_try(before, ABSENT, HERE, NOW - 1) != {}, "the clock was set back"


def test_no_number_of_links_is_tried_without_limit() -> None:
    many = {f"links/{number}.1": ONE for number in range(MISSING_MAX + 5)}
    assert len(roots_to_try(None, {"system-1": TWO, **many}, HERE, NOW)) == MISSING_MAX
    assert "system-1" in roots_to_try(None, {"system-1": TWO, **many}, HERE, NOW)


def test_what_did_not_come_is_lost() -> None:
    after = after_fetch(None, ABSENT, frozenset({ONE, TWO}), HERE, NOW)
    assert after == MissingRecord(HERE, NOW, {"links/b.1": THREE}, 2)
    again = after_fetch(after, dict(after.lost), frozenset({THREE}), HERE, NOW)
    assert again == MissingRecord(HERE, NOW, {}, 3)


def test_what_came_otherwise_or_is_named_no_more_is_not_lost() -> None:
    before = record(a=TWO, b=THREE)
    assert before.without({"links/a.1": TWO}) == record(a=TWO)
    assert before.without({"links/a.1": ONE}) == record()
    assert before.without(ABSENT) is before


def test_the_status_counts_links_and_leaves_out_generations() -> None:
    assert MissingRecord(HERE, NOW, {"system-1": ONE}, 4).text("web") == ""
    one = MissingRecord(HERE, NOW, {"system-1": ONE, "links/a.1": TWO, "links/b.1": TWO})
    assert one.text("web") == "1 store path that it links is lost, see 'inx-sidecar roots web'"
    two = MissingRecord(HERE, NOW, {"links/a.1": TWO, "links/b.1": THREE}, 1)
    assert two.text("web") == (
        "2 store paths that it links are lost (1 fetched), see 'inx-sidecar roots web'"
    )


def test_a_record_is_read_again_and_a_wrong_one_is_none() -> None:
    assert MissingRecord.load(UUID) is None
    saved = MissingRecord(HERE, NOW, {"links/a.1": TWO}, 2)
    saved.save(UUID)
    assert MissingRecord.load(UUID) == saved
    for text in ("", "[]", '{"restored": "", "tried": "x", "lost": {}, "fetched": 0}'):
        Path(paths.missing_file(UUID)).write_text(text)
        assert MissingRecord.load(UUID) is None
