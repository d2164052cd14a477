"""What the journal says of the links of an instance: bounded, as a container makes the links."""

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Final

from inx_sidecar.base.errors import quoted
from inx_sidecar.base.journal import instance_log
from inx_sidecar.roots.link_roots import parse_root_name

_MAX_LINES: Final = 20
_REFUSED_SECONDS: Final = 10.0


class LinkLog:
    def __init__(self, lxc_name: str) -> None:
        self.journal = instance_log(lxc_name)
        self._refused_at = -_REFUSED_SECONDS

    def lines(self, lines: Iterable[str], level: int = logging.INFO) -> None:
        """Log the first of `lines`; for the others, name the command that shows all roots."""
        for count, line in enumerate(lines):
            if count == _MAX_LINES:
                self.journal.log(level, "and more; see 'inx-sidecar roots'")
                return
            self.journal.log(level, "%s", line)

    def refused(self, lines: Iterable[str]) -> None:
        """Log refused roots, at most every ten seconds: a container may cause any number."""
        refused = [f"root refused: {line}" for line in lines]
        if refused and time.monotonic() - self._refused_at > _REFUSED_SECONDS:
            self._refused_at = time.monotonic()
            self.lines(refused, logging.WARNING)


def describe_root(root: str, texts: Mapping[str, str]) -> str:
    """The registered path that a root is for, fit for a log; "'?'" if `texts`, the paths of
    registrations by name, do not have it."""
    return quoted(texts.get(parse_root_name(root)[0], "?"))
