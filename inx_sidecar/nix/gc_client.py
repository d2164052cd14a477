"""Tell a garbage collection that runs which store paths to spare, as a Nix client does.

Nix's own rule (libstore/gc.cc, addTempRoot): if gc.lock cannot be taken shared, a collector holds
it and listens on gc-socket for paths, answering each with "1". A collection that begins later reads
the roots; so a path is told after its root is on the disk.
"""

import asyncio
import fcntl
import os
from collections.abc import Iterable, Sequence
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError

_SECONDS: Final = 10.0
_PAUSE: Final = 0.01

_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class GcClient:
    """One connection is kept as long as a collection lasts, as Nix's clients do: one that is closed
    at once can abort the collection (NixOS/nix#15962)."""

    def __init__(self) -> None:
        self._stream: _Stream | None = None
        self._turn = asyncio.Lock()
        # Told to nobody yet, since somebody gave up: their roots stand, and are no news any more.
        self._owed: set[str] = set()

    async def add_temp_roots(self, store_paths: Iterable[str] = ()) -> None:
        """When this returns, no collection that runs deletes a path that was valid before: one of
        `store_paths`, or one that an earlier call could not tell."""
        mine = frozenset(store_paths)
        self._owed |= mine
        try:
            async with asyncio.timeout(_SECONDS), self._turn:
                while owed := sorted(self._owed):
                    if self._nobody() or await self._told(owed):
                        self._owed.difference_update(owed)
                    else:
                        # It opens its socket after it takes the lock, and closes it before it lets
                        # go: a moment without an event to wait for.
                        await asyncio.sleep(_PAUSE)
        except TimeoutError:
            raise RootError(
                f"the garbage collector did not confirm {min(mine | self._owed)} within "
                f"{_SECONDS:.0f} s"
            ) from None

    def close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    def _nobody(self) -> bool:
        lock = os.open(paths.GC_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        self.close()
        return True

    async def _told(self, store_paths: Sequence[str]) -> bool:
        """False if nobody answers, or nobody any more."""
        try:
            if self._stream is None:
                self._stream = await asyncio.open_unix_connection(paths.GC_SOCKET)
            reader, writer = self._stream
            for path in store_paths:
                writer.write(path.encode() + b"\n")
                await writer.drain()
                if await reader.read(1) != b"1":
                    raise ConnectionResetError
                self._owed.discard(path)
        except (FileNotFoundError, ConnectionError):
            self.close()
            return False
        except BaseException:
            self.close()  # an answer may still come: nobody must take it for another's
            raise
        return True
