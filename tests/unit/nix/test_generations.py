"""Generations are links that the container can write: their text is read, they are not followed."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inx_sidecar.base.errors import InstanceError
from inx_sidecar.nix import generation_changes, generations
from inx_sidecar.nix.generation_changes import Append, Prune, Restore, Select, to_prune
from inx_sidecar.nix.generations import Generations, read

pytestmark = pytest.mark.main


def store(name: str) -> str:
    return f"/nix/store/{'0' * 32}-{name}"


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """The directory of profiles in the rootfs, which is tmp_path."""
    path = tmp_path / "nix/var/nix/profiles"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def profiles_fd(profiles: Path) -> Iterator[int]:
    fd = os.open(profiles, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def link(profiles: Path, **links: str) -> None:
    for name, target in links.items():
        (profiles / name.replace("_", "-")).symlink_to(target)


def content(profiles: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in profiles.iterdir()}


@pytest.mark.parametrize(
    ("numbers", "current", "keep", "dropped"),
    [
        ([1, 2, 3], 3, 5, []),
        ([1, 2, 3], 3, 3, []),
        ([1, 2, 3], 3, 2, [1]),
        ([1, 2, 3], 3, 1, [1, 2]),
        ([1, 2, 3], 1, 2, [2]),
        ([1, 2, 3], 1, 1, [2, 3]),
        ([3, 10, 9], 10, 2, [3]),
        ([7], 7, 1, []),
        ([], 1, 1, []),
    ],
)
def test_the_oldest_generations_are_dropped_but_never_the_current_one(
    numbers: list[int], current: int, keep: int, dropped: list[int]
) -> None:
    assert to_prune(numbers, current, keep) == dropped


def test_an_empty_root_file_system_has_no_generations(tmp_path: Path) -> None:
    assert read(str(tmp_path), "web") == Generations()
    (tmp_path / "nix/var").mkdir(parents=True)
    assert read(str(tmp_path), "web") == Generations()


def test_links_as_nix_and_inx_write_them(tmp_path: Path, profiles: Path) -> None:
    link(profiles, system="system-2-link", system_1_link=store("a"), system_2_link=store("b"))
    link(profiles, system_source="0123", system_pinned="2")
    found = read(str(tmp_path), "web")
    assert found == Generations({1: store("a"), 2: store("b")}, 2, "0123", pinned=True)
    assert (found.system, found.newest) == (store("b"), 2)


def test_an_absolute_link_to_a_generation_counts_too(tmp_path: Path, profiles: Path) -> None:
    link(profiles, system="/nix/var/nix/profiles/system-1-link", system_1_link=store("a"))
    assert read(str(tmp_path), "web").current == 1


@pytest.mark.parametrize(
    "target",
    [
        "system-9-link", "system-01-link", "system-0-link", "system", "/etc/passwd", "..",
        "system-1-link/", "system-1-link\n", "system-99999999999999999999-link", store("a"),
    ],
)  # fmt: skip
def test_a_current_link_that_names_no_generation_is_none(
    tmp_path: Path, profiles: Path, target: str
) -> None:
    link(profiles, system=target, system_1_link=store("a"))
    found = read(str(tmp_path), "web")
    assert found.current is None and found.system is None and found.newest == 1


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd", "../../../../etc", "missing", "/nix/store", f"{store('a')}/etc",
        f"{store('a')}\n", f"{store('a')}/../x", store("a/b"), store("é"), store(".."),
        store("a").replace("0", "e"), f"/{store('a')}", f".{store('a')}", store("a" * 212),
    ],
)  # fmt: skip
def test_a_generation_that_names_no_store_path_is_ignored(
    tmp_path: Path, profiles: Path, target: str
) -> None:
    link(profiles, system="system-1-link", system_1_link=target)
    assert read(str(tmp_path), "web") == Generations()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: Path(path).write_text("x")])
def test_what_is_no_link_is_ignored(
    tmp_path: Path, profiles: Path, make: Callable[[Path], object]
) -> None:
    for name in ("system", "system-1-link", "system-source", "system-pinned"):
        make(profiles / name)
    assert read(str(tmp_path), "web") == Generations()


def test_other_names_are_ignored(tmp_path: Path, profiles: Path) -> None:
    for name in ("per-user", "system-1-link~", "x-1-link", "system--1-link", "system-1e1-link"):
        (profiles / name).symlink_to(store("a"))
    (profiles / "system-٣-link").symlink_to(store("a"))
    os.symlink(store("a"), os.fsencode(profiles) + b"/\xff\n")
    os.symlink(b"\xff\n", profiles / "default")
    assert read(str(tmp_path), "web") == Generations()


def test_a_fingerprint_of_any_bytes_is_only_text(tmp_path: Path, profiles: Path) -> None:
    os.symlink(b"\xff\n\x1b", profiles / "system-source")
    fingerprint = read(str(tmp_path), "web").fingerprint
    assert fingerprint is not None and fingerprint != "0123"


def test_a_flood_of_entries_is_refused(
    tmp_path: Path, profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "_MAX_ENTRIES", 3)
    link(profiles, a="x", b="x", c="x")
    assert read(str(tmp_path), "web") == Generations()
    link(profiles, d="x")
    with pytest.raises(InstanceError, match="/nix/var/nix/profiles of 'web' holds over 3 entries"):
        read(str(tmp_path), "web")


def test_of_many_generations_the_newest_count_and_the_current_one(
    tmp_path: Path, profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "_MOST", 3)
    link(profiles, **{f"system-{number}-link": store("a") for number in range(1, 10)})
    assert set(read(str(tmp_path), "web").links) == {7, 8, 9}
    link(profiles, system="system-2-link")
    found = read(str(tmp_path), "web")
    assert (set(found.links), found.current) == ({2, 7, 8, 9}, 2)


@pytest.mark.parametrize("place", ["nix", "nix/var", "nix/var/nix", "nix/var/nix/profiles"])
@pytest.mark.parametrize("target", ["/", "/etc", ".", "..", "elsewhere", "loop", "missing"])
def test_no_link_on_the_way_is_followed(tmp_path: Path, place: str, target: str) -> None:
    """Such a link would lead out of the instance, or to another part of it."""
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "elsewhere").mkdir()
    path.symlink_to(path.name if target == "loop" else target)
    with pytest.raises(InstanceError, match=r"/nix\S* of 'web' cannot be used"):
        read(str(tmp_path), "web")


@pytest.mark.parametrize("place", ["nix", "nix/var", "nix/var/nix/profiles"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: Path(path).write_text("x")])
def test_what_is_no_directory_on_the_way_is_named(
    tmp_path: Path, place: str, make: Callable[[Path], object]
) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    make(tmp_path / place)
    with pytest.raises(InstanceError, match=r"/nix\S* of 'web' cannot be used"):
        read(str(tmp_path), "web")


def test_a_root_file_system_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(InstanceError, match=r"cannot open .*/gone of 'web': No such file"):
        read(str(tmp_path / "gone"), "web")


def test_append_makes_the_first_generation(profiles: Path, profiles_fd: int) -> None:
    assert Append(store("a"), "f1", 5).apply(profiles_fd) == 1
    wanted = {"system": "system-1-link", "system-1-link": store("a"), "system-source": "f1"}
    assert content(profiles) == wanted


def test_append_numbers_on(tmp_path: Path, profiles: Path, profiles_fd: int) -> None:
    for number, name in enumerate("abc", 1):
        assert Append(store(name), f"f{number}", 5).apply(profiles_fd) == number
    found = read(str(tmp_path), "web")
    links = {1: store("a"), 2: store("b"), 3: store("c")}
    assert found == Generations(links, 3, "f3", pinned=False)


def test_the_same_system_is_no_new_generation_but_a_new_record(
    profiles: Path, profiles_fd: int
) -> None:
    Append(store("a"), "f1", 5).apply(profiles_fd)
    assert Append(store("a"), "f2", 5).apply(profiles_fd) == 1
    wanted = {"system": "system-1-link", "system-1-link": store("a"), "system-source": "f2"}
    assert content(profiles) == wanted


def test_a_number_is_never_used_twice(profiles: Path, profiles_fd: int) -> None:
    """Nor is the number of a link that leads nowhere, or of any entry with such a name."""
    link(profiles, system="system-2-link", system_2_link=store("a"), system_7_link="nowhere")
    (profiles / "system-9-link").mkdir()
    assert Append(store("b"), "f", 5).apply(profiles_fd) == 10


def test_append_after_a_rollback_keeps_the_later_ones(profiles: Path, profiles_fd: int) -> None:
    for name in "abc":
        Append(store(name), "f", 5).apply(profiles_fd)
    Select(1, pinned=False).apply(profiles_fd)
    assert Append(store("d"), "f", 5).apply(profiles_fd) == 4
    assert content(profiles)["system-3-link"] == store("c")


def test_append_prunes_to_keep(profiles: Path, profiles_fd: int) -> None:
    for name in "abcde":
        Append(store(name), "f", 2).apply(profiles_fd)
    names = sorted(name for name in content(profiles) if name.endswith("link"))
    assert names == ["system-4-link", "system-5-link"]


def test_a_smaller_keep_prunes_also_without_a_new_generation(
    profiles: Path, profiles_fd: int
) -> None:
    for name in "abc":
        Append(store(name), "f", 5).apply(profiles_fd)
    Append(store("c"), "f", 1).apply(profiles_fd)
    assert set(content(profiles)) == {"system", "system-3-link", "system-source"}


def test_append_replaces_whatever_link_stands_there(profiles: Path, profiles_fd: int) -> None:
    link(profiles, system="/etc/passwd", system_source="/etc/shadow", system_pinned="/etc/group")
    Append(store("a"), "f", 5).apply(profiles_fd)
    wanted = {"system": "system-1-link", "system-1-link": store("a"), "system-source": "f"}
    assert content(profiles) == wanted


def test_select_changes_the_current_one_and_no_record(profiles: Path, profiles_fd: int) -> None:
    for name in "ab":
        Append(store(name), "f", 5).apply(profiles_fd)
    assert Select(1, pinned=True).apply(profiles_fd) == 1
    pinned = content(profiles)
    assert (pinned["system"], pinned["system-pinned"]) == ("system-1-link", "1")
    assert Select(2, pinned=False).apply(profiles_fd) == 2
    released = content(profiles)
    assert released["system"] == "system-2-link" and "system-pinned" not in released
    assert released["system-source"] == "f"


def test_a_new_generation_ends_a_pin(tmp_path: Path, profiles_fd: int) -> None:
    Append(store("a"), "f", 5).apply(profiles_fd)
    Select(1, pinned=True).apply(profiles_fd)
    Append(store("b"), "f", 5).apply(profiles_fd)
    assert not read(str(tmp_path), "web").pinned


@pytest.mark.parametrize("change", [Append(store("a"), "f", 5), Select(1, pinned=False)])
def test_a_directory_in_the_place_of_a_link_stays_and_leaves_no_litter(
    profiles: Path, profiles_fd: int, change: Append | Select
) -> None:
    (profiles / "system").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        change.apply(profiles_fd)
    assert not [path.name for path in profiles.iterdir() if path.name.startswith(".")]


@pytest.mark.life
def test_going_back_undoes_all_of_an_update(profiles: Path, profiles_fd: int) -> None:
    Append(store("a"), "first", 5, seal="of a").apply(profiles_fd)
    before = content(profiles)
    Append(store("b"), "second", None, seal="of b").apply(profiles_fd)
    Restore(1, pinned=False, fingerprint="first", numbers=(1,)).apply(profiles_fd)
    assert content(profiles) == before
    Restore(1, pinned=True, fingerprint=None, numbers=(1,)).apply(profiles_fd)
    assert content(profiles) == {
        **{name: target for name, target in before.items() if name != "system-source"},
        "system-pinned": "1",
    }


@pytest.mark.life
def test_going_back_keeps_a_generation_that_was_there(profiles: Path, profiles_fd: int) -> None:
    Append(store("a"), "first", 5).apply(profiles_fd)
    Append(store("b"), "second", 5).apply(profiles_fd)
    Select(1, pinned=True).apply(profiles_fd)
    Restore(2, pinned=False, fingerprint="second", numbers=(1, 2)).apply(profiles_fd)
    found = generations.read_links(profiles_fd)
    assert (found.current, found.pinned, set(found.links)) == (2, False, {1, 2})


@pytest.mark.life
def test_old_generations_stay_until_they_are_pruned(profiles: Path, profiles_fd: int) -> None:
    for name in "abc":
        Append(store(name), "f", None).apply(profiles_fd)
    assert set(generations.read_links(profiles_fd).links) == {1, 2, 3}
    assert Prune(2).apply(profiles_fd) == 3
    assert set(generations.read_links(profiles_fd).links) == {2, 3}


@pytest.mark.life
def test_the_newest_generation_is_used_again(profiles: Path, profiles_fd: int) -> None:
    for name in "ab":
        Append(store(name), "f", 5).apply(profiles_fd)
    Select(1, pinned=False).apply(profiles_fd)
    assert Append(store("b"), "f", 5).apply(profiles_fd) == 2


@pytest.mark.isolated
def test_generations_count_by_their_seals() -> None:
    links = {1: store("a"), 2: store("b"), 3: store("c")}
    seals = {1: f"sealed {store('a')}", 2: f"sealed {store('a')}"}
    present = Generations(links, 3, "source", seals=seals)
    found = present.with_valid_seals(lambda path, seal: seal == f"sealed {path}")
    assert (found.links, found.current, found.fingerprint) == ({1: store("a")}, None, "source")


@pytest.mark.isolated
def test_a_generation_and_its_seal_come_and_go_together(profiles: Path, profiles_fd: int) -> None:
    Append(store("a"), "f", 1, seal="of a").apply(profiles_fd)
    assert generations.read_links(profiles_fd).seals == {1: "of a"}
    Append(store("b"), "f", 1, seal="of b").apply(profiles_fd)
    assert generations.read_links(profiles_fd).seals == {2: "of b"}
    assert not os.path.lexists(profiles / "system-1-seal")


@pytest.mark.isolated
def test_generations_get_other_seals_unless_they_changed(profiles: Path, profiles_fd: int) -> None:
    Append(store("a"), "f", 5, seal="of a").apply(profiles_fd)
    Append(store("b"), "f", 5, seal="of b").apply(profiles_fd)
    renewed = {1: (store("a"), "new of a"), 2: (store("a"), "new of a"), 3: (store("c"), "of c")}
    assert generation_changes.Seal(renewed, Select(1, pinned=False)).apply(profiles_fd) == 1
    found = generations.read_links(profiles_fd)
    assert (found.seals, found.current) == ({1: "new of a", 2: "of b"}, 1)
    assert set(found.links) == {1, 2}
    generation_changes.Seal({2: (store("b"), "x")}, Append(store("c"), "f", 1, seal="of c")).apply(
        profiles_fd
    )
    assert generations.read_links(profiles_fd).seals == {3: "of c"}


def test_seals_without_a_generation_are_dropped_and_nothing_else(
    tmp_path: Path, profiles: Path, profiles_fd: int
) -> None:
    Append(store("a"), "f", 5, seal="of a").apply(profiles_fd)
    link(profiles, system_7_seal="left", system_8_seal="/victim", system_9_seal="left")
    (profiles / "system-10-seal").mkdir()
    (profiles / "system-11-seal").write_text("a file")
    assert read(str(tmp_path), "web").left_seals == (7, 8, 9)
    link(profiles, system_9_link=store("b"))  # made since the look
    drop = generation_changes.DropSeals((7, 8, 9, 10, 11), Select(1, pinned=False))
    assert drop.apply(profiles_fd) == 1
    names = {path.name for path in profiles.iterdir() if path.name.endswith("-seal")}
    assert names == {f"system-{number}-seal" for number in (1, 9, 10, 11)}
    assert read(str(tmp_path), "web").left_seals == ()


def test_a_bounded_number_of_seals_is_dropped_at_once(profiles: Path, profiles_fd: int) -> None:
    link(profiles, **{f"system_{number}_seal": "left" for number in range(1, 9)})
    assert generations.read_links(profiles_fd, most=3).left_seals == (1, 2, 3)
