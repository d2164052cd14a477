"""Why a build failed: one sentence out of what Nix printed."""

import re
from typing import Final

from inx_sidecar.base.process import Completed

# A message of Nix begins a line, or an indented line in a trace. Nix 2.32 and newer write the
# reason of a failed build on the next line, and what it lacks on further ones (nix
# src/libstore/build/derivation-building-goal.cc).
_MORE: Final = r"\n +(?:Reason|Required \w+|Current \w+|Available \w+|Hint): "
_ERROR: Final = re.compile(rf"^ *error: *(\S.*(?:{_MORE}.*)*)$", re.MULTILINE)
_NEXT: Final = re.compile(r"(?<![.:;,])\n +(?=[A-Z])")
# The derivation could not be built because another one could not.
_DEPENDENT: Final = re.compile(r"Reason: \d+ dependenc\w+ failed|^\d+ dependencies of derivation ")
_ENDED_FROM_OUTSIDE: Final = "it was ended from outside, or by build_memory_max or build_timeout"
# Exit statuses of a program that SIGKILL or SIGTERM ended (128 and the number of the signal).
_KILLED: Final = (137, 143)


def failure_reason(done: Completed) -> str:
    """The error of the builder that failed, else the innermost, last error of Nix."""
    found = [_NEXT.sub(", ", text) for text in _ERROR.findall(done.output)]
    every = [" ".join(text.split()) for text in found]
    errors = [text for text in every if not _DEPENDENT.search(text)] or every
    builders = [text for text in errors if "builder for" in text or "builder failed" in text]
    if errors and "interrupted by the user" not in errors[-1]:
        return (builders or errors)[-1].rstrip(".:;")
    if errors or done.status in _KILLED or done.status < 0:
        return _ENDED_FROM_OUTSIDE
    lines = [line for line in done.output.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"{done.argv[0]} ended with status {done.status}"
