"""A stand-in for the garbage collector of Nix: gc.lock, and a server on gc-socket."""

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from inx_sidecar.base import paths
from support.direct_roots import present


class Collector:
    """Holds gc.lock as Nix does, and answers on gc-socket once `answering` is set.

    `received` has the store paths that clients have sent, `roots` the roots at these moments.
    """

    def __init__(self, *, answering: bool = False) -> None:
        self.received: list[str] = []
        self.roots: list[dict[str, str]] = []
        self.connections = 0
        self.answering = asyncio.Event()
        if answering:
            self.answering.set()
        self.answer = b"1"
        self._tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            while line := await reader.readline():
                self.received.append(line.decode().removesuffix("\n"))
                self.roots.append(present())
                await self.answering.wait()
                writer.write(self.answer)
                await writer.drain()
                if self.answer != b"1":
                    return
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client has closed the connection, or the collection ends
        finally:
            self._tasks.discard(task)
            writer.close()

    @asynccontextmanager
    async def running(self) -> Any:
        """At the end, close all connections and the socket, then release the lock, as Nix does."""
        with locked():
            async with await asyncio.start_unix_server(self.serve, paths.GC_SOCKET):
                try:
                    yield self
                finally:
                    for task in self._tasks:
                        task.cancel()
                    await asyncio.gather(*self._tasks)
                    os.unlink(paths.GC_SOCKET)


@contextmanager
def locked() -> Iterator[None]:
    lock = os.open(paths.GC_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        os.close(lock)


async def stays(task: asyncio.Task[Any]) -> None:
    """Check that a task which has had enough time to end does not end."""
    await asyncio.sleep(0.05)
    assert not task.done()
