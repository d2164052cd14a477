"""A store of its own shows what it needs, and what it was shown until Nix inside has deleted it."""

import itertools
import time
from collections.abc import Mapping, Set

import pytest

from inx_sidecar.nix.shown import Shown, closure, decide, decide_start, without

pytestmark = pytest.mark.isolated

# Systems, each with its C library; all have the busybox.
FIRST = frozenset({"first", "glibc-1", "busybox"})
SECOND = frozenset({"second", "glibc-2", "busybox"})
THIRD = frozenset({"third", "glibc-3", "busybox"})


def test_the_first_start_shows_what_it_needs() -> None:
    assert decide(FIRST, {}, frozenset()) == Shown(FIRST, (), (), frozenset())


def test_a_former_system_stays_shown() -> None:
    """Something built inside may need it."""
    tops = {"first": FIRST, "second": SECOND}
    expected = Shown(FIRST | SECOND | THIRD, ("first", "second"), (), frozenset())
    assert decide(THIRD, tops, frozenset()) == expected


def test_a_system_that_was_deleted_in_part_stays_recorded_and_its_deleted_part_hidden() -> None:
    found = decide(THIRD, {"first": FIRST, "second": SECOND}, {"first"})
    assert found.kept == ("first", "second")
    assert "glibc-1" in found.names
    assert found.uncovered == frozenset()


def test_a_system_that_was_deleted_wholly_is_dropped_with_its_whiteouts() -> None:
    found = decide(THIRD, {"first": FIRST, "second": SECOND}, {"first", "glibc-1"})
    assert (found.kept, found.dropped) == (("second",), ("first",))
    assert found.names == SECOND | THIRD
    assert found.uncovered == {"first", "glibc-1"}


def test_what_is_needed_is_uncovered() -> None:
    found = decide(FIRST, {"second": SECOND}, {"first", "busybox", "glibc-2"})
    assert found.uncovered == {"first", "busybox"}
    assert found.kept == ("second",)


def test_a_system_that_is_needed_anyway_need_not_be_recorded_twice() -> None:
    """What is required is recorded by the start itself."""
    found = decide(FIRST | SECOND, {"first": FIRST}, frozenset())
    assert (found.names, found.kept, found.dropped) == (FIRST | SECOND, (), ("first",))


def test_of_two_systems_with_the_same_paths_one_stays() -> None:
    tops = {"old": SECOND, "new": SECOND}
    found = decide(FIRST, tops, frozenset())
    assert (found.kept, found.dropped) == (("new",), ("old",))
    assert found.names == FIRST | SECOND


def subsets(names: str) -> list[frozenset[str]]:
    return [
        frozenset(chosen)
        for count in range(len(names) + 1)
        for chosen in itertools.combinations(names, count)
    ]


def test_no_path_leaves_the_view_that_was_not_deleted_inside() -> None:
    """For all records of three systems over three paths, needs and deletions."""
    for closures in itertools.product(subsets("abc")[1:], repeat=3):
        tops: Mapping[str, Set[str]] = dict(zip(("1", "2", "3"), closures, strict=True))
        for required, whiteouts in itertools.product(subsets("ab"), subsets("bc")):
            found = decide(required, tops, whiteouts)
            before = frozenset().union(*closures)
            assert before - whiteouts <= found.names
            assert required <= found.names <= required | before
            assert found.names - found.uncovered >= required - whiteouts
            assert whiteouts & required <= found.uncovered
            assert not (found.uncovered & found.names) - required
            assert {*found.kept, *found.dropped} == {"1", "2", "3"}
            # Every top that stays has a path that nothing else keeps in the view.
            for top in found.kept:
                rest = required.union(*(tops[other] for other in found.kept if other != top))
                assert tops[top] - rest - whiteouts


def test_a_long_record_takes_no_long_time() -> None:
    """Each path of each top is looked at twice; comparing all pairs of tops would take minutes."""
    common = frozenset(f"common-{number}" for number in range(1000))
    tops = {str(number): common | {f"own-{number}"} for number in range(1000)}
    begin = time.process_time()
    assert len(decide(common, tops, frozenset()).kept) == 1000
    assert time.process_time() - begin < 20


def test_the_short_way_decides_the_same() -> None:
    """For all records of three tops, one of which may need another one."""
    names = {"1": "ab", "2": "bc", "3": "1c", "4": "a2", "a": "", "b": "a", "c": "c"}
    references = {name: list(needed) for name, needed in names.items()}
    for tops in itertools.permutations("1234", 3):
        for needed, whiteouts in itertools.product(subsets("14"), subsets("123ac")):
            closures = {top: closure([top], references) for top in tops}
            expected = decide(closure(needed, references), closures, whiteouts)
            assert decide_start(sorted(needed), tops, references, whiteouts) == expected


NEEDS = {
    "top": ["left", "right", "top"],
    "left": ["bottom"],
    "right": [],
    "bottom": [],
    "other": ["right"],
    "hen": ["egg"],
    "egg": ["hen"],
}


@pytest.mark.parametrize(
    ("hidden", "unusable"),
    [
        ([], ""),
        (["top"], "top"),
        (["left"], "left top"),
        (["bottom"], "bottom left top"),
        (["right"], "right top other"),
        (["egg"], "egg hen"),
        (["elsewhere"], ""),
        (["bottom", "right"], "bottom left top right other"),
    ],
)
def test_what_needs_a_hidden_path_cannot_be_registered(hidden: list[str], unusable: str) -> None:
    assert without(hidden, NEEDS) == NEEDS.keys() - set(unusable.split())


@pytest.mark.parametrize(
    ("names", "found"),
    [("", ""), ("bottom", "bottom"), ("top", "top left right bottom"), ("egg", "egg hen")],
)
def test_a_closure_is_all_that_names_need(names: str, found: str) -> None:
    assert closure(names.split(), NEEDS) == set(found.split())
