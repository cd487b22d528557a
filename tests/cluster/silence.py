"""A proxy that can fall silent: what is open stays open, and nothing goes through it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """TCP from a port of its own to another one of the loopback address.

    Args:
        to: That other one.
    """

    def __init__(self, to: int) -> None:
        self._to, self.port = to, 0
        self._deaf = False
        self._open: list[asyncio.Event] = []
        self._end = asyncio.Event()
        self._started = threading.Event()

    def fall_silent(self, *, for_good: bool) -> None:
        """Carry nothing more of what is open; nor, if for good, of what will be."""
        self._deaf = for_good
        for deaf in self._open:
            deaf.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._taken, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._end.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.1)  # in which what is left is closed

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        deaf = asyncio.Event()
        if self._deaf:
            deaf.set()
        self._open.append(deaf)
        ends = [writer]
        try:
            with suppress(OSError):
                there, back = await asyncio.open_connection("127.0.0.1", self._to)
                ends.append(back)
                await asyncio.gather(self._carry(reader, back, deaf), self._carry(there, writer, deaf))
        finally:
            for end in ends:
                end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deaf: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                if deaf.is_set():
                    await self._end.wait()
                writer.write(data)
                await writer.drain()
        if deaf.is_set():
            await self._end.wait()
        writer.close()


@contextmanager
def proxied(to: int) -> Iterator[Proxy]:
    """A proxy until the context ends."""
    proxy = Proxy(to)
    thread = threading.Thread(target=lambda: asyncio.run(proxy._serve()), name="proxy")
    thread.start()
    proxy._started.wait()
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(proxy._end.set)
        thread.join()
