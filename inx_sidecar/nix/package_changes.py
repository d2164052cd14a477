"""What one closure has that another has not, as packages with versions: pure functions.

The package and the version are found in the name of a store path as Nix finds them (libstore,
DrvName; `nix store diff-closures`).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_NAME_BEGIN: Final = len("/nix/store/") + 32 + 1
# The version begins behind the first dash that no letter follows. A dash at the end begins none.
_VERSION: Final = re.compile(r"-(?=[^A-Za-z])")
# The name of an output. Nix looks for it at the end of every name, here only behind a version.
_OUTPUT: Final = re.compile(r"-(?:[a-z]+|lib32|lib64)$")
_NAMED_MAX: Final = 160
_VERSIONS_MAX: Final = 3
# As in `nix store diff-closures`: of a package, a smaller difference is not told.
_GROWTH_MIN: Final = 8 << 10


@dataclass(frozen=True)
class PackageChange:
    """A package of which two closures have different store paths.

    `before` and `after` are its versions in each closure; empty if the closure does not have it.
    `growth` is in bytes.
    """

    name: str
    before: frozenset[str]
    after: frozenset[str]
    growth: int

    @property
    def step(self) -> str:
        return f"{_versions(self.before)} -> {_versions(self.after)}"

    def describe(self) -> str:
        if not self.before:
            what = f"added {_versions(self.after)}" if any(self.after) else "added"
        elif not self.after:
            what = f"removed {_versions(self.before)}" if any(self.before) else "removed"
        else:
            what = "rebuilt" if self.before == self.after else self.step
        growth = f", {signed_size(self.growth)}" if abs(self.growth) >= _GROWTH_MIN else ""
        return f"{self.name}: {what}{growth}"


@dataclass(frozen=True)
class Changes:
    """What a closure has that the one before it has not.

    `changed` have other versions, `rebuilt` have other store paths alone. `first`: there was no
    closure before. Sizes are in bytes.
    """

    changed: tuple[PackageChange, ...]
    added: tuple[PackageChange, ...]
    removed: tuple[PackageChange, ...]
    rebuilt: tuple[PackageChange, ...]
    size_before: int
    size_after: int
    first: bool = False

    def line(self, *, names: bool = True) -> str:
        """All of it in one short line. Without `names`, no package is named."""
        if self.first:
            return f"first system: {len(self.added)} packages, {size(self.size_after)}"
        named: list[str] = []
        for package in self.changed if names else ():
            text = f"{package.name} {package.step}"
            if len(", ".join([*named, text])) > _NAMED_MAX:
                break
            named.append(text)
        more = len(self.changed) - len(named)
        more_changed = f"{more} {'more ' if named else ''}changed" if more else ""
        added = f"+{len(self.added)}" if self.added else ""
        removed = f"-{len(self.removed)}" if self.removed else ""
        rebuilt = f"{len(self.rebuilt)} rebuilt" if self.rebuilt else ""
        parts = [*named, more_changed, f"{added} {removed}".strip(), rebuilt]
        if not any(parts):
            return "no changes"
        return ", ".join([*filter(None, parts), signed_size(self.size_after - self.size_before)])

    def details(self) -> Iterator[str]:
        """A line for each package, unless all are new, then one for the size of all."""
        if self.first:
            yield f"size: {size(self.size_after)}"
            return
        for package in (*self.changed, *self.added, *self.removed, *self.rebuilt):
            yield package.describe()
        yield f"size: {size(self.size_before)} -> {size(self.size_after)}"


def compare(before: Mapping[str, int] | None, after: Mapping[str, int]) -> Changes:
    """What the closure `after` has that `before` has not; None if there was none before.

    A closure has store paths with their sizes in bytes.
    """
    had, has = _by_package(before or {}), _by_package(after)
    found = []
    for name in sorted(had.keys() | has.keys()):
        old, new = had.get(name, {}), has.get(name, {})
        if old.keys() != new.keys():
            growth = sum(after[path] for path in new) - sum((before or {})[path] for path in old)
            versions = frozenset(old.values()), frozenset(new.values())
            found.append(PackageChange(name, *versions, growth))
    both = [package for package in found if package.before and package.after]
    return Changes(
        changed=tuple(package for package in both if package.before != package.after),
        added=tuple(package for package in found if not package.before),
        removed=tuple(package for package in found if not package.after),
        rebuilt=tuple(package for package in both if package.before == package.after),
        size_before=sum((before or {}).values()),
        size_after=sum(after.values()),
        first=before is None,
    )


def parse_name(name: str) -> tuple[str, str]:
    """The package and the version in `name`, that of a store path; the version may be empty."""
    package, *rest = _VERSION.split(name, maxsplit=1)
    return package, _OUTPUT.sub("", rest[0]) if rest else ""


def size(count: int) -> str:
    """`count` bytes as text."""
    number, unit = abs(count) / 1024, "KiB"
    for larger in ("MiB", "GiB"):
        if number >= 1024:
            number, unit = number / 1024, larger
    return f"{'-' if count < 0 else ''}{number:.1f} {unit}"


def signed_size(count: int) -> str:
    """As `size`, with the sign of a growth."""
    return size(count) if count < 0 else f"+{size(count)}"


def _by_package(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """The store paths of each package, with their versions."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in paths:
        package, version = parse_name(path[_NAME_BEGIN:])
        found[package][path] = version
    return dict(found)


def _versions(versions: Iterable[str]) -> str:
    shown = sorted(version or "no version" for version in versions)
    more = len(shown) - _VERSIONS_MAX
    return " and ".join(shown[:_VERSIONS_MAX]) + (f" and {more} more" if more > 0 else "")
