"""Services for tests, on real sockets of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What a server does with a connection."""
Talk = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""What a server does with the head of a request; the connection is closed when it returns."""


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """An application, as `gateway demo` serves it; its URL."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def connected(each: Connection) -> AsyncIterator[str]:
    """A server that does this with each connection, and then closes it; its URL."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await each(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[str]:
    """A server that need not speak HTTP; its URL. One request for a connection."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await talk(await reader.readuntil(b"\r\n\r\n"), writer)
        await writer.drain()

    async with connected(once) as url:
        yield url
