"""The catalog service: a user's films, from two services that it does not trust.

    ratings ──▶ which films, how many stars      half of the page's second, then last good, then film "0"
    info ─────▶ name and description of each     the rest, all at once, then last good, then "Movie Not Found"

Policies and defaults are those of the Hystrix course; in front of the defaults stands what was good before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from socket import socket
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from aiohttp import web

from fallbacks.stores import SQLiteStore
from gateway import (
    Answer,
    BreakerPolicy,
    BulkheadPolicy,
    ConfigError,
    Deadline,
    Gateway,
    GatewayError,
    HttpPolicy,
    HttpRefused,
    LastGood,
    Operation,
    Policy,
    Source,
    Static,
    TimeoutPolicy,
    gather,
)
from gateway.admin import serve
from gateway.demo import posters
from gateway.demo.faults import FaultSwitch, Handler, answer, retry_after
from gateway.demo.memory import NOWHERE, store_in
from gateway.demo.page import Page, finite
from gateway.log import listen

PAGE_FOR = 1.0
"""Seconds a page may take, or what the caller's X-Deadline-Ms leaves of it."""
RATINGS_SHARE = 0.5
"""The films get theirs even when the ratings use up all of their own."""
COMPOSING_FOR = 0.05
LONGEST_LIST = 500
"""Films; with more of them a page could not be made in its second, and a service that sends them means no good."""

POLICY = Policy(
    timeout=TimeoutPolicy(call=2.0),
    bulkhead=BulkheadPolicy(limit=20, queue=10),
    breaker=BreakerPolicy(
        failure_rate=0.5,
        min_calls=5,
        open_for=5.0,
        probes=1,  # as Hystrix: one call finds out whether it is well again
        evidence_after=0.4,  # the page's deadline cuts tries at 0.45 to 0.5 s: a hang that long counts as one
    ),
    fallback_timeout=0.04,  # kept back of that for the file, which need not be asked: what it has is in memory
)
INFO_POLICY = POLICY.tuned_fields({"breaker.probes": 5})
"""A page asks for its films at once: let one page find out, not one film of it."""
TRACE: ContextVar[Mapping[str, str]] = ContextVar("trace", default=MappingProxyType({}))
"""The trace that a page's own caller is in; its requests belong to it."""
TRACE_HEADERS = ("traceparent", "tracestate", "baggage")
HTTP = HttpPolicy(max_body=1024 * 1024, propagate=TRACE.get)
"""A page needs a few kilobytes; what sends a megabyte means no good."""
POSTERS_POLICY = Policy(timeout=TimeoutPolicy(call=PAGE_FOR), bulkhead=BulkheadPolicy(limit=4, queue=40))
"""Threads: more at once than cores would only take turns."""


class Rating(msgspec.Struct, frozen=True, rename="camel"):
    """How many stars a film got."""

    movie_id: str
    rating: int | float


class UserRatings(msgspec.Struct, frozen=True, rename="camel"):
    """All that a user rated."""

    user_id: str
    ratings: Annotated[tuple[Rating, ...], msgspec.Meta(max_length=LONGEST_LIST)]


class Movie(msgspec.Struct, frozen=True, rename="camel"):
    """What the info service says of a film."""

    movie_id: str
    name: str
    description: str = ""


class Item(msgspec.Struct, frozen=True):
    """A row of the page."""

    name: str
    desc: str
    rating: int | float


class ExplainedItem(Item, frozen=True):
    """A row, and the worst of the two answers it is made of."""

    source: Source
    age: float


class Origin(msgspec.Struct, frozen=True):
    """Where one answer came from."""

    operation: str
    source: Source
    age: float
    degraded: bool


NOBODY = UserRatings(user_id="", ratings=(Rating(movie_id="0", rating=0),))
NOT_FOUND = Movie(movie_id="0", name="Movie Not Found")
BLANK = posters.draw("?")
BEST_TO_WORST = [*(s for s in Source if s not in {Source.LAST_GOOD, Source.STATIC}), Source.LAST_GOOD, Source.STATIC]
RANK = {source: rank for rank, source in enumerate(BEST_TO_WORST)}

Asked = tuple[Operation[..., Any], Answer[Any]]


