"""Which store paths a store of its own shows, and which it registers: pure decisions.

Nix inside may build against any path that it was ever shown, and an update or a restart must not
take such a path away. So the instance keeps seeing the closure of each system, and of each included
path, that it was shown once, until its own Nix has deleted it. Nix deletes a path of the lower
layer by a whiteout in the upper layer (Documentation/filesystems/overlayfs.rst, "whiteouts and
opaque directories"): that is how the host learns of it.

All paths here are names: the last component of a store path.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shown:
    """`names` is the lower layer. `kept` are the recorded tops that stay recorded and rooted,
    `dropped` those that do not, both from the oldest to the newest. `uncovered` are the whiteouts
    to remove from the upper layer."""

    names: frozenset[str]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    uncovered: frozenset[str]


def decide_start(
    needed: Iterable[str],
    tops: Iterable[str],
    references: Mapping[str, Iterable[str]],
    whiteouts: Set[str],
) -> Shown:
    """What a start shows, as `decide` says. `references` has what each name needs directly, for all
    names in the closures of `needed`, what the start needs, and of `tops`.

    The closures of few tops have to be known one by one. A top is dropped that the start needs. A
    top stays that neither the start nor another top needs, and that was not deleted inside.
    """
    tops = tuple(tops)
    required = closure(needed, references)
    others = [top for top in tops if top not in required]
    direct = {name for top in others for name in references[top] if name != top}
    below = closure(direct, references)
    unclear = {top for top in others if top in below or top in whiteouts}
    clear = closure((top for top in others if top not in unclear), references)
    closures = {top: closure([top], references) for top in others if top in unclear}
    found = decide(required, closures, whiteouts, clear)
    dropped = required.union(found.dropped)
    return replace(
        found,
        kept=tuple(top for top in tops if top not in dropped),
        dropped=tuple(top for top in tops if top in dropped),
    )


def decide(
    required: Set[str],
    tops: Mapping[str, Set[str]],
    whiteouts: Set[str],
    others: Set[str] = frozenset(),
) -> Shown:
    """What a start shows.

    `required` is the closure of what the start needs. `tops` has what was shown before, from the
    oldest to the newest, each with its closure. `whiteouts` are the names that were deleted inside.
    `others` is the closure of further tops, which stay.

    A top is dropped if each path of its closure is required, or was deleted inside, or is in the
    closure of another top that stays. A path that was deleted inside stays hidden unless it is
    required.
    """
    owners = Counter(name for closure in tops.values() for name in closure)
    given = frozenset(whiteouts).union(required, others)
    kept, dropped = [], []
    for top, closure in tops.items():
        if any(owners[name] == 1 and name not in given for name in closure):
            kept.append(top)
        else:
            dropped.append(top)
            owners.subtract(closure)
    names = frozenset(required).union(others, *(tops[top] for top in kept))
    uncovered = frozenset(name for name in whiteouts if name in required or name not in names)
    return Shown(names, tuple(kept), tuple(dropped), uncovered)


def closure(names: Iterable[str], references: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """`names`, and all that they need, directly or not."""
    found = set(names)
    todo = list(found)
    while todo:
        for reference in references[todo.pop()]:
            if reference not in found:
                found.add(reference)
                todo.append(reference)
    return frozenset(found)


def without(hidden: Iterable[str], references: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """The names in `references` that are not `hidden` and need no hidden one, directly or not.

    Only these can be registered: Nix takes for granted that all that a valid path needs is valid.
    """
    unusable = set(hidden)
    if not unusable:
        return frozenset(references)
    referrers = defaultdict(list)
    for name, needed in references.items():
        for reference in needed:
            referrers[reference].append(name)
    todo = list(unusable)
    while todo:
        for referrer in referrers[todo.pop()]:
            if referrer not in unusable:
                unusable.add(referrer)
                todo.append(referrer)
    return frozenset(references.keys() - unusable)
