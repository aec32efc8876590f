"""The same page without a gateway, as it is often written, and not badly: 200 places, a limit of 2 s on each request.

A page takes a place and keeps it until it is done. Ratings first, then all films at once; if one of them fails, so does
the page. Everything else is as aiohttp has it.
"""

from __future__ import annotations

import asyncio
from asyncio import Semaphore
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

from gateway.demo.catalog import Item, Movie, UserRatings
from gateway.demo.faults import answer

T = TypeVar("T")

PLACES = 200
TIMEOUT = 2.0


class PlainCatalog:
    """Two URLs and a session. `timeout=None`: nobody thought of it."""

    def __init__(self, *, ratings_url: str, info_url: str, timeout: float | None = TIMEOUT) -> None:
        self._ratings_url = ratings_url
        self._info_url = info_url
        self._timeout = ClientTimeout(total=timeout)
        self._places = Semaphore(PLACES)

    def create(self) -> web.Application:
        """The service."""
        app = web.Application()
        app.cleanup_ctx.append(self._open)
        app.router.add_get("/catalog/{user_id}", self.page)
        return app

    async def _open(self, _: web.Application) -> AsyncIterator[None]:
        # aiohttp's own 100 connections would be a second line, and a shorter one.
        connector = TCPConnector(limit=0)
        async with ClientSession(connector=connector, timeout=self._timeout, cookie_jar=DummyCookieJar()) as session:
            self._session = session
            yield

    async def page(self, request: web.Request) -> web.Response:
        """The user's films, or 502."""
        async with self._places:
            try:
                user = request.match_info["user_id"]
                rated = await self._get(f"{self._ratings_url}/ratingsdata/user/{user}", UserRatings)
                asking = (self._get(f"{self._info_url}/movies/{one.movie_id}", Movie) for one in rated.ratings)
                movies = await asyncio.gather(*asking)
            except (ClientError, TimeoutError, msgspec.DecodeError) as error:
                return answer({"error": f"{type(error).__name__}: {error}"}, status=502)
        rows = zip(rated.ratings, movies, strict=True)
        return answer([Item(movie.name, movie.description, rating.rating) for rating, movie in rows])

    async def _get(self, url: str, into: type[T]) -> T:
        async with self._session.get(url, raise_for_status=True) as response:
            return msgspec.json.decode(await response.read(), type=into)