class Catalog:
    """The upstreams, what is asked of them, and the pages made of it.

    `ratings_url` may be those of several instances. `tell` is told what the page wants of them: `kill ratings-2`.
    `admin`: where operators are listened to, if they are. `store` keeps what was good beyond the end.
    """

    def __init__(
        self,
        *,
        ratings_url: str | Sequence[str],
        info_url: str,
        tell: Callable[[str], object] | None = None,
        admin: socket | None = None,
        store: SQLiteStore | None = None,
    ) -> None:
        self.gate = Gateway()
        self._admin = admin
        ratings_urls = (ratings_url,) if isinstance(ratings_url, str) else tuple(ratings_url)
        ratings = self.gate.http("ratings", ratings_urls, policy=POLICY, http=HTTP)
        info = self.gate.http("info", info_url, policy=INFO_POLICY, http=HTTP)
        remembered = LastGood(store=store)

        @ratings.get("/ratingsdata/user/{user_id}", into=UserRatings, fallback=[remembered, Static(NOBODY)])
        async def user_ratings(user_id: str) -> UserRatings: ...

        @ratings.get("/ratingsdata/user/{user_id}", into=UserRatings)
        async def ratings_or_error(user_id: str) -> UserRatings: ...

        @info.get("/movies/{movie_id}", into=Movie, fallback=[remembered, Static(NOT_FOUND)])
        async def movie(movie_id: str) -> Movie: ...

        self._draw = self.gate.upstream("posters", policy=POSTERS_POLICY).operation(
            name="draw", idempotent=True, fallback=[Static(BLANK)]
        )(posters.draw)
        self._page = Page(self.gate, {"ratings": ratings_urls, "info": (info_url,)}, tell=tell)
        self._user_ratings, self._ratings_or_error, self._movie = user_ratings, ratings_or_error, movie

    def create(self) -> web.Application:
        """The service."""
        app = web.Application(middlewares=[traced, errors])
        FaultSwitch().install(app)
        app.cleanup_ctx.append(self._open)
        if self._admin is not None:
            app.cleanup_ctx.append(self._administer)
        app.router.add_get("/catalog/{user_id}", self.page)
        app.router.add_get("/ratings/{user_id}", self.ratings)
        app.router.add_get("/movies/{movie_id}/poster", self.poster)
        self._page.install(app)
        return app

    async def _open(self, _: web.Application) -> AsyncIterator[None]:
        async with self.gate:
            yield

    async def _administer(self, _: web.Application) -> AsyncIterator[None]:
        async with await serve(self.gate, listening=self._admin):
            yield

    async def page(self, request: web.Request) -> web.Response:
        """The user's films, complete whatever happens; the headers say where from, and with `?explain=1` the body."""
        with Deadline.from_headers(request.headers), Deadline.after(PAGE_FOR):
            with Deadline.after(left() * RATINGS_SHARE):
                rated = await self._user_ratings.ask(request.match_info["user_id"])
            with Deadline.after(left() - COMPOSING_FOR):
                ids = dict.fromkeys(rating.movie_id for rating in rated.value.ratings)
                movies = await gather(required={movie_id: self._movie_of(movie_id) for movie_id in ids})
        rows = [(rating, movies[rating.movie_id]) for rating in rated.value.ratings]
        asked: list[Asked] = [(self._user_ratings, rated), *((self._movie, movie) for _, movie in rows)]
        if request.query.get("explain") == "1":
            items = [explained(rating, movie, worst((rated, movie))) for rating, movie in rows]
            answers, pictures = [origin(*one) for one in asked], [poster_of(rating) for rating, _ in rows]
            content = {"items": items, "answers": answers, "posters": pictures}
            return answer(content, headers=origin_headers(asked))
        plain = [Item(movie.value.name, movie.value.description, rating.rating) for rating, movie in rows]
        return answer(plain, headers=origin_headers(asked))

    async def ratings(self, request: web.Request) -> web.Response:
        """The user's ratings, live or not at all: what a call without a plan B looks like."""
        with Deadline.from_headers(request.headers), Deadline.after(PAGE_FOR):
            rated = await self._ratings_or_error.ask(request.match_info["user_id"])
        return answer(rated.value, headers=origin_headers([(self._ratings_or_error, rated)]))

    async def poster(self, request: web.Request) -> web.Response:
        """A film's poster, drawn in a thread: a plain function is an operation like any other."""
        with Deadline.from_headers(request.headers), Deadline.after(PAGE_FOR):
            with Deadline.after(left() - COMPOSING_FOR):
                movie = await self._movie.ask(request.match_info["movie_id"])
            drawn = await self._draw.ask(movie.value.name)
        asked: list[Asked] = [(self._movie, movie), (self._draw, drawn)]
        keep = "no-store" if any(one.degraded for _, one in asked) else "max-age=3600"
        headers = {"Cache-Control": keep, "Content-Security-Policy": "default-src 'none'", **origin_headers(asked)}
        return web.Response(body=drawn.value, content_type="image/svg+xml", headers=headers)

    async def _movie_of(self, movie_id: str) -> Answer[Movie]:
        try:
            return await self._movie.ask(movie_id)
        except (HttpRefused, ConfigError):  # the latter: "" or "..", which cannot stand in a path
            return Answer(NOT_FOUND)  # a live answer: there is no such film


