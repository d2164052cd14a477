"""/dev/.inx of a container: the bootstrap init, and how it learns that its system is ready.

The directory is /run/inx/UUID/boot on the host, and is read-only inside. While the system is built,
init reads the build's log from the fifo `console`. The file `ready` or `failed` ends the wait, and
has a text that init prints. The sidecar holds the fifo open; it first makes one of the files, then
removes the fifo and closes it. So an init that reads gets the end of file, and an init that begins
late finds no fifo and looks at the files again.
"""

import os
import shutil
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError, one_line
from inx_sidecar.base.process import find_program
from inx_sidecar.nix.store_paths import redact_store_paths

_READY: Final = "ready"
_FAILED: Final = "failed"
_CONSOLE: Final = "console"
_BUSYBOX: Final = f"{paths.RUN}/busybox"


def install_busybox() -> None:
    """Copy a static busybox to /run/inx, for all instances; each gets a hard link to it.

    UnsupportedError if busybox is missing or not static, or cannot be copied.
    """
    try:
        _copy_busybox()
    except OSError as error:
        raise UnsupportedError(f"cannot install {_BUSYBOX}: {error.strerror}") from None


def _copy_busybox() -> None:
    temporary = f"{_BUSYBOX}.new"
    shutil.copyfile(find_program("busybox"), temporary)
    with open(temporary, "rb") as file:
        # The path of the dynamic linker is in the program's first bytes (PT_INTERP, elf(5)).
        if b"/ld-" in file.read(4096):
            raise UnsupportedError(
                f"{find_program('busybox')} is not a static program: install busybox-static"
            )
    os.chmod(temporary, 0o555)
    os.rename(temporary, _BUSYBOX)


def prepare(uuid: str, *, ready: bool, notice: str = "") -> None:
    """Make /dev/.inx for a start.

    With `ready`, init prints `notice` and starts the system at once. Otherwise init waits for a
    Console.
    """
    if not os.path.exists(_BUSYBOX):
        install_busybox()
    directory = paths.boot_dir(uuid)
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory, mode=0o755)
    os.link(_BUSYBOX, f"{directory}/busybox")
    shutil.copyfile(f"{paths.HOOKS}/init", f"{directory}/init")
    os.chmod(f"{directory}/init", 0o555)
    if ready:
        _write_result(directory, _READY, notice)
    else:
        os.mkfifo(f"{directory}/{_CONSOLE}", 0o444)


class Console:
    """The writing end of `console`; lines are dropped while the pipe is full.

    With `redacted`, names of store paths are left out, for a container that must not learn them.
    Of `ready`, `failed` and `close` only the first call has an effect.
    """

    def __init__(self, uuid: str, *, redacted: bool = False) -> None:
        self._redacted = redacted
        self._directory = paths.boot_dir(uuid)
        path = f"{self._directory}/{_CONSOLE}"
        # Opened for reading too: so the open does not wait for a reader, and a write does not fail
        # when the reader has left (fifo(7)).
        self._fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._closed = False

    def print(self, line: str) -> None:
        line = redact_store_paths(line) if self._redacted else line
        printable = "".join(c if c.isprintable() or c == "\t" else "?" for c in line)
        try:
            os.write(self._fifo, f"{printable}\r\n".encode())
        except BlockingIOError:
            pass

    def ready(self, notice: str = "") -> None:
        """Let init print `notice` and start the system."""
        self._end(_READY, notice)

    def failed(self, message: str) -> None:
        """Let init print `message` and exit, which stops the instance."""
        self._end(_FAILED, message)

    def close(self) -> None:
        """Close without a result: init waits until the instance stops or the next sidecar takes
        over."""
        if not self._closed:
            self._closed = True
            os.close(self._fifo)

    def _end(self, result: str, text: str) -> None:
        if not self._closed:
            text = redact_store_paths(text) if self._redacted else text
            _write_result(self._directory, result, text, unread=self._read_rest())
            os.unlink(f"{self._directory}/{_CONSOLE}")
            self.close()

    def _read_rest(self) -> bytes:
        """What init has not read; it goes into the result, for an init that begins late."""
        try:
            return os.read(self._fifo, 1 << 20)
        except BlockingIOError:
            return b""


def is_waiting(uuid: str) -> bool:
    """Whether init waits for a build, or will: there is no result yet."""
    present = set(os.listdir(paths.boot_dir(uuid)))
    return _CONSOLE in present and not {_READY, _FAILED} & present


def remove_stale_console(uuid: str) -> None:
    """Remove the fifo that a sidecar left, if it died after it made the result.

    An init that reads the fifo sees the result once no process has the fifo open for writing.
    """
    try:
        fifo = Console(uuid)
    except FileNotFoundError:
        return
    os.unlink(f"{paths.boot_dir(uuid)}/{_CONSOLE}")
    fifo.close()


def _write_result(directory: str, result: str, text: str, unread: bytes = b"") -> None:
    """Make the file `result`, `ready` or `failed`, with what init has to print."""
    temporary = f"{directory}/.{result}"
    with open(temporary, "wb") as file:
        file.write(unread + (f"inx: {one_line(text)}\r\n".encode() if text else b""))
    os.chmod(temporary, 0o444)
    os.rename(temporary, f"{directory}/{result}")
