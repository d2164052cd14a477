"""/dev/.inx of a container: the bootstrap init, and how it learns that the system is there.

The directory lives on the host in /run/inx/UUID/boot and is shown inside read-only. `ready` or
`failed` say how it ended and hold what init has to print then; before, it reads the fifo `console`,
which carries the build's log. The sidecar holds the fifo open, marks the end first and removes it
after: an init that comes late finds no fifo and looks at the marks again, one that reads gets the
end of file.
"""

import os
import shutil
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError, one_line
from inx_sidecar.base.process import find
from inx_sidecar.nix.store import redact_store_paths

_READY: Final = "ready"
_FAILED: Final = "failed"
_CONSOLE: Final = "console"
_TOOL: Final = f"{paths.RUN}/busybox"


def install_busybox() -> None:
    """Copy a static busybox to /run/inx once; every instance gets a hard link to it.

    UnsupportedError if that fails.
    """
    try:
        _install_busybox()
    except OSError as error:
        raise UnsupportedError(f"cannot install {_TOOL}: {error.strerror}") from None


def _install_busybox() -> None:
    temporary = f"{_TOOL}.new"
    shutil.copyfile(find("busybox"), temporary)
    with open(temporary, "rb") as file:
        if b"/ld-" in file.read(4096):
            raise UnsupportedError(
                f"{find('busybox')} is not a static program: install busybox-static"
            )
    os.chmod(temporary, 0o555)
    os.rename(temporary, _TOOL)


def prepare(uuid: str, *, ready: bool, notice: str = "") -> None:
    """Make /dev/.inx for a start: `ready` at once, with `notice` to print, or for a Console."""
    if not os.path.exists(_TOOL):
        install_busybox()
    directory = paths.boot_dir(uuid)
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory, mode=0o755)
    os.link(_TOOL, f"{directory}/busybox")
    shutil.copyfile(f"{paths.HOOKS}/init", f"{directory}/init")
    os.chmod(f"{directory}/init", 0o555)
    if ready:
        _write(directory, _READY, notice)
    else:
        os.mkfifo(f"{directory}/{_CONSOLE}", 0o444)


class Console:
    """The writing end of `console`; lines are dropped while nobody reads and the pipe is full.

    With `redacted`, for a container that may not learn which store paths there are, without names.
    The first of `ready`, `failed` and `close` counts; after it the others do nothing.
    """

    def __init__(self, uuid: str, *, redacted: bool = False) -> None:
        self._redacted = redacted
        self._directory = paths.boot_dir(uuid)
        path = f"{self._directory}/{_CONSOLE}"
        # Reading and writing: opening waits for nobody, and a reader that leaves breaks nothing.
        self._fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._closed = False

    def print(self, line: str) -> None:
        line = redact_store_paths(line) if self._redacted else line
        shown = "".join(c if c.isprintable() or c == "\t" else "?" for c in line)
        try:
            os.write(self._fifo, f"{shown}\r\n".encode())
        except BlockingIOError:
            pass

    def ready(self, notice: str = "") -> None:
        """Let init go on to the system, after it prints `notice`."""
        self._end(_READY, notice)

    def failed(self, message: str) -> None:
        """Let init print `message` and end, which stops the instance."""
        self._end(_FAILED, message)

    def close(self) -> None:
        """Leave init waiting: the instance stops, or another sidecar takes over."""
        if not self._closed:
            self._closed = True
            os.close(self._fifo)

    def _end(self, mark: str, text: str) -> None:
        if not self._closed:
            text = redact_store_paths(text) if self._redacted else text
            _write(self._directory, mark, text, unread=self._unread())
            os.unlink(f"{self._directory}/{_CONSOLE}")
            self.close()

    def _unread(self) -> bytes:
        """What an init that comes late has missed."""
        try:
            return os.read(self._fifo, 1 << 20)
        except BlockingIOError:
            return b""


def is_waiting(uuid: str) -> bool:
    """Whether an init waits there, or will: neither mark has been set."""
    present = set(os.listdir(paths.boot_dir(uuid)))
    return _CONSOLE in present and not {_READY, _FAILED} & present


def finish(uuid: str) -> None:
    """End what a sidecar began that set a mark and died: its init may have missed the mark."""
    try:
        fifo = Console(uuid)
    except FileNotFoundError:
        return
    os.unlink(f"{paths.boot_dir(uuid)}/{_CONSOLE}")
    fifo.close()


def _write(directory: str, mark: str, text: str, unread: bytes = b"") -> None:
    temporary = f"{directory}/.{mark}"
    with open(temporary, "wb") as file:
        file.write(unread + (f"inx: {one_line(text)}\r\n".encode() if text else b""))
    os.chmod(temporary, 0o444)
    os.rename(temporary, f"{directory}/{mark}")
