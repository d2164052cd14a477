"""The one way to run a program: no shell, no terminal, an environment of its own."""

import asyncio
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base.errors import UnsupportedError

_LINE_MAX: Final = 1 << 16


@dataclass(frozen=True)
class Completed:
    """How a program ended; `output` is the end of what it wrote to stdout and stderr."""

    argv: tuple[str, ...]
    status: int
    output: str

    @property
    def command(self) -> str:
        return shlex.join(self.argv)


def find(tool: str) -> str:
    """The absolute path of `tool`, from the PATH that the sidecar's unit sets."""
    path = shutil.which(tool)
    if path is None:
        raise UnsupportedError(f"{tool!r} is not installed, or not in the sidecar's PATH")
    return os.path.abspath(path)


async def run(
    argv: Sequence[str],
    *,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run `argv` to its end; every line it prints goes to `on_line` as it comes."""
    process = await asyncio.create_subprocess_exec(
        find(argv[0]),
        *argv[1:],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
        limit=_LINE_MAX,
    )
    assert process.stdout is not None
    last: list[str] = []
    try:
        while raw := await _line(process.stdout):
            line = raw.decode(errors="replace").rstrip("\n")
            if on_line is not None:
                on_line(line)
            last = [*last[-199:], line]
        status = await process.wait()
    except BaseException:
        # Not waited for: asyncio would wait for all that hold the pipe, too.
        if process.returncode is None:
            process.kill()
        raise
    return Completed(tuple(argv), status, "\n".join(last))


async def _line(stream: asyncio.StreamReader) -> bytes:
    """One line, or as much of it as the limit allows."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as overrun:
        return await stream.readexactly(overrun.consumed)
