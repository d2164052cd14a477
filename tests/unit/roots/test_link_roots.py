"""What is held for a link follows from what was seen of it: dropped only by those who are sure."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inx_sidecar.links.resolver import ResolvedLink
from inx_sidecar.roots.link_roots import LINKS, parse_root_name, paths_to_hold, root_name

pytestmark = pytest.mark.gc

NAME = "7h9kz6xpi43rhva1alqny0hi54w6203b"
ONE = f"/nix/store/{'1' * 32}-one"
TWO = f"/nix/store/{'2' * 32}-two"
HOME, AWAY = True, False
INIT, SERVICE = "init@1", "0123:8:0:1"


def link(
    targets: Mapping[str, bool] | None = None,
    *,
    found: str = "",
    missing: str = "",
    sure: bool = True,
) -> ResolvedLink:
    """What was seen at the places INIT ("i") and SERVICE ("s")."""
    views = {"i": INIT, "s": SERVICE}
    return ResolvedLink(
        targets or {},
        frozenset(views[view] for view in found),
        frozenset(views[view] for view in missing),
        sure,
    )


CASES: dict[str, tuple[ResolvedLink, dict[str, bool], str, dict[str, bool]]] = {
    # what is seen, what is held, where it was last found away, what is held then
    "new at home": (link({ONE: HOME}, found="i"), {}, "", {ONE: HOME}),
    "new away": (link({ONE: AWAY}, found="i"), {}, "", {ONE: AWAY}),
    "still at home": (link({ONE: HOME}, found="i"), {ONE: HOME}, "", {ONE: HOME}),
    "still away": (link({ONE: AWAY}, found="i"), {ONE: AWAY}, "i", {ONE: AWAY}),
    "never there": (link(missing="i"), {}, "", {}),
    "re-pointed": (link({TWO: HOME}, found="i"), {ONE: HOME}, "", {TWO: HOME}),
    "re-pointed away": (link({TWO: AWAY}, found="i"), {ONE: AWAY}, "i", {TWO: AWAY}),
    "moved home": (link({ONE: HOME}, found="i"), {ONE: AWAY}, "i", {ONE: HOME}),
    "covered by one of the same": (link({ONE: AWAY}, found="i"), {ONE: HOME}, "", {ONE: AWAY}),
    "missing at home": (link(missing="i"), {ONE: HOME}, "", {}),
    "missing in all views": (link(missing="is"), {ONE: HOME}, "", {}),
    "removed from a mounted disk": (
        link(missing="i"), {ONE: AWAY}, "i", {},
    ),
    "the disk is not mounted, and where it was is not known": (
        link(missing="i"), {ONE: AWAY}, "", {ONE: AWAY},
    ),
    "removed in the view that had it": (link(missing="is"), {ONE: AWAY}, "s", {}),
    "the view that had it is no more": (link(missing="i"), {ONE: AWAY}, "s", {ONE: AWAY}),
    "of both kinds, missing": (link(missing="i"), {ONE: HOME, TWO: AWAY}, "", {TWO: AWAY}),
    "different in two views": (
        link({ONE: HOME, TWO: AWAY}, found="is"), {ONE: HOME}, "", {ONE: HOME, TWO: AWAY},
    ),
    "left in one of two views": (
        link({TWO: AWAY}, found="s", missing="i"), {ONE: HOME, TWO: AWAY}, "s", {TWO: AWAY},
    ),
    "not sure, nothing seen": (
        link(sure=False), {ONE: HOME, TWO: AWAY}, "", {ONE: HOME, TWO: AWAY},
    ),
    "not sure, another seen": (
        link({TWO: HOME}, found="i", sure=False), {ONE: HOME}, "", {ONE: HOME, TWO: HOME},
    ),
    "not sure, missing where it was": (
        link(missing="i", sure=False), {ONE: AWAY}, "i", {ONE: AWAY},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("seen", "held", "last", "expected"), CASES.values(), ids=CASES.keys())
def test_every_case_has_its_answer(
    seen: ResolvedLink, held: dict[str, bool], last: str, expected: dict[str, bool]
) -> None:
    views = frozenset({"i": INIT, "s": SERVICE}[view] for view in last)
    assert paths_to_hold(seen, held, views) == expected


def test_an_instance_near_its_limit_keeps_nothing_that_is_missing() -> None:
    assert paths_to_hold(link(missing="i"), {ONE: AWAY}, frozenset(), near_limit=True) == {}
    assert paths_to_hold(link(sure=False), {ONE: AWAY}, frozenset(), near_limit=True) == {ONE: AWAY}
    found = link({TWO: AWAY}, found="s")
    assert paths_to_hold(found, {ONE: AWAY}, frozenset(), near_limit=True) == {TWO: AWAY}


paths = st.sampled_from([f"/nix/store/{digit * 32}-x" for digit in "0123"])
holdings = st.dictionaries(paths, st.booleans())
views = st.frozensets(st.sampled_from(["a", "b", "c", "d"]))


@st.composite
def sights(draw: st.DrawFn) -> ResolvedLink:
    """Any that looking can give: a view has the link, or surely has none, or is unknown."""
    found = draw(views)
    missing = draw(views) - found
    targets = draw(st.dictionaries(paths, st.booleans(), min_size=1)) if found else {}
    return ResolvedLink(targets, found, missing, draw(st.booleans()))


@given(sights(), holdings, views, st.booleans())
def test_who_is_not_sure_drops_nothing(
    seen: ResolvedLink, held: dict[str, bool], last: frozenset[str], near_limit: bool
) -> None:
    unsure = ResolvedLink(seen.targets, seen.found, seen.missing, sure=False)
    assert held.keys() <= paths_to_hold(unsure, held, last, near_limit=near_limit).keys()


@given(sights(), holdings, views, st.booleans())
def test_what_is_found_is_held_as_it_was_found(
    seen: ResolvedLink, held: dict[str, bool], last: frozenset[str], near_limit: bool
) -> None:
    assert seen.targets.items() <= paths_to_hold(seen, held, last, near_limit=near_limit).items()


@given(sights(), holdings, views, st.booleans())
def test_nothing_is_held_that_was_neither_held_nor_found(
    seen: ResolvedLink, held: dict[str, bool], last: frozenset[str], near_limit: bool
) -> None:
    holds = paths_to_hold(seen, held, last, near_limit=near_limit)
    assert holds.keys() <= held.keys() | seen.targets.keys()


@given(sights(), holdings, views, st.booleans())
def test_who_is_sure_drops_what_was_at_home_and_is_there_no_more(
    seen: ResolvedLink, held: dict[str, bool], last: frozenset[str], near_limit: bool
) -> None:
    sure = ResolvedLink(seen.targets, seen.found, seen.missing, sure=True)
    holds = paths_to_hold(sure, held, last, near_limit=near_limit)
    for path, home in held.items():
        if home and path not in seen.targets:
            assert path not in holds


@given(sights(), holdings, views)
def test_what_was_away_stays_until_it_is_missed_where_it_was(
    seen: ResolvedLink, held: dict[str, bool], last: frozenset[str]
) -> None:
    if not seen.targets and not seen.missing & last:
        holds = paths_to_hold(seen, held, last)
        assert {path for path, home in held.items() if not home} <= holds.keys()


@given(sights(), holdings, views, st.booleans())
def test_a_second_look_at_the_same_changes_nothing(
    seen: ResolvedLink, held: dict[str, bool], last: frozenset[str], near_limit: bool
) -> None:
    once = paths_to_hold(seen, held, last, near_limit=near_limit)
    assert paths_to_hold(seen, once, last, near_limit=near_limit) == once


@given(sights(), holdings, views)
def test_an_instance_near_its_limit_holds_no_more_than_others(
    seen: ResolvedLink, held: dict[str, bool], last: frozenset[str]
) -> None:
    assert (
        paths_to_hold(seen, held, last, near_limit=True).items()
        <= paths_to_hold(seen, held, last).items()
    )


@given(sights(), holdings, views, st.booleans())
def test_what_is_given_is_not_changed(
    seen: ResolvedLink, held: dict[str, bool], last: frozenset[str], near_limit: bool
) -> None:
    before = dict(held), dict(seen.targets)
    paths_to_hold(seen, held, last, near_limit=near_limit)["another"] = True
    assert (held, dict(seen.targets)) == before


def test_the_name_of_a_root_tells_the_link_the_path_and_where_it_was_found() -> None:
    assert root_name(NAME, ONE, home=True) == f"links/{NAME}.{'1' * 32}"
    assert root_name(NAME, ONE, home=False) == f"links/{NAME}.{'1' * 32}.away"


@given(
    st.from_regex(r"[0-9a-df-np-sv-z]{32}", fullmatch=True),
    st.from_regex(r"[0-9a-df-np-sv-z]{32}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]{0,20}(\.away)?", fullmatch=True),
    st.booleans(),
)
def test_the_name_of_a_root_is_understood_again(
    name: str, digest: str, rest: str, home: bool
) -> None:
    root = root_name(name, f"/nix/store/{digest}-{rest}", home)
    assert root.startswith(LINKS) and root.count("/") == 1
    assert parse_root_name(root) == (name, home)


@pytest.mark.parametrize("root", ["links/.0123456789abcdef", "links/", "links/.away"])
def test_an_unfinished_root_is_of_no_link(root: str) -> None:
    assert parse_root_name(root)[0] == ""


def test_two_paths_of_one_link_and_both_places_have_names_of_their_own() -> None:
    names = {root_name(NAME, path, home) for path in (ONE, TWO) for home in (HOME, AWAY)}
    assert len(names) == 4
