"""A service that can do so much and no more, as real ones: what comes too fast waits in line."""

from __future__ import annotations

import asyncio
from asyncio import Semaphore
from collections.abc import Mapping

from aiohttp import web

from gateway.demo.faults import Handler


class Capacity:
    """So many requests at once. How many seconds each takes depends on what it asks for: `{route: seconds}`."""

    def __init__(self, places: int, takes: Mapping[str, float]) -> None:
        self._places = Semaphore(places)
        self._takes = takes

    def install(self, app: web.Application) -> None:
        """Limit a service, inside of its faults: what hangs takes none of it."""
        app.middlewares.append(self._middleware)

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        takes = None if resource is None else self._takes.get(resource.canonical)
        if takes is None:
            return await handler(request)
        async with self._places:
            await asyncio.sleep(takes)
            return await handler(request)
