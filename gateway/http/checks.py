"""Active health checks: each endpoint is asked from time to time whether it is well, by nobody's call."""

from __future__ import annotations

from asyncio import gather, sleep, timeout
from random import uniform
from typing import TYPE_CHECKING

from gateway.http.request import HttpRequest
from gateway.http.routes import Route
from gateway.policy import TimeoutPolicy

if TYPE_CHECKING:
    from gateway.http.client import HttpUpstream

UNHEALTHY_AFTER = 2
"""Checks that fail one after the other: one alone may be the network's."""
JITTER = 0.1
"""Share of the pause, so that the clients of a fleet do not all ask at once."""


class Checks:
    """The checks of one upstream, on one loop. They need no place in its pool, and stand in none of its numbers."""

    def __init__(self, upstream: HttpUpstream) -> None:
        http = upstream.http
        self._upstream = upstream
        self._request = HttpRequest("GET", str(http.health_path))
        self._every = http.health_every
        self._within = http.health_timeout
        self._limits = TimeoutPolicy(call=http.health_timeout)
        self._failed: dict[str, int] = {}  # by the prefix of the route, in a row

    async def run(self) -> None:
        """Check, rest, and so on, until it is cancelled. Where there is one endpoint only, nobody would act on it."""
        while True:
            routes = list(self._upstream.routes)
            if len(routes) > 1:
                await gather(*map(self._check, routes))
                self._failed = {route.prefix: self._failed.get(route.prefix, 0) for route in routes}
            await sleep(self._every * uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - jitter keeps no secrets

    async def _check(self, route: Route) -> None:
        endpoints = self._upstream.routes.endpoints
        healthy = await self._is_well(route)
        self._failed[route.prefix] = failed = 0 if healthy else self._failed.get(route.prefix, 0) + 1
        if healthy or failed >= UNHEALTHY_AFTER:
            endpoints.report(route.prefix, healthy, endpoints.clock())

    async def _is_well(self, route: Route) -> bool:
        try:
            async with timeout(self._within):
                reply = await self._upstream.session().send(self._request, self._limits, route)
        except Exception:  # noqa: BLE001 - whatever it is, the endpoint did not say that it is well
            return False
        return 200 <= reply.status < 300  # noqa: PLR2004 - successes
