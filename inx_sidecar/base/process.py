"""The only way to start a program: no shell, no terminal, an environment of its own."""

import asyncio
import os
import shlex
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base.errors import UnsupportedError

_LINE_MAX: Final = 1 << 13
# A line that is read as more than one may be so long; the rest of a longer one is dropped.
_READ_LINE_MAX: Final = 1 << 18
# Lines are taken at this rate at most: a program may print any number, and whoever reads a line
# needs time.
_LINES_AT_ONCE: Final = 50
_SECONDS_FOR_THEM: Final = 0.005
_LINES_KEPT: Final = 200


@dataclass(frozen=True)
class Completed:
    """How a program ended; `output` has its last lines on stdout and stderr."""

    argv: tuple[str, ...]
    status: int
    output: str

    @property
    def command(self) -> str:
        return shlex.join(self.argv)


def find_program(name: str) -> str:
    """The absolute path of program `name`, from the PATH that the sidecar's unit sets.

    UnsupportedError if the program is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise UnsupportedError(f"{name!r} is not installed, or not in the sidecar's PATH")
    return os.path.abspath(path)


async def run(
    argv: Sequence[str],
    *,
    on_line: Callable[[str], None] | None = None,
    read: Callable[[str], list[str]] | None = None,
) -> Completed:
    """Run `argv` to its end. `on_line` gets each line of output as it comes. With `read`, the lines
    are those that it gives for a line of output.

    When this task is cancelled, the program is killed. UnsupportedError if it is not installed.
    """
    process = await asyncio.create_subprocess_exec(
        find_program(argv[0]),
        *argv[1:],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
        limit=_LINE_MAX if read is None else _READ_LINE_MAX,
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=_LINES_KEPT)
    count, begins = 0, True
    try:
        while raw := await _read_line(process.stdout):
            text = raw.decode(errors="replace").rstrip("\n")
            lines = [text] if read is None else read(text) if begins else []
            begins = raw.endswith(b"\n")
            count += not lines
            for line in lines:
                if on_line is not None:
                    on_line(line)
                last.append(line)
                count += 1
                if count % _LINES_AT_ONCE == 0:
                    await asyncio.sleep(_SECONDS_FOR_THEM)
            if not lines and count % _LINES_AT_ONCE == 0:
                await asyncio.sleep(_SECONDS_FOR_THEM)
        status = await process.wait()
    except BaseException:
        # The process is not waited for: asyncio would also wait for every process that holds the
        # pipe open.
        if process.returncode is None:
            process.kill()
        raise
    return Completed(tuple(argv), status, "\n".join(last))


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """The next line, or its first part if the line is longer than the limit."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as overrun:
        return await stream.readexactly(overrun.consumed)
