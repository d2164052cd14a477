"""Registered paths have the names that Nix gives them."""

import os
import time
from pathlib import Path

import pytest

from inx_sidecar.base import paths
from inx_sidecar.links import indirect_roots

pytestmark = pytest.mark.gc

UUID = "11111111-2222-3333-4444-555555555555"
# The output of `nix-hash --type sha1 --base32 --flat` for these bytes.
NAMES = {
    b"/root/result": "7h9kz6xpi43rhva1alqny0hi54w6203b",
    b"/root/result-1": "awi741v15jjzvr4mszxgjj5pg2b64arq",
    b"": "143xibwh31h9bvxzalr0sjvbbvpa6ffs",
    b"/": "m3zy7hnpd0jnq1afzpc3zr91y159n2a2",
    b"relative": "yg5ri6bqd3h663irrlwxfqfn2zz756fq",
    b"/nix/store/x": "ncjqydvc2a8xwxm7qhk2a4svilfvl6z2",
    b"/tmp/a\nb": "m8nsyi7cc9hscm3khymn6n7cdfp89b3x",
    b"/home/\xff\xfe/result": "6nws8j1f4q4qkjvkr631jwxqrxyh06qr",
    "/home/ü/ergebnis".encode(): "3wa0c56s2hyl5hscx5c2kk19mzvg9ikb",
    b"/" + b"x" * 4095: "7fiswcplq9bc92633xhhdjpxqs1bwb4m",
}
RESULT = NAMES[b"/root/result"]


@pytest.fixture
def auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "STATE", str(tmp_path))
    place = tmp_path / UUID / "auto"
    place.mkdir(parents=True)
    return place


@pytest.mark.parametrize(("path", "name"), NAMES.items(), ids=NAMES.values())
def test_a_path_has_the_name_that_nix_gives_it(path: bytes, name: str) -> None:
    assert indirect_roots.name_of(os.fsdecode(path)) == name
    assert indirect_roots.NAME.fullmatch(name)


def test_without_a_directory_nothing_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "STATE", str(tmp_path))
    assert indirect_roots.names(UUID) == {}
    assert indirect_roots.marks(UUID, [RESULT]) == {}
    assert indirect_roots.read(UUID, [RESULT]) == {}
    indirect_roots.forget(UUID, [RESULT])


def test_only_entries_with_a_name_of_nix_are_registrations(auto: Path) -> None:
    """Nix makes a link with another name first, and renames it."""
    for name in (RESULT, f".tmp-123-{RESULT}", f"{RESULT}.tmp-1-2", "e" * 32, RESULT[1:], "x"):
        (auto / name).symlink_to("/root/result")
    assert indirect_roots.names(UUID).keys() == {RESULT}
    assert indirect_roots.marks(UUID, [RESULT, "1" * 32]).keys() == {RESULT}
    assert indirect_roots.names(UUID) == indirect_roots.marks(UUID, [RESULT])


def test_registered_paths_are_read_unchanged(auto: Path) -> None:
    for path, name in NAMES.items():
        if 0 < len(path) < 4096:
            os.symlink(path, auto / name)
    names = [*NAMES.values(), "0" * 32]
    expected = {n: os.fsdecode(p) for p, n in NAMES.items() if 0 < len(p) < 4096}
    assert indirect_roots.read(UUID, names) == expected


def test_only_links_are_read(auto: Path) -> None:
    (auto / RESULT).mkdir()
    (auto / ("1" * 32)).touch()
    assert indirect_roots.read(UUID, [RESULT, "1" * 32]) == {}


def test_a_path_is_registered_as_nix_does(auto: Path) -> None:
    for _ in range(2):
        indirect_roots.put(UUID, "/root/result")
        assert os.listdir(auto) == [RESULT]
        assert indirect_roots.read(UUID, [RESULT]) == {RESULT: "/root/result"}


def test_only_the_named_registrations_are_forgotten(auto: Path) -> None:
    for path in ("/root/result", "/root/result-1"):
        indirect_roots.put(UUID, path)
    indirect_roots.forget(UUID, [RESULT, "1" * 32])
    assert os.listdir(auto) == [NAMES[b"/root/result-1"]]


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_a_path_that_was_registered_again_has_another_mark(auto: Path, times: int) -> None:
    """The number of registrations does not matter: a new file can have the inode number of an
    earlier one.
    """
    indirect_roots.put(UUID, "/root/result")
    before = indirect_roots.names(UUID)
    assert indirect_roots.names(UUID) == before
    changed = (auto / RESULT).lstat().st_ctime_ns
    while time.time_ns() < changed + 20_000_000:
        pass  # the clock of file systems has at least a hundred ticks a second
    for _ in range(times):
        indirect_roots.put(UUID, "/root/result")
    assert indirect_roots.names(UUID) != before
    assert indirect_roots.marks(UUID, [RESULT]) != before
