"""The roots that the links of an instance hold: their names, and which are wanted. Pure functions.

A registered path that leads to a store path has the root `links/NAME.HASH` on the host: NAME is the
name of the registration in gcroots/auto, HASH that of the store path. `.away` is added if the link
was found on another file system than the container's root file system: if that file system is not
mounted, a missing link proves nothing, and the root stays.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from inx_sidecar.links.resolver import ResolvedLink

LINKS: Final = "links/"
_AWAY: Final = ".away"
_BATCH: Final = 500


def root_name(name: str, path: str, home: bool) -> str:
    """The root of store path `path` for registration `name`; `home` if the link was found on the
    container's root file system."""
    return f"{LINKS}{name}.{path[11:43]}" + ("" if home else _AWAY)


def parse_root_name(root: str) -> tuple[str, bool]:
    """The name of the registration, and whether its link was found at home."""
    return root.removeprefix(LINKS).partition(".")[0], not root.endswith(_AWAY)


def root_names(name: str, targets: Mapping[str, bool]) -> dict[str, str]:
    """The roots of registration `name`, whose link leads to `targets` (see ResolvedLink)."""
    return {root_name(name, path, home): path for path, home in targets.items()}


def roots_at_home(targets: Mapping[str, str]) -> dict[str, str]:
    """The roots of registrations, by name, whose links at home lead to the paths `targets`."""
    return {root_name(name, path, home=True): path for name, path in targets.items()}


def paths_by_name(roots: Mapping[str, str]) -> dict[str, dict[str, bool]]:
    """By the name of the registration: the store paths that `roots` hold, and whether at home."""
    held: dict[str, dict[str, bool]] = {}
    for root, path in roots.items():
        name, home = parse_root_name(root)
        held.setdefault(name, {})[path] = home
    return held


def paths_to_hold(
    link: ResolvedLink,
    held: Mapping[str, bool],
    last_found: frozenset[str],
    *,
    half_full: bool = False,
) -> dict[str, bool]:
    """The store paths that a registered path holds from now on, and whether at home.

    `held` are those that it holds by now, `last_found` the places where its link was last found.
    A missing link may lie on a file system that is not mounted now, or in a mount namespace that
    has ended. Such a link still holds, unless the instance is `half_full`: half of the links that
    it may keep are registered. The link is gone if the very place that had it last exists without
    it.
    """
    if not link.sure:
        return {**held, **link.targets}
    if link.targets or half_full or link.missing & last_found:
        return dict(link.targets)
    return {path: home for path, home in held.items() if not home}


def batches(names: Iterable[str]) -> Iterator[list[str]]:
    """`names` in lists that one child looks up at a time."""
    every = list(names)
    for start in range(0, len(every), _BATCH):
        yield every[start : start + _BATCH]
