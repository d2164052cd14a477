"""Why a build failed, and the way out: what an error says after the source."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from inx_sidecar.base.errors import one_line
from inx_sidecar.base.process import Completed
from inx_sidecar.builds.build_user import Evaluator
from inx_sidecar.builds.builder import Builder, directory_of, repository_of, server_of
from inx_sidecar.builds.failure_advice import advice
from inx_sidecar.builds.failure_reason import OF_SOURCE, failure_of
from inx_sidecar.builds.missing_attribute import is_missing, missing_text, names_command
from inx_sidecar.builds.module_errors import module_error
from inx_sidecar.config.credentials import redact
from inx_sidecar.config.sources import Flake, Modules, NixFile, Source

# Half of what an error may have: the source comes before, and the log behind.
_REASON_MAX: Final = 450


async def explain(
    source: Source,
    seen: Source,
    evaluator: Evaluator,
    done: Completed,
    log: str,
    ask: Callable[[list[str]], Awaitable[Completed]],
) -> str:
    """The sentence for a build of `source` that ended as `done`; `seen` is the source by the path
    that the build saw, `log` the file that has all output, if any. `ask` runs a command as the
    build did."""
    failure = failure_of(done)
    reason = failure.reason
    if is_missing(source, reason):
        names = await ask(names_command(seen, reason))
        return redact(missing_text(source, reason, names.output))
    found = advice(reason, done.output, builder_of(source, seen, evaluator))
    short, details = OF_SOURCE.sub("", one_line(redact(reason), _REASON_MAX)), failure.details
    if isinstance(source, Modules):
        short, details = module_error(done), ""
    if not found:
        rest = f"; {log} has the rest" if log else ""
        return f"{short}{details}{rest}"
    if found.startswith(reason):
        return f"{short}{details}{redact(found.removeprefix(reason))}"
    return redact(found)


def builder_of(source: Source, seen: Source, evaluator: Evaluator) -> Builder:
    """Who evaluates `source`; `seen` is it by the path that the build sees."""
    user, real = evaluator.user, evaluator.source
    builder = Builder(
        user.name, user.home, bool(evaluator.doubt), source=source, owner=evaluator.owner
    )
    if isinstance(real, Flake) and isinstance(seen, Flake):
        return replace(
            builder,
            repository=repository_of(real.ref),
            directory=directory_of(real.ref),
            seen=directory_of(seen.ref),
            server=server_of(real.ref),
        )
    if isinstance(real, NixFile) and isinstance(seen, NixFile):
        is_directory = real.path == evaluator.directory
        return replace(
            builder,
            directory=evaluator.directory,
            seen=seen.path if is_directory else os.path.dirname(seen.path),
            file=f"{seen.path}/default.nix" if is_directory else seen.path,
        )
    return builder
