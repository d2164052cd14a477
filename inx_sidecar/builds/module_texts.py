"""Whether the text of `user.inx.config` is a whole module or the body of one: Nix parses it.

A whole module is an expression; a body is a list of bindings, as between the braces of a module.
No text is both. The braces in a text might end the body that inx puts around it, and begin another
expression. Such a text does not parse between `let` and `in`, so it is refused.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base.errors import BuildError
from inx_sidecar.base.process import Completed
from inx_sidecar.builds.failure_reason import failure_of
from inx_sidecar.builds.module_flake import bindings_text, body_text

# Nix says this of a text that it has parsed to its end (parser.y): a body may have such names.
_DYNAMIC: Final = "dynamic attributes not allowed in let"
_PLACE: Final = re.compile(r" *at \S.*:(?P<line>[0-9]{1,9}):(?P<column>[0-9]{1,9}):?")
_UNREADABLE: Final = (
    "Nix cannot parse it, perhaps because it is nested too deeply or has an expression that is too "
    "long: divide that into bindings"
)

Parse = Callable[[str, str], Awaitable[Completed]]


@dataclass(frozen=True)
class _Mistake:
    """An error in a text, with its position."""

    line: int
    column: int
    reason: str


async def bodies_among(texts: Mapping[str, str], parse: Parse) -> frozenset[str]:
    """The keys in `texts` whose text is the body of a module. `parse` gives what Nix says of a text
    that the file of a key has.

    BuildError with the line if a text is no module.
    """
    return frozenset([key for key, text in texts.items() if await _is_body(key, text, parse)])


async def _is_body(key: str, text: str, parse: Parse) -> bool:
    # Most texts are bodies. So this is tried first: each parse starts a service.
    body = await parse(key, body_text(text))
    bindings = await parse(key, bindings_text(text)) if body.status == 0 else None
    if bindings is not None and (bindings.status == 0 or failure_of(bindings).reason == _DYNAMIC):
        return True
    whole = await parse(key, text)
    if whole.status == 0:
        return False
    if bindings is not None:
        raise _refusal(key, text, _mistake(bindings, _before(bindings_text)))
    mistakes = _mistake(whole, ""), _mistake(body, _before(body_text))
    raise _refusal(key, text, max(mistakes, key=lambda each: (each.line, each.column)))


def _before(around: Callable[[str], str]) -> str:
    """What `around` puts before a text, on its first line."""
    return around("\0").partition("\0")[0]


def _mistake(done: Completed, before: str) -> _Mistake:
    """What Nix says of a text that follows `before` on its first line."""
    places = list(filter(None, map(_PLACE.fullmatch, done.output.splitlines())))
    if not places:
        return _Mistake(1, 0, _UNREADABLE)
    line, column = int(places[-1]["line"]), int(places[-1]["column"])
    if line == 1:
        column = max(0, column - len(before))
    return _Mistake(line, column, failure_of(done).reason)


def _refusal(key: str, text: str, mistake: _Mistake) -> BuildError:
    # What follows the text has no line in it.
    last = text.count("\n") + (not text.endswith("\n"))
    return BuildError(f"{key}:{min(mistake.line, last)}: {mistake.reason}")
