"""Instances of one service, which die, hang, fail and come back while they are asked."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.edges.http.misbehaving import reply


@dataclass
class Instance:
    """One of several that do the same. `asked`: requests that came whole; `orders`: the bodies that took effect."""

    name: str
    mode: str = "ok"
    takes: float = 0.002
    port: int = 0
    in_flight: int = 0
    asked: list[bytes] = field(default_factory=list)
    orders: list[bytes] = field(default_factory=list)
    answer: bytes = b""
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def calls(self) -> int:
        return len(self.asked)

    def key(self, number: int = -1) -> str:
        return self.asked[number].split(b"Idempotency-Key: ")[1].split(b"\r\n")[0].decode()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def die(self) -> None:
        """All connections are cut, and no more are taken."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._writers):
            sock = writer.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while True:
                await self._answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in lower else 0
        body = await reader.readexactly(length)
        self.asked.append(head + body)
        self.in_flight += 1
        try:
            if body:
                self.orders.append(body)  # it takes effect, whatever becomes of the answer
            await asyncio.sleep(self.takes)
            if self.mode == "hang":
                await asyncio.sleep(3600)
            if self.mode == "drip":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while True:
                    writer.write(b".")
                    await asyncio.sleep(0.005)
            if self.mode == "cut":
                writer.transport.abort()
                raise ConnectionResetError
            said = self.answer or reply(self.name.encode(), status=int(self.mode) if self.mode.isdigit() else 200)
            writer.write(said)
            await writer.drain()
        finally:
            self.in_flight -= 1


@asynccontextmanager
async def instances(number: int = 3, *, takes: float = 0.002) -> AsyncIterator[list[Instance]]:
    """So many, which run."""
    async with AsyncExitStack() as stack:
        running = [Instance("abcdef"[n], takes=takes) for n in range(number)]
        for one in running:
            await one.start()
            stack.push_async_callback(one.die)
        yield running


def urls(running: list[Instance]) -> list[str | tuple[str, float]]:
    return [one.url for one in running]
