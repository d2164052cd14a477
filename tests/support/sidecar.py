"""A stand-in for the sidecar: a server on the sidecar's socket. The test sets its answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inx_sidecar.base import paths


class Sidecar:
    """Answers requests once `answering` is set.

    It closes the first `closing` connections without an answer.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answering = asyncio.Event()
        self.answer = b"0\nall is well"
        self.closing = 0
        self.tasks: set[asyncio.Task[object]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        try:
            self.asked.append((await reader.read()).decode())
            if len(self.asked) > self.closing:
                await self.answering.wait()
                writer.write(self.answer)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client has closed the connection, or the test ends
        finally:
            self.tasks.discard(task)
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Sidecar"]:
        async with await asyncio.start_unix_server(self.serve, paths.SOCKET):
            try:
                yield self
            finally:
                for task in self.tasks:
                    task.cancel()
                await asyncio.gather(*self.tasks)
