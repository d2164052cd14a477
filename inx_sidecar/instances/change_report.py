"""What an update, a try, or a start with a build changes: for the journal, a log and a status.

An update never fails because its changes cannot be told.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.incus.instance import Instance
from inx_sidecar.nix.closure import sizes_of
from inx_sidecar.nix.package_changes import Changes, compare

_SECTION_MAX_CHARACTERS: Final = 64 << 10
_JOURNAL_MAX_CHARACTERS: Final = 8 << 10
_LOG_MAX_BYTES: Final = 1 << 20


@dataclass
class ChangeReport:
    """The changes from the system `before`, empty if there is none, to the system `after`.

    `verb`: the value of user.inx.activate, or "start". `changes` is None if the closures could not
    be compared. `units`: what is done with which units, as far as that is known.
    """

    instance: Instance
    verb: str
    before: str
    after: str
    changes: Changes | None = None
    units: Sequence[str] = ()

    @property
    def line(self) -> str:
        """The value of user.inx.status.changes. An isolated container can read it, and need not
        get the system: so its value names no package."""
        return self.changes.line(names=not self.instance.isolated) if self.changes else ""

    def write(self, outcome: str) -> None:
        """Add a section to the log of the instance. The log begins anew when it is long; the one
        before it stays."""
        path = paths.change_log(self.instance.uuid)
        with contextlib.suppress(OSError):  # an update needs no log
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_size > _LOG_MAX_BYTES:
                    os.rename(path, f"{path}.old")
            with open(path, "a") as file:
                file.write(self._section(outcome))

    def _section(self, outcome: str) -> str:
        """A heading, indented lines, and an empty line."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        summary = self.changes.line() if self.changes else "its changes are not known"
        details = self.changes.details() if self.changes else ()
        lines = [f"before: {self.before or 'no system'}", f"after: {self.after}", *self.units]
        lines = bounded([*lines, *details], _SECTION_MAX_CHARACTERS)
        body = "".join(f"  {line}\n" for line in lines)
        return f"{now} {self.verb}, {outcome}: {summary}\n{body}\n"


async def begin_report(instance: Instance, verb: str, before: str, after: str) -> ChangeReport:
    """Compare two systems, which have roots, and tell the journal what changes."""
    journal = instance_log(instance.lxc_name)
    report = ChangeReport(instance, verb, before, after)
    try:
        *old, new = await sizes_of([before, after] if before else [after])
    except InxError as error:
        journal.warning("what it changes is not known: %s", error)
        return report
    report.changes = await asyncio.to_thread(compare, old[0] if old else None, new)
    journal.info("changes: %s", report.changes.line())
    for line in bounded(report.changes.details(), _JOURNAL_MAX_CHARACTERS):
        journal.info("changes: %s", line)
    return report


def bounded(lines: Iterable[str], most: int) -> list[str]:
    """As many of `lines` as have `most` characters together, and how many more there are."""
    every, length = list(lines), 0
    for count, line in enumerate(every):
        length += len(line)
        if length > most:
            return [*every[:count], f"{len(every) - count} more lines"]
    return every
