"""Whether a comparison of the links of an instance would find what the last one found.

Everything that a comparison looks at has to be as it was before the last one: the registrations,
the roots, and, by link_state.py, the links inside.
"""

import os

from inx_sidecar.base import paths
from inx_sidecar.kernel.change_times import newest_settled
from inx_sidecar.links.link_state import LinkState, is_unchanged
from inx_sidecar.links.resolver import InitProcess
from inx_sidecar.roots import direct_roots
from inx_sidecar.roots.link_roots import LINKS

# Inode number and change time; (0, 0) if there is no such directory.
_Mark = tuple[int, int]


class LastComparison:
    def __init__(self, lxc_name: str, uuid: str) -> None:
        self._directories = (
            paths.auto_dir(uuid),
            f"{direct_roots.directory(lxc_name, uuid)}/{LINKS}",
        )
        self._marks: list[_Mark] = []
        # None: the last comparison changed something, or another one may find something else.
        self._states: list[LinkState] | None = None

    def begin(self) -> None:
        """A comparison begins. It calls `looked` for each look, and `settle` at its end if nothing
        had to be changed."""
        newest = newest_settled()
        self._states = None
        self._marks = [_mark(path) for path in self._directories]
        self._looked: list[LinkState] | None = []
        if any(changed > newest for _, changed in self._marks):
            self._looked = None

    def looked(self, state: LinkState | None) -> None:
        if state is None or self._looked is None:
            self._looked = None
        else:
            self._looked.append(state)

    def settle(self) -> None:
        self._states = self._looked

    def holds(self, process: InitProcess) -> bool:
        """Whether nothing has changed since before the last comparison."""
        if self._states is None or self._marks != [_mark(path) for path in self._directories]:
            return False
        return not self._states or is_unchanged(process.pid, process.started, self._states)


def _mark(path: str) -> _Mark:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_ctime_ns
