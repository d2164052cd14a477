"""Tell a running garbage collection which store paths to keep, as a Nix client does.

Nix's own rule (libstore/gc.cc, addTempRoot): if gc.lock cannot be taken shared, a collector holds
it, and listens on gc-socket for store paths, answering each with "1". A collection that begins
later reads the roots. So the root of a path is made first, and the path is sent then.
"""

import asyncio
import fcntl
import os
from collections.abc import Iterable, Sequence
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError

_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.01

_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class GcClient:
    """Keeps one connection as long as a collection runs, as Nix's clients do.

    A connection that is closed at once can abort the collection (NixOS/nix#15962).
    """

    def __init__(self) -> None:
        self._stream: _Stream | None = None
        self._lock = asyncio.Lock()
        # Paths that no collector has confirmed. A call that failed leaves its paths here for the
        # next call: their roots exist by then, so no caller would send these paths again.
        self._unconfirmed: set[str] = set()

    async def add_temp_roots(self, store_paths: Iterable[str] = ()) -> None:
        """Keep `store_paths`, and those of earlier calls that failed, from a running collection.

        When this returns, no running collection deletes one of these paths that was valid before
        the call. RootError if the collector does not confirm them within ten seconds.
        """
        added = frozenset(store_paths)
        self._unconfirmed |= added
        try:
            async with asyncio.timeout(_SECONDS), self._lock:
                while unconfirmed := sorted(self._unconfirmed):
                    if self._no_collection_runs() or await self._send(unconfirmed):
                        self._unconfirmed.difference_update(unconfirmed)
                    else:
                        # The collector opens its socket after it takes the lock, and closes it
                        # before it releases the lock. No event says when either has happened.
                        await asyncio.sleep(_RETRY_SECONDS)
        except TimeoutError:
            raise RootError(
                f"the garbage collector did not confirm {min(added | self._unconfirmed)} within "
                f"{_SECONDS:.0f} s"
            ) from None

    def close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    def _no_collection_runs(self) -> bool:
        lock = os.open(paths.GC_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        self.close()
        return True

    async def _send(self, store_paths: Sequence[str]) -> bool:
        """Send the paths; False if no collector listens, or it ends before it confirms all."""
        try:
            if self._stream is None:
                self._stream = await asyncio.open_unix_connection(paths.GC_SOCKET)
            reader, writer = self._stream
            for path in store_paths:
                writer.write(path.encode() + b"\n")
                await writer.drain()
                if await reader.read(1) != b"1":
                    raise ConnectionResetError
                self._unconfirmed.discard(path)
        except (FileNotFoundError, ConnectionError):
            self.close()
            return False
        except BaseException:
            # An answer to this path may still come, and must not be taken for one to the next path.
            self.close()
            raise
        return True