@web.middleware
async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep the trace headers of a request for the requests that it leads to."""
    TRACE.set({name: request.headers[name] for name in TRACE_HEADERS if name in request.headers})
    return await handler(request)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What a call's error tells the page's caller: what failed, how, and when to come back."""
    try:
        return await handler(request)
    except HttpRefused as refused:
        return answer({"error": f"{refused}"}, status=404 if refused.status == 404 else 502)  # noqa: PLR2004
    except ConfigError as error:
        return answer({"error": f"{error.field}: {error.problem}"}, status=404)  # no path leads to a user ".."
    except GatewayError as error:
        content = {
            "error": f"{type(error).__name__}: {error}",
            "upstream": error.upstream,
            "operation": error.operation,
            "outcome": error.outcome,
            "attempts": error.attempts,
            "retry_after": None if error.retry_after is None else finite(round(error.retry_after, 3)),
        }
        return answer(content, status=503, headers=retry_after(error))


def left() -> float:
    """Seconds until the ambient deadline."""
    deadline = Deadline.current()
    return PAGE_FOR if deadline is None else deadline.remaining()


def worst(answers: Iterable[Answer[Any]]) -> Answer[Any]:
    """The answer that is farthest from live, and of those the oldest."""
    return max(answers, key=badness)


def badness(one: Answer[Any]) -> tuple[int, float]:
    """How far an answer is from live, and how old."""
    return RANK[one.source], one.age


def explained(rating: Rating, movie: Answer[Movie], from_: Answer[Any]) -> ExplainedItem:
    """A row with its origin."""
    name, desc = movie.value.name, movie.value.description
    return ExplainedItem(name, desc, rating.rating, from_.source, round(from_.age, 1))


def poster_of(rating: Rating) -> str | None:
    """Where the poster of a row is, if it has one."""
    return None if rating.movie_id == "0" else f"/movies/{quote(rating.movie_id, safe='')}/poster"


def origin(operation: Operation[..., Any], from_: Answer[Any]) -> Origin:
    """Where an answer came from, for the body."""
    return Origin(operation.name, from_.source, round(from_.age, 1), from_.degraded)


def origin_headers(asked: list[Asked]) -> dict[str, str]:
    """The worst answer of each upstream, and whether any stands in for another; the worst of all in standard words."""
    worsts: dict[str, Answer[Any]] = {}
    for operation, one in asked:
        name = operation.upstream.name
        worsts[name] = worst((worsts.get(name, one), one))
    sources = (f"{name}={one.source}" + (f";age={one.age:.1f}" if one.age else "") for name, one in worsts.items())
    degraded = any(one.degraded for _, one in asked)
    standard = worst(worsts.values()).to_headers("catalog")
    return {"X-Answer-Source": ", ".join(sources), "X-Degraded": str(degraded).lower(), **standard}


def create(
    *,
    ratings_url: str | Sequence[str],
    info_url: str,
    tell: Callable[[str], object] | None = None,
    admin: socket | None = None,
    memory: str | None = NOWHERE,
) -> web.Application:
    """The service, telling the log what happens to its upstreams. `memory`: a file; None: the usual one."""
    store = store_in(memory)
    catalog = Catalog(ratings_url=ratings_url, info_url=info_url, tell=tell, admin=admin, store=store)
    listen(catalog.gate)
    return catalog.create()
