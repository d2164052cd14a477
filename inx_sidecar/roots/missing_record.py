"""Which store paths an instance named when it came to this host, and this host did not have.

`/var/lib/inx/UUID/missing.json`, which only root may write, exists once the instance was looked at
here: at its first start, and at the first one after Incus has restored it from a snapshot. So what
an instance can make the host fetch is what it named then, however often it starts again.
"""

import json
import os
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from inx_sidecar.base import paths
from inx_sidecar.nix.store_paths import STORE_PATH
from inx_sidecar.roots.link_roots import LINKS

# An instance may name any number of store paths that exist nowhere.
MISSING_MAX: Final = 1000
# An instance may start itself again at once.
RETRY_SECONDS: Final = 60


@dataclass(frozen=True)
class MissingRecord:
    """`restored` changes when Incus restores the instance. `lost`: the roots that cannot be made,
    by their names, with the store paths that they would hold. `fetched` is how many store paths
    came from substituters; `tried` is when they were last asked (time.time)."""

    restored: str
    tried: float
    lost: Mapping[str, str] = field(default_factory=dict)
    fetched: int = 0

    @classmethod
    def load(cls, uuid: str) -> Self | None:
        """None if there is no record, or none that can be used."""
        try:
            with open(paths.missing_file(uuid)) as file:
                return cls._parse(json.load(file))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    @classmethod
    def _parse(cls, saved: Any) -> Self:
        lost = {str(root): str(path) for root, path in saved["lost"].items()}
        lost = {root: path for root, path in lost.items() if STORE_PATH.fullmatch(path)}
        return cls(str(saved["restored"]), float(saved["tried"]), lost, int(saved["fetched"]))

    def save(self, uuid: str) -> None:
        """OSError if the file cannot be written."""
        path = paths.missing_file(uuid)
        saved = {**vars(self), "lost": dict(self.lost)}
        with open(f"{path}.new", "w") as file:
            json.dump(saved, file)
        os.rename(f"{path}.new", path)

    def without(self, absent: Mapping[str, str]) -> Self:
        """The record when only the roots in `absent` still cannot be made: a path came otherwise,
        or nothing names it any more."""
        lost = {root: path for root, path in self.lost.items() if absent.get(root) == path}
        return self if lost == self.lost else replace(self, lost=lost)

    def text(self, lxc_name: str) -> str:
        """One sentence on the links that lead nowhere; empty if there are none. A generation that
        is lost matters when somebody selects it, and is told then."""
        count = len({path for root, path in self.lost.items() if root.startswith(LINKS)})
        if not count:
            return ""
        came = f" ({self.fetched} fetched)" if self.fetched else ""
        where = f"{came}, see 'inx-sidecar roots {lxc_name}'"
        if count == 1:
            return f"1 store path that it links is lost{where}"
        return f"{count} store paths that it links are lost{where}"


def roots_to_try(
    record: MissingRecord | None, absent: Mapping[str, str], restored: str, now: float
) -> dict[str, str]:
    """The roots in `absent` whose store paths are fetched at a start: all at the first one, later
    those that were lost then; none soon after the last attempt."""
    if record is None or record.restored != restored:
        return dict(list(absent.items())[:MISSING_MAX])
    if 0 <= now - record.tried < RETRY_SECONDS:
        return {}
    return dict(record.without(absent).lost)


def after_fetch(
    record: MissingRecord | None,
    tried: Mapping[str, str],
    valid: Set[str],
    restored: str,
    now: float,
) -> MissingRecord:
    """The record after the store paths of `tried` were asked for, and those in `valid` came."""
    lost = {root: path for root, path in tried.items() if path not in valid}
    before = record.fetched if record and record.restored == restored else 0
    return MissingRecord(restored, now, lost, before + len(valid & set(tried.values())))
