"""Why a build failed: one sentence out of what Nix printed.

Builders and sources decide about most of these texts. So each part is short, on one line and
without credentials; who shows it to an isolated instance leaves out the names of store paths.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base.errors import one_line
from inx_sidecar.base.process import Completed
from inx_sidecar.config.credentials import redact

# A message of Nix begins a line, or an indented line in a trace. What it says on more lines is
# indented as deep as in a trace. Nix 2.29 and newer explain it there by "Reason:", "Required
# system:", "Current system:", "Hint:" and the like.
_ERROR: Final = re.compile(r" *error: *(?P<text>\S.*)")
_MORE: Final = " " * 7
_EXPLAINED: Final = re.compile(r"(?:Reason|Hint|(?:Required|Current|Available) [a-z]+): .*")
_AT: Final = re.compile(r" *at (?P<file>\S.{0,500}):(?P<line>[0-9]{1,9}):(?P<column>[0-9]{1,9}):")
_LOG_LINES: Final = re.compile(r"last [0-9]+ log lines:", re.IGNORECASE)
_SUGGESTION: Final = re.compile(r"Did you mean .{1,150}\?")
_DISK_FULL: Final = "note: build failure may have been caused by lack of free disk space"
_SAID_ERROR: Final = re.compile(r"\berror ?:", re.IGNORECASE)
# Nix copies a source to the store; its own name there says nothing to whoever wrote it.
OF_SOURCE: Final = re.compile(r"/nix/store/[0-9a-z]{32}-source/")
_INTERNAL: Final = re.compile(r"«[^»]*internal»|«(?:none|string)")
_ARCHIVE: Final = re.compile(r"Failed to open archive \(Source threw exception: error: (.*)")
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_BUILDER: Final = re.compile(r"builder for|builder failed")
# What only says that something else has failed, which has an error of its own.
_DEPENDENT: Final = re.compile(
    r"\d+ dependenc(?:y|ies) (?:of derivation .* )?failed|failed due to failed dependency"
)
_ENDED_FROM_OUTSIDE: Final = "it was ended from outside, or by build_memory_max or build_timeout"
# Exit statuses of a program that SIGKILL or SIGTERM ended (128 and the number of the signal).
_KILLED: Final = (137, 143)
_LINE_MAX: Final = 600
_PART_MAX: Final = 200


@dataclass(frozen=True)
class Failure:
    """`reason` is the error of Nix. What can follow it in a sentence: `message` is more of it,
    `place` the position of the code, and `rest` a proposal of Nix and what the builder said last.
    Each may be empty."""

    reason: str
    message: str = ""
    place: str = ""
    rest: str = ""

    @property
    def details(self) -> str:
        """All that can follow the reason."""
        return self.message + (f" at {self.place}" if self.place else "") + self.rest


def failure_reason(done: Completed) -> str:
    """The error of the builder that failed, else the innermost, last error of Nix that is not the
    consequence of another one."""
    return failure_of(done).reason


def failure_of(done: Completed) -> Failure:
    """As `failure_reason`, with the details."""
    errors = list(_errors(without_colours(done.output).split("\n")))
    builders = [each for each in errors if _BUILDER.search(each.reason)]
    causes = [each for each in errors if not _DEPENDENT.search(each.reason)]
    if errors and "interrupted by the user" not in errors[-1].reason:
        error = (builders or causes or errors)[-1]
        return _failure(error)
    if errors or done.status in _KILLED or done.status < 0:
        return Failure(_ENDED_FROM_OUTSIDE)
    lines = [line for line in done.output.splitlines() if line.strip()]
    return Failure(
        lines[-1].strip() if lines else f"{done.argv[0]} ended with status {done.status}"
    )


def without_colours(text: str) -> str:
    """`text` without the sequences that colour it in a terminal: Nix's daemon puts some into its
    messages, whatever the client asks for."""
    return _COLOURS.sub("", text)


def shortened(text: str, most: int = _PART_MAX) -> str:
    """`text`, which others wrote, as a part of a sentence; empty if it begins with a word that is
    too long: no word is cut, so that all of a credential or a store path is recognised."""
    line = one_line(redact(text), 1 << 13)
    if len(line) <= most:
        return line
    return line[: most + 1].rpartition(" ")[0] + " ..." if " " in line[:most] else ""


@dataclass(frozen=True)
class _Error:
    """An error in the output; `more` are the lines that belong to it, and `place` is the position
    of the last step of the trace before it, if any."""

    reason: str
    more: Sequence[str]
    place: str


def _errors(lines: Sequence[str]) -> Iterator[_Error]:
    """Each error in the output."""
    place = ""
    for number, line in enumerate(lines):
        if line and not line.startswith(" "):
            place = ""
        if at := _AT.fullmatch(line[:_LINE_MAX]):
            place = _place(at)
        elif found := _ERROR.match(line):
            more = _more(lines, number + 1)
            yield _Error(_reason(found["text"], more), more, place)


def _more(lines: Sequence[str], begin: int) -> list[str]:
    """The lines that belong to the error in the line before `begin`."""
    found = []
    for line in lines[begin:]:
        if line.strip() and (not line.startswith(_MORE) or _ERROR.match(line)):
            break
        found.append(line[:_LINE_MAX])
    return found


def _reason(first: str, more: Sequence[str]) -> str:
    reason = " ".join(first.split())
    if archive := _ARCHIVE.match(reason):
        reason = archive[1]
        if reason.count(")") > reason.count("("):
            reason = reason.removesuffix(")")
    explained = [each for each in map(str.strip, more) if _EXPLAINED.fullmatch(each)]
    if explained:
        return "; ".join([reason.rstrip("."), *(" ".join(each.split()) for each in explained)])
    return reason


def _failure(error: _Error) -> Failure:
    message, log, suggestion, place = list[str](), list[str](), "", error.place
    in_message = True
    for line in error.more:
        text = " ".join(line.split())
        if at := _AT.fullmatch(line):
            place, in_message = _place(at), False
        elif _LOG_LINES.fullmatch(text):
            in_message = False
        elif text.startswith("> "):
            log.append(text.removeprefix("> "))
        elif found := _SUGGESTION.fullmatch(text):
            suggestion = shortened(found[0])
        elif text == _DISK_FULL:
            suggestion = "there may be no space left, as 'df -h /nix /tmp' shows"
        elif in_message and text:
            message.append(text)
    text = ""
    if error.reason.endswith(":") and message:
        text = f": {shortened(' '.join(message)).rstrip('.:;')}"
    rest = f"; {suggestion}" if suggestion else ""
    if said := _last_said(log):
        rest += f"; its log says: {said}"
    return Failure(error.reason.rstrip(".:;"), text, place, rest)


def _place(at: re.Match[str]) -> str:
    """The position as FILE:LINE:COLUMN; empty if it is in Nix itself."""
    if _INTERNAL.match(at["file"]):
        return ""
    file = shortened(OF_SOURCE.sub("", at["file"]))
    return f"{file}:{at['line']}:{at['column']}" if file else ""


def _last_said(log: list[str]) -> str:
    """The line of the builder that is most likely to say why it failed, without a full stop."""
    errors = [line for line in log if _SAID_ERROR.search(line)]
    return shortened((errors or log or [""])[-1].rstrip("."))
