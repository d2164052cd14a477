"""The record of what was shown is links that the container can write: their text is read."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from inx_sidecar.base.errors import InstanceError
from inx_sidecar.nix import shown_record
from inx_sidecar.nix.shown_record import Record, read

pytestmark = pytest.mark.isolated


def store(name: str) -> str:
    return f"/nix/store/{'0' * 32}-{name}"


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The record in the rootfs, which is tmp_path."""
    path = tmp_path / "nix/.inx/shown"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def record_fd(record: Path) -> Iterator[int]:
    fd = os.open(record, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_what_was_recorded_is_read_from_the_oldest_to_the_newest(
    tmp_path: Path, record_fd: int
) -> None:
    order = [store(name) for name in ("z", "a", "m")]
    last = 0
    for path in order:
        changed = last
        while changed == last:  # until the clock of the file system has gone on
            Record({}, (path,)).apply(record_fd)
            Record({path: f"seal of {path}"}).apply(record_fd)
            name = os.path.basename(path)
            changed = os.stat(name, dir_fd=record_fd, follow_symlinks=False).st_ctime_ns
        last = changed
    found = read(str(tmp_path), "web")
    assert list(found) == order
    assert found == {path: f"seal of {path}" for path in order}


def test_an_instance_without_a_record_was_shown_nothing(tmp_path: Path) -> None:
    assert read(str(tmp_path), "web") == {}


def test_a_seal_is_replaced_and_a_dropped_path_is_removed(tmp_path: Path, record_fd: int) -> None:
    Record({store("a"): "old", store("b"): "old"}).apply(record_fd)
    Record({store("a"): "new"}, (store("b"), store("gone"))).apply(record_fd)
    assert read(str(tmp_path), "web") == {store("a"): "new"}
    assert os.listdir(record_fd) == [os.path.basename(store("a"))]


def test_nothing_is_written_that_is_there(tmp_path: Path, record: Path, record_fd: int) -> None:
    Record({store("a"): "seal"}).apply(record_fd)
    before = (record / os.path.basename(store("a"))).lstat()
    Record({store("a"): "seal"}).apply(record_fd)
    assert (record / os.path.basename(store("a"))).lstat() == before


def test_other_entries_are_ignored_and_left_alone(
    tmp_path: Path, record: Path, record_fd: int
) -> None:
    (record / "word").symlink_to("seal")
    (record / os.path.basename(store("file"))).write_text("seal")
    (record / os.path.basename(store("directory"))).mkdir()
    (record / os.path.basename(store("good"))).symlink_to("../" * 99)
    assert read(str(tmp_path), "web") == {store("good"): "../" * 99}
    Record({}, (store("file"), store("directory"))).apply(record_fd)
    assert len(list(record.iterdir())) == 4


@pytest.mark.parametrize("place", ["nix", "nix/.inx", "nix/.inx/shown"])
@pytest.mark.parametrize("target", ["/etc", "shown", "file"])
def test_what_stands_in_the_place_of_the_record_is_named(
    tmp_path: Path, place: str, target: str
) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if target == "file":
        path.write_text("")
    else:
        path.symlink_to(target)
    with pytest.raises(InstanceError, match=rf"^/{place} of 'web' cannot be used"):
        read(str(tmp_path), "web")


def test_too_many_entries_are_refused(
    tmp_path: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown_record, "_MAX_ENTRIES", 3)
    for number in range(3):
        (record / str(number)).touch()
    assert read(str(tmp_path), "web") == {}
    (record / "4").touch()
    with pytest.raises(InstanceError, match=r"/nix/\.inx/shown of 'web' holds over 3 entries"):
        read(str(tmp_path), "web")


def test_the_newest_links_count(
    tmp_path: Path, record_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as have roots: whoever can write the record makes nobody read more."""
    monkeypatch.setattr(shown_record, "_MOST", 2)
    for name in ("c", "b", "a"):
        Record({store(name): "seal"}).apply(record_fd)
        name_of = os.path.basename(store(name))
        before = os.stat(name_of, dir_fd=record_fd, follow_symlinks=False).st_ctime_ns
        while before == _now(tmp_path):  # until the clock of the file system has gone on
            pass
    assert list(read(str(tmp_path), "web")) == [store("b"), store("a")]


def _now(place: Path) -> int:
    (place / "now").touch()
    return (place / "now").stat().st_ctime_ns


def test_a_root_file_system_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(InstanceError, match=r"cannot open .*gone of 'web': No such file"):
        read(str(tmp_path / "gone"), "web")
