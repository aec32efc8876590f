"""The info service with TMDB behind it (https://developer.themoviedb.org): what it says of a film, through a gateway.

    TMDB_API_KEY    a v3 key, sent as `?api_key=`, or a v4 read access token, sent as a bearer; in no log, error or page
    TMDB_BASE_URL   another address, as for a test

| TMDB                         | the info service               | the catalog then              |
|------------------------------|--------------------------------|-------------------------------|
| 200                          | 200                            | live                          |
| 404                          | 404                            | live: there is no such film   |
| 401, 403                     | 502, and a line in the log     | last good, or the default     |
| 429                          | 503 with its Retry-After       | last good, or the default     |
| fails, hangs, circuit open   | 502, 504, 503 with Retry-After | last good, or the default     |
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping

import msgspec
from aiohttp import web

from gateway import (
    BreakerPolicy,
    BulkheadPolicy,
    Deadline,
    Gateway,
    GatewayError,
    HttpPolicy,
    HttpRefused,
    Policy,
    Rejected,
    RetryPolicy,
    TimeoutPolicy,
)
from gateway.demo.faults import answer, retry_after

log = logging.getLogger("gateway.demo")

BASE_URL = "https://api.themoviedb.org"
POLICY = Policy(
    timeout=TimeoutPolicy(call=5.0, attempt=2.0),
    retry=RetryPolicy(attempts=2, max_retry_after=1.0),
    bulkhead=BulkheadPolicy(limit=20, queue=20),
    breaker=BreakerPolicy(evidence_after=0.4),  # the catalog's page cuts our tries
)
LONGEST_BODY = 1024 * 1024
"""Bytes; a film is a few thousand."""
NOT_FOUND = 404
KEY_REFUSED = frozenset({401, 403})


class Found(msgspec.Struct, frozen=True):
    """What we read of TMDB's answer."""

    title: str
    overview: str | None = None


class Tmdb:
    """TMDB as an upstream."""

    def __init__(self, key: str, url: str = BASE_URL) -> None:
        self.gate = Gateway()
        tmdb = self.gate.http("tmdb", url.rstrip("/").removesuffix("/3"), policy=POLICY, http=http_with(key))
        self._key_refused = False

        @tmdb.get("/3/movie/{movie_id}", into=Found)
        async def movie(movie_id: str) -> Found: ...

        self._movie = movie

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Tmdb | None:
        """As the environment says; None where it has no key."""
        key = environment.get("TMDB_API_KEY", "").strip()
        return cls(key, environment.get("TMDB_BASE_URL", "").strip() or BASE_URL) if key else None

    def install(self, app: web.Application) -> None:
        """Answer for films in a service."""
        app.cleanup_ctx.append(self._open)
        app.router.add_get("/movies/{movie_id}", self.movie)

    async def _open(self, _: web.Application) -> AsyncIterator[None]:
        async with self.gate:
            yield

    async def movie(self, request: web.Request) -> web.Response:
        """One film, or what stands in the way."""
        movie_id = request.match_info["movie_id"]
        if not (movie_id.isascii() and movie_id.isdigit()):
            return answer({"error": f"there is no film {movie_id!r}"}, status=404)
        try:
            with Deadline.from_headers(request.headers):
                found = await self._movie(movie_id)
        except HttpRefused as refused:
            return self._refused(movie_id, refused.status)
        except GatewayError as error:
            return failed(error)
        self._key_refused = False
        return answer({"movieId": movie_id, "name": found.title, "description": found.overview or ""})

    def _refused(self, movie_id: str, status: int) -> web.Response:
        if status == NOT_FOUND:
            return answer({"error": f"there is no film {movie_id!r}"}, status=404)
        problem = f"TMDB answers {status}"
        if status in KEY_REFUSED:
            problem = f"TMDB does not accept the key in TMDB_API_KEY ({status})"
            if not self._key_refused:  # once, not once a film
                log.error("%s; correct it, or leave it out for the films that ship with the demo", problem)
            self._key_refused = True
        return answer({"error": problem}, status=502)


def http_with(key: str) -> HttpPolicy:
    """How TMDB wants a key: tokens of v4 are JWTs, with dots; keys of v3 have none."""
    if "." in key:
        return HttpPolicy(headers={"Authorization": f"Bearer {key}"}, max_body=LONGEST_BODY)
    return HttpPolicy(params={"api_key": key}, max_body=LONGEST_BODY)


def failed(error: GatewayError) -> web.Response:
    """What to say when there is no answer: when to come back, where that is known."""
    content = {"error": f"{type(error).__name__}: {error}", "upstream": error.upstream, "outcome": error.outcome}
    if error.retry_after is not None or (isinstance(error, Rejected) and not isinstance(error, TimeoutError)):
        return answer(content, status=503, headers=retry_after(error))
    return answer(content, status=504 if isinstance(error, TimeoutError) else 502)
