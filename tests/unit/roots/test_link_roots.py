"""Which store paths are held for a link. A path is dropped only if the resolver was sure."""

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
    """A resolved link. `found` and `missing` are any of the places INIT ("i"), SERVICE ("s")."""
    places = {"i": INIT, "s": SERVICE}
    return ResolvedLink(
        targets or {},
        frozenset(places[place] for place in found),
        frozenset(places[place] for place in missing),
        sure,
    )


CASES: dict[str, tuple[ResolvedLink, dict[str, bool], str, dict[str, bool]]] = {
    # the resolved link, the held paths, where the link was last found away, the paths to hold
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
    "missing in all places": (link(missing="is"), {ONE: HOME}, "", {}),
    "removed from a mounted disk": (
        link(missing="i"), {ONE: AWAY}, "i", {},
    ),
    "the disk is not mounted, and its place is not known": (
        link(missing="i"), {ONE: AWAY}, "", {ONE: AWAY},
    ),
    "removed in the place that had it": (link(missing="is"), {ONE: AWAY}, "s", {}),
    "the place that had it is gone": (link(missing="i"), {ONE: AWAY}, "s", {ONE: AWAY}),
    "found at home and away, missing": (link(missing="i"), {ONE: HOME, TWO: AWAY}, "", {TWO: AWAY}),
    "different in two places": (
        link({ONE: HOME, TWO: AWAY}, found="is"), {ONE: HOME}, "", {ONE: HOME, TWO: AWAY},
    ),
    "left in one of two places": (
        link({TWO: AWAY}, found="s", missing="i"), {ONE: HOME, TWO: AWAY}, "s", {TWO: AWAY},
    ),
    "not sure, nothing found": (
        link(sure=False), {ONE: HOME, TWO: AWAY}, "", {ONE: HOME, TWO: AWAY},
    ),
    "not sure, another found": (
        link({TWO: HOME}, found="i", sure=False), {ONE: HOME}, "", {ONE: HOME, TWO: HOME},
    ),
    "not sure, missing where it was": (
        link(missing="i", sure=False), {ONE: AWAY}, "i", {ONE: AWAY},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("resolved", "held", "last", "expected"), CASES.values(), ids=CASES.keys())
def test_the_paths_to_hold_follow_from_the_resolved_link(
    resolved: ResolvedLink, held: dict[str, bool], last: str, expected: dict[str, bool]
) -> None:
    places = frozenset({"i": INIT, "s": SERVICE}[place] for place in last)
    assert paths_to_hold(resolved, held, places) == expected


def test_an_instance_near_its_limit_holds_no_missing_link() -> None:
    assert paths_to_hold(link(missing="i"), {ONE: AWAY}, frozenset(), half_full=True) == {}
    assert paths_to_hold(link(sure=False), {ONE: AWAY}, frozenset(), half_full=True) == {ONE: AWAY}
    found = link({TWO: AWAY}, found="s")
    assert paths_to_hold(found, {ONE: AWAY}, frozenset(), half_full=True) == {TWO: AWAY}


paths = st.sampled_from([f"/nix/store/{digit * 32}-x" for digit in "0123"])
holdings = st.dictionaries(paths, st.booleans())
places = st.frozensets(st.sampled_from(["a", "b", "c", "d"]))


@st.composite
def resolved_links(draw: st.DrawFn) -> ResolvedLink:
    """Any result of the resolver: a place has the link, or surely has none, or is unknown."""
    found = draw(places)
    missing = draw(places) - found
    targets = draw(st.dictionaries(paths, st.booleans(), min_size=1)) if found else {}
    return ResolvedLink(targets, found, missing, draw(st.booleans()))


@given(resolved_links(), holdings, places, st.booleans())
def test_nothing_is_dropped_if_the_resolver_is_not_sure(
    resolved: ResolvedLink, held: dict[str, bool], last: frozenset[str], half_full: bool
) -> None:
    unsure = ResolvedLink(resolved.targets, resolved.found, resolved.missing, sure=False)
    assert held.keys() <= paths_to_hold(unsure, held, last, half_full=half_full).keys()


@given(resolved_links(), holdings, places, st.booleans())
def test_a_found_path_is_held_as_it_was_found(
    resolved: ResolvedLink, held: dict[str, bool], last: frozenset[str], half_full: bool
) -> None:
    assert (
        resolved.targets.items() <= paths_to_hold(resolved, held, last, half_full=half_full).items()
    )


@given(resolved_links(), holdings, places, st.booleans())
def test_only_held_and_found_paths_are_held(
    resolved: ResolvedLink, held: dict[str, bool], last: frozenset[str], half_full: bool
) -> None:
    holds = paths_to_hold(resolved, held, last, half_full=half_full)
    assert holds.keys() <= held.keys() | resolved.targets.keys()


@given(resolved_links(), holdings, places, st.booleans())
def test_a_path_at_home_is_dropped_if_the_link_is_surely_gone(
    resolved: ResolvedLink, held: dict[str, bool], last: frozenset[str], half_full: bool
) -> None:
    sure = ResolvedLink(resolved.targets, resolved.found, resolved.missing, sure=True)
    holds = paths_to_hold(sure, held, last, half_full=half_full)
    for path, home in held.items():
        if home and path not in resolved.targets:
            assert path not in holds


@given(resolved_links(), holdings, places)
def test_what_was_away_stays_until_it_is_missed_where_it_was(
    resolved: ResolvedLink, held: dict[str, bool], last: frozenset[str]
) -> None:
    if not resolved.targets and not resolved.missing & last:
        holds = paths_to_hold(resolved, held, last)
        assert {path for path, home in held.items() if not home} <= holds.keys()


@given(resolved_links(), holdings, places, st.booleans())
def test_the_same_resolved_link_again_changes_nothing(
    resolved: ResolvedLink, held: dict[str, bool], last: frozenset[str], half_full: bool
) -> None:
    once = paths_to_hold(resolved, held, last, half_full=half_full)
    assert paths_to_hold(resolved, once, last, half_full=half_full) == once


@given(resolved_links(), holdings, places)
def test_an_instance_near_its_limit_holds_no_more_than_others(
    resolved: ResolvedLink, held: dict[str, bool], last: frozenset[str]
) -> None:
    assert (
        paths_to_hold(resolved, held, last, half_full=True).items()
        <= paths_to_hold(resolved, held, last).items()
    )


@given(resolved_links(), holdings, places, st.booleans())
def test_the_arguments_are_not_changed(
    resolved: ResolvedLink, held: dict[str, bool], last: frozenset[str], half_full: bool
) -> None:
    before = dict(held), dict(resolved.targets)
    paths_to_hold(resolved, held, last, half_full=half_full)["another"] = True
    assert (held, dict(resolved.targets)) == before


def test_the_name_of_a_root_has_the_link_the_path_and_the_place() -> None:
    assert root_name(NAME, ONE, home=True) == f"links/{NAME}.{'1' * 32}"
    assert root_name(NAME, ONE, home=False) == f"links/{NAME}.{'1' * 32}.away"


@given(
    st.from_regex(r"[0-9a-df-np-sv-z]{32}", fullmatch=True),
    st.from_regex(r"[0-9a-df-np-sv-z]{32}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]{0,20}(\.away)?", fullmatch=True),
    st.booleans(),
)
def test_the_name_of_a_root_can_be_parsed(name: str, digest: str, rest: str, home: bool) -> None:
    root = root_name(name, f"/nix/store/{digest}-{rest}", home)
    assert root.startswith(LINKS) and root.count("/") == 1
    assert parse_root_name(root) == (name, home)


@pytest.mark.parametrize("root", ["links/.0123456789abcdef", "links/", "links/.away"])
def test_an_unfinished_root_belongs_to_no_link(root: str) -> None:
    assert parse_root_name(root)[0] == ""


def test_each_path_and_place_of_a_link_has_a_root_name_of_its_own() -> None:
    names = {root_name(NAME, path, home) for path in (ONE, TWO) for home in (HOME, AWAY)}
    assert len(names) == 4
