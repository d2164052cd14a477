"""Errors of Nix in the words of who wrote the modules: they name the key and the line.

What the flake of inx is called in the store, or where it lies, says nothing to an operator.
"""

import re
from typing import Final

from inx_sidecar.base.errors import one_line
from inx_sidecar.base.process import Completed
from inx_sidecar.builds.failure_reason import OF_SOURCE, failure_of, without_colours
from inx_sidecar.config.credentials import redact

_REASON_MAX: Final = 450
_KEY: Final = r"user\.inx\.config(?:\.[A-Za-z0-9_-]{1,64})?"
# A position in a text, as Nix 2.18 to 2.34 shows it.
_AT: Final = re.compile(rf" *at \S.*?(?P<key>{_KEY}):(?P<line>[0-9]{{1,9}}):[0-9]{{1,9}}:")
# An option that no key gives.
_IMPURE: Final = " (use '--impure' to override)"
_FILES: Final = "a text reads no file of the host; name a module file in user.inx.module"
_BESIDE: Final = re.compile(r"path '[^/'][^']*' does not exist")
_OF_FLAKE: Final = re.compile(
    rf"(?:«[^»]{{1,300}}»|/nix/store/[0-9a-z]{{32}}-source|/var/lib/inx/builds/[^ :'`]{{1,200}}?)/"
    rf"(?P<name>{_KEY}|flake\.nix|modules\.nix|container\.nix)"
)


def module_error(done: Completed) -> str:
    """Why Nix failed, with the key and the line that its trace names last, if any."""
    output = without_colours(done.output)
    failure = failure_of(done)
    places = list(filter(None, map(_AT.match, output.splitlines())))
    reason = redact(failure.reason + failure.message) + failure.rest
    reason = _with_way_out(without_places(one_line(reason, _REASON_MAX)))
    if not places:
        return reason
    return f"{places[-1]['key']}:{places[-1]['line']}: {reason}"


def _with_way_out(reason: str) -> str:
    """`reason` with the operator's way in place of Nix' own."""
    reason = reason.replace(_IMPURE, f": {_FILES}")
    return f"{reason}; {_FILES}" if _BESIDE.fullmatch(reason) else reason


def without_places(text: str) -> str:
    """`text` with the names of files in the flake of inx, without where it lies."""
    return OF_SOURCE.sub("", _OF_FLAKE.sub(lambda found: found["name"], text))
