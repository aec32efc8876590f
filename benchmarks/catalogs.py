"""The demo's catalog, and a bare aiohttp one that does the same work: one of them on a port, for `make bench`.

The only module here that imports the demo: its catalog is what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web

from benchmarks import processes
from gateway.demo.catalog import Catalog, Item, Movie, UserRatings

T = TypeVar("T")
GC_THRESHOLDS = (50_000, 20, 100)
IN_FLIGHT = 100
"""More than are ever asked for at once: with the demo's own twenty places a tenth of the films would come from memory,
and be no work for whoever measures."""


class Bare:
    """The same page: ratings first, then all films at once; decoded, composed, encoded. No pools, limits or plan B."""

    def __init__(self, url: str) -> None:
        self._url = url

    def create(self) -> web.Application:
        """The service."""
        app = web.Application()
        app.cleanup_ctx.append(self._open)
        app.router.add_get("/catalog/{user_id}", self.page)
        return app

    async def _open(self, _: web.Application) -> AsyncIterator[None]:
        async with ClientSession(connector=TCPConnector(limit=0), cookie_jar=DummyCookieJar()) as session:
            self._session = session
            yield

    async def page(self, request: web.Request) -> web.Response:
        """The user's films."""
        rated = await self._get(f"{self._url}/ratingsdata/user/{request.match_info['user_id']}", UserRatings)
        ids = dict.fromkeys(rating.movie_id for rating in rated.ratings)
        movies = dict(zip(ids, await asyncio.gather(*map(self._movie, ids)), strict=True))
        rows = [(rating, movies[rating.movie_id]) for rating in rated.ratings]
        body = msgspec.json.encode([Item(movie.name, movie.description, rating.rating) for rating, movie in rows])
        return web.Response(body=body, content_type="application/json", charset="utf-8")

    async def _movie(self, movie_id: str) -> Movie:
        return await self._get(f"{self._url}/movies/{movie_id}", Movie)

    async def _get(self, url: str, into: type[T]) -> T:
        async with self._session.get(url, raise_for_status=True) as response:
            return msgspec.json.decode(await response.read(), type=into)


def guarded(url: str) -> Catalog:
    """The demo's catalog, which asks for all that the bare one asks for."""
    catalog = Catalog(ratings_url=url, info_url=url)
    for name in ("ratings", "info"):
        catalog.gate[name].tune_fields({"bulkhead.limit": IN_FLIGHT})
    return catalog


async def serve(kind: str, port: int, url: str, *, tuned: bool) -> None:
    """Until standard input ends."""
    made: Any = guarded(url) if kind == "gateway" else Bare(url)
    runner = web.AppRunner(made.create(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    if tuned:
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
    await processes.until_stdin_ends().wait()


def main(kind: str, how: str, port: str, url: str) -> None:
    """Serve one kind on one loop."""
    running = serve(kind, int(port), url, tuned=how.endswith("gc"))
    if how.startswith("uvloop"):
        import uvloop  # noqa: PLC0415 - only where it is asked for

        uvloop.run(running)
    else:
        asyncio.run(running)


if __name__ == "__main__":
    main(*sys.argv[1:])
