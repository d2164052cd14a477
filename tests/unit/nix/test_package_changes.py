"""Two closures become packages with versions, as a line and in full."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inx_sidecar.nix.package_changes import (
    Changes,
    PackageChange,
    compare,
    parse_name,
    signed_size,
    size,
)

pytestmark = pytest.mark.life

MIB = 1 << 20
BEFORE = {
    "nginx-1.26": 4 * MIB, "openssl-3.0.1": MIB, "openssl-3.0.1-bin": 100, "etc": 10,
    "old-tool": 9000, "glibc-2.40-66": 1000,
}  # fmt: skip
AFTER = {
    "nginx-1.28": 5 * MIB, "openssl-3.0.1": MIB, "openssl-3.0.1-bin": 100, "etc": 10,
    "a-1": 1, "b": 1, "c-2.0-doc": 11 * MIB, "glibc-2.40-66": 1000,
}  # fmt: skip


def closure(names: Mapping[str, int], letter: str = "0") -> dict[str, int]:
    """Store paths with these names and sizes."""
    return {f"/nix/store/{letter * 32}-{name}": count for name, count in names.items()}


# As the manual of Nix and the comments in its source have them, and what NixOS has.
@pytest.mark.parametrize(
    ("name", "package", "version"),
    [
        ("apache-httpd-2.0.48", "apache-httpd", "2.0.48"),
        ("nginx-1.28.0-doc", "nginx", "1.28.0"),
        ("gcc-13.2.0-lib32", "gcc", "13.2.0"),
        ("glibc-2.40-66", "glibc", "2.40-66"),
        ("unit-nginx.service", "unit-nginx.service", ""),
        ("system-path", "system-path", ""),
        ("python3.12-requests-2.32", "python3.12-requests", "2.32"),
        ("nixos-system-web-25.11.20251101.abc", "nixos-system-web", "25.11.20251101.abc"),
        ("hook-unstable-2024-01-01", "hook-unstable", "2024-01-01"),
        ("ends-", "ends-", ""),
        ("x-_1", "x", "_1"),
        ("x--bin", "x", ""),
    ],
)
def test_a_version_begins_behind_the_first_dash_that_no_letter_follows(
    name: str, package: str, version: str
) -> None:
    assert parse_name(name) == (package, version)


def test_the_line_names_what_changed_and_counts_the_rest() -> None:
    line = compare(closure(BEFORE), closure(AFTER)).line()
    assert line == "nginx 1.26 -> 1.28, +3 -1, +12.0 MiB"


def test_without_names_the_line_has_numbers_alone() -> None:
    line = compare(closure(BEFORE), closure(AFTER)).line(names=False)
    assert line == "1 changed, +3 -1, +12.0 MiB"


def test_the_details_have_each_package() -> None:
    assert list(compare(closure(BEFORE), closure(AFTER)).details()) == [
        "nginx: 1.26 -> 1.28, +1.0 MiB",
        "a: added 1",
        "b: added",
        "c: added 2.0, +11.0 MiB",
        "old-tool: removed, -8.8 KiB",
        "size: 5.0 MiB -> 17.0 MiB",
    ]


def test_the_same_version_at_another_path_is_rebuilt() -> None:
    changes = compare(closure({"etc": 100, "nginx-1": 5}), closure({"etc": 90, "nginx-1": 5}, "1"))
    assert changes.line() == "2 rebuilt, -0.0 KiB"
    assert next(iter(changes.details())) == "etc: rebuilt"


def test_the_same_closure_has_no_changes() -> None:
    assert compare(closure(AFTER), closure(AFTER)).line() == "no changes"


def test_a_first_system_is_only_counted() -> None:
    first = compare(None, closure(AFTER))
    assert first.line() == "first system: 7 packages, 17.0 MiB"
    assert list(first.details()) == ["size: 17.0 MiB"]


def test_several_versions_of_a_package_are_told_together() -> None:
    before = closure({"ssl-1.1": 1, "ssl-3.0": 1})
    assert compare(before, closure({"ssl-3.0": 1})).line().startswith("ssl 1.1 and 3.0 -> 3.0, ")
    many = compare(closure({"ssl-3.0": 1}), closure({f"ssl-{n}": 1 for n in range(9)}))
    assert many.changed[0].step == "3.0 -> 0 and 1 and 2 and 6 more"


def test_a_line_is_short_whatever_changed() -> None:
    before = closure({f"package{n}-1": 1 for n in range(5000)})
    line = compare(before, closure({f"package{n}-2": 1 for n in range(5000)})).line()
    assert line.startswith("package0 1 -> 2, package1 1 -> 2, ") and len(line) < 220
    assert " more changed, +0.0 KiB" in line
    long = compare(closure({f"{'x' * 205}-1": 1}), closure({f"{'x' * 205}-2": 1})).line()
    assert long == "1 changed, +0.0 KiB"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 KiB"), (1024, "1.0 KiB"), (MIB, "1.0 MiB"), (3 << 29, "1.5 GiB"), (-MIB, "-1.0 MiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
    assert signed_size(count) == (text if count < 0 else f"+{text}")


NAMES = st.text("abz019._+-", min_size=1, max_size=12)
CLOSURES = st.sets(NAMES, max_size=8).map(lambda names: {name: 9000 * len(name) for name in names})


@given(name=NAMES)
def test_a_package_has_no_version_in_its_name(name: str) -> None:
    package, version = parse_name(name)
    assert name.startswith(f"{package}-{version}" if version else package)
    assert parse_name(package) == (package, "")


def all_of(changes: Changes) -> list[PackageChange]:
    return [*changes.changed, *changes.added, *changes.removed, *changes.rebuilt]


@given(one=CLOSURES, two=CLOSURES, letter=st.sampled_from("01"))
def test_a_comparison_has_each_package_once_and_can_be_turned_round(
    one: dict[str, int], two: dict[str, int], letter: str
) -> None:
    before, after = closure(one), closure(two, letter)
    there, back = compare(before, after), compare(after, before)
    names = [change.name for change in all_of(there)]
    assert len(names) == len(set(names))
    assert set(names) == {parse_name(path[44:])[0] for path in before.keys() ^ after.keys()}
    assert [change.name for change in there.added] == [change.name for change in back.removed]
    assert [change.growth for change in there.changed] == [-c.growth for c in back.changed]
    growth = sum(change.growth for change in all_of(there))
    assert there.size_after - there.size_before == growth
    assert len(there.line()) < 300 and "\n" not in there.line()
    assert len(list(there.details())) == len(names) + 1
