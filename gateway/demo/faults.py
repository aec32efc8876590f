"""How a service of the demo is made to misbehave, and well again: `curl -X POST :8083/fault/hang`.

Every service has the same switch. `/health` and `/fault` themselves always work.
"""

from __future__ import annotations

import asyncio
import struct
from asyncio import Event
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from math import ceil, inf
from socket import SO_LINGER, SOL_SOCKET

import msgspec
from aiohttp import web

from gateway import GatewayError
from gateway.demo.origin import refuse_elsewhere

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MODES = {
    "none": "answers as it should",
    "hang": "takes the request and does not answer, until the mode changes",
    "fail": "answers 500 at once",
    "slow": "answers rightly, 0.3 s late: within its limits, but each call holds its place longer",
    "drip": "answers a byte every 0.1 s: never silent, never done",
    "flood": "answers with a body that does not end",
    "reset": "drops the connection instead of answering",
}
SLOW_FOR = 0.3
DRIP_EVERY = 0.1
FLOOD_CHUNK = b" " * 64 * 1024
FLOOD_CHUNKS = 1024
"""64 MiB, in case nobody hangs up."""
LATEST = 24 * 60 * 60
"""Seconds; nobody is sent away for longer, not even by a service that wants never to be asked again."""
ALWAYS_WELL = frozenset({"/health", "/fault", "/fault/{mode}"})


class FaultSwitch:
    """The mode that one service is in."""

    def __init__(self) -> None:
        self.mode = "none"
        self._changed = Event()

    def turn(self, mode: str) -> None:
        """Go into another mode; who hangs or drips is let go."""
        self.mode = mode
        self._changed.set()
        self._changed = Event()

    def install(self, app: web.Application) -> None:
        """Give a service `/health`, `/fault`, and the faults."""
        app.middlewares.append(self._middleware)
        app.router.add_get("/health", self._health)
        app.router.add_get("/fault", self._show)
        app.router.add_post("/fault/{mode}", self._set)
        app.on_shutdown.append(self._let_go)

    @staticmethod
    async def _health(_: web.Request) -> web.Response:
        return answer({"status": "ok"})

    async def _show(self, _: web.Request) -> web.Response:
        return answer({"mode": self.mode})

    async def _set(self, request: web.Request) -> web.Response:
        refuse_elsewhere(request)
        mode = request.match_info["mode"]
        if mode not in MODES:
            return answer({"error": f"there is no fault {mode!r}", "modes": MODES}, status=404)
        self.turn(mode)
        return web.Response(status=204)

    async def _let_go(self, _: web.Application) -> None:
        self.turn("none")

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.mode == "none" or is_always_well(request):
            return await handler(request)
        match self.mode:
            case "hang":
                await self._wait(inf)
            case "slow":
                await self._wait(SLOW_FOR)
            case "fail":
                return answer({"error": "it fails, as it was told to"}, status=500)
            case "reset":
                return drop(request)
            case "drip":
                return await stream(request, self._dripping(await handler(request)))
            case "flood":
                return await stream(request, self._flooding())
        return await handler(request)

    async def _wait(self, seconds: float) -> None:
        """Wait, but not beyond this mode."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == inf else seconds):
                await self._changed.wait()

    async def _dripping(self, response: web.StreamResponse) -> AsyncIterator[bytes]:
        body = response.body if isinstance(response, web.Response) else b""
        for byte in body if isinstance(body, bytes) else b"":
            if self.mode == "drip":
                await self._wait(DRIP_EVERY)
            yield bytes((byte,))

    async def _flooding(self) -> AsyncIterator[bytes]:
        for _ in range(FLOOD_CHUNKS):
            if self.mode != "flood":
                return
            yield FLOOD_CHUNK


def is_always_well(request: web.Request) -> bool:
    """Whether a request is about the fault, or the health, of the service itself."""
    resource = request.match_info.route.resource
    return resource is not None and resource.canonical in ALWAYS_WELL


def answer(content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A response with JSON."""
    body = msgspec.json.encode(content)
    return web.Response(status=status, headers=headers, body=body, content_type="application/json", charset="utf-8")


def retry_after(error: GatewayError) -> dict[str, str]:
    """The header that says when to come back: in whole seconds, at least one."""
    return {"Retry-After": str(max(1, ceil(min(error.retry_after or 0.0, LATEST))))}


async def stream(request: web.Request, parts: AsyncIterator[bytes]) -> web.StreamResponse:
    """A response that comes in parts."""
    response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
    with suppress(ConnectionError):  # whoever has enough of it hangs up
        await response.prepare(request)
        async for part in parts:
            await response.write(part)
    return response


def drop(request: web.Request) -> web.Response:
    """End the connection by a reset; the response goes nowhere."""
    transport = request.transport
    if transport is not None:
        # Closing with "linger, for 0 s" makes the kernel send RST instead of FIN.
        transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()
