"""Why a build failed: one sentence out of what Nix printed."""

import re
from typing import Final

from inx_sidecar.base.process import Completed

# A message of Nix begins a line, or an indented line in a trace. Nix 2.29 and newer explain it on
# the next lines, each "Reason:", "Required system:", "Current system:", "Hint:" and the like.
_ERROR: Final = re.compile(
    r"^ *error: *(\S.*(?:\n +(?:Reason|Hint|(?:Required|Current|Available) [a-z]+): .*)*)$",
    re.MULTILINE,
)
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_BUILDER: Final = re.compile(r"builder for|builder failed")
# What only says that something else has failed, which has an error of its own.
_DEPENDENT: Final = re.compile(
    r"\d+ dependenc(?:y|ies) (?:of derivation .* )?failed|failed due to failed dependency"
)
_ENDED_FROM_OUTSIDE: Final = "it was ended from outside, or by build_memory_max or build_timeout"
# Exit statuses of a program that SIGKILL or SIGTERM ended (128 and the number of the signal).
_KILLED: Final = (137, 143)


def failure_reason(done: Completed) -> str:
    """The error of the builder that failed, else the innermost, last error of Nix that is not the
    consequence of another one."""
    errors = [_sentence(text) for text in _ERROR.findall(without_colours(done.output))]
    builders = [text for text in errors if _BUILDER.search(text)]
    causes = [text for text in errors if not _DEPENDENT.search(text)]
    if errors and "interrupted by the user" not in errors[-1]:
        return (builders or causes or errors)[-1].rstrip(".:;")
    if errors or done.status in _KILLED or done.status < 0:
        return _ENDED_FROM_OUTSIDE
    lines = [line for line in done.output.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"{done.argv[0]} ended with status {done.status}"


def without_colours(text: str) -> str:
    """`text` without the sequences that colour it in a terminal: Nix's daemon puts some into its
    messages, whatever the client asks for."""
    return _COLOURS.sub("", text)


def _sentence(text: str) -> str:
    """An error of several lines as one: what follows the first line is set off by semicolons."""
    first, *more = (" ".join(line.split()) for line in text.splitlines())
    return "; ".join([first.rstrip("."), *more]) if more else first
