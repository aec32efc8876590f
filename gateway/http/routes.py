"""Where requests go: the base URLs of an upstream, what goes along only to each, and which one a try takes.

With one there is nothing to choose. With several each try takes another one, where it is safe: what a try did not send,
or what may be repeated wherever it lands. A key that only its own endpoint knows keeps a request there: then each key
has a home, the same for all calls (Thaler, Ravishankar, "Using Name-Based Mappings to Increase Hit Rates").
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any, TypeVar

from msgspec import Struct
from multidict import CIMultiDict
from yarl import URL

from gateway.context import Clock
from gateway.http.addresses import proxy_for
from gateway.http.endpoint import Endpoint, Lease
from gateway.http.endpoints import Endpoints, with_weights
from gateway.http.health import Gone, StateName, Verdict
from gateway.http.reply import HttpReply
from gateway.http.request import IDEMPOTENT, BaseUrl, HttpRequest, checked
from gateway.outcome import ConfigError, NotSent, Refused, UnknownName, reason_of, waited_for_of
from gateway.policy import HttpPolicy

log = logging.getLogger("gateway")

T = TypeVar("T")
Urls = str | Iterable[str | tuple[str, float]]
"""A base URL, or several: each a URL, or a pair of URL and weight."""


class Route:
    """One base URL, and what every request there has."""

    __slots__ = ("base", "headers", "prefix", "proxy")

    def __init__(self, base: BaseUrl, policy: HttpPolicy) -> None:
        self.base = base
        self.prefix = base.prefix
        self.proxy: URL | None = proxy_for(base) if policy.trust_env else None
        self.headers = CIMultiDict(checked(policy.headers))
        if base.authorization is not None:
            self.headers.setdefault("Authorization", base.authorization)

    def __repr__(self) -> str:
        return f"<Route {self.prefix}>"


class Trip(Struct, eq=False):
    """The tries of one call: what is sent, what it was made of, and where it has been."""

    request: HttpRequest
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    tried: list[Endpoint] = []
    stays: Endpoint | None = None  # it may have taken effect there, and only there is that known
    reply: HttpReply | None = None  # the last one: what it says of itself decides where its value may be kept


class Routes:
    """The routes of one upstream. Raises ConfigError for what is no base URL, or is there twice."""

    def __init__(self, name: str, urls: Urls, policy: HttpPolicy, clock: Clock) -> None:
        self._name = name
        self._policy = policy
        routes, weights = self._read(urls)
        self._routes = routes
        self.endpoints = Endpoints(weights, policy.endpoints, clock=clock, on_change=self._tell)
        self.only: Route | None = only_of(routes)

    def replace(self, urls: Urls) -> None:
        """Go on with other base URLs. Raises ConfigError, and then nothing has changed."""
        routes, weights = self._read(urls)
        self.endpoints.replace(weights)
        self._routes = routes
        self.only = only_of(routes)

    def __iter__(self) -> Iterator[Route]:
        return iter(tuple(self._routes.values()))

    def __len__(self) -> int:
        return len(self._routes)

    def drain(self, url: str) -> None:
        """Send no new calls to one of them. Raises UnknownName, and ConfigError for the last one."""
        self.endpoints.drain(self._known(url))

    def restore(self, url: str) -> None:
        """Send calls there again. Raises UnknownName."""
        self.endpoints.restore(self._known(url))

    def _known(self, url: str) -> str:
        for known in self._routes:
            if known.rstrip("/") == url.rstrip("/"):
                return known
        raise UnknownName.among(f"{self._name} endpoint", url, self._routes)

    # -- for each try, where there are several

    async def through(self, trip: Trip, send: Callable[[Route], Awaitable[T]], evidence_after: float) -> T:
        """Send a try of a call over a route, and let its endpoint know how it went."""
        route, lease = self.begin(trip)
        try:
            value = await send(route)
        except BaseException as error:
            self.end(trip, lease, error, evidence_after)
            raise
        self.end(trip, lease, None, evidence_after)
        return value

    def begin(self, trip: Trip) -> tuple[Route, Lease]:
        """The route of the next try of a call, and the lease of its endpoint. Raises NotSent where it has none."""
        endpoints = self.endpoints
        if self.dead_end(trip):  # it has left the list while the call was waiting
            raise NotSent("the endpoint that knows its key is no longer there")
        endpoint = trip.stays
        if endpoint is None and not trip.tried and self._has_home(trip.request):
            endpoint = self._home(trip.request)
        if endpoint is None and trip.tried:
            endpoint = endpoints.choose(trip.tried)
        if endpoint is None:
            endpoint = endpoints.choose()
        assert endpoint is not None  # noqa: S101 - without exclusions there always is one
        trip.tried.append(endpoint)
        return self._routes[endpoint.url], endpoint.begin(endpoints.clock())

    def end(
        self, trip: Trip, lease: Lease, error: BaseException | None, evidence_after: float, latency: float | None = None
    ) -> None:
        """A try is over."""
        now = self.endpoints.clock()
        if error is None:
            lease.end(now, "success", latency)
            return
        lease.end(now, verdict_of(error, lease.lasted(now), evidence_after))
        not_sent = isinstance(error, NotSent) or getattr(error, "not_sent", False)
        if self._has_home(trip.request) and not not_sent:
            trip.stays = trip.tried[-1]

    def elsewhere(self, trip: Trip, error: BaseException) -> bool:
        """Whether the next try of a call goes to an endpoint that it has not tried.

        Who has asked for too much is told so for all of them: 429 speaks of the caller, 503 of the one who says it.
        """
        if trip.stays is not None or reason_of(error) == "throttled" or self.only is not None:
            return False
        return self.endpoints.choose(trip.tried) is not None

    def dead_end(self, trip: Trip) -> bool:
        """Whether a call would have to go on where it can no longer go."""
        return trip.stays is not None and type(trip.stays.state) is Gone

    def _has_home(self, request: HttpRequest) -> bool:
        return not (request.idempotency_key is None or IDEMPOTENT[request.method] or self._policy.endpoints.share_keys)

    def _home(self, request: HttpRequest) -> Endpoint:
        """The endpoint of a key: whatever its health, or a key would be new to another one. One drained is no home."""
        key = str(request.idempotency_key).encode()
        homes = [url for url in self._routes if not self.endpoints[url].drained]
        url = max(homes, key=lambda url: blake2b(url.encode(), key=blake2b(key).digest()).digest())
        return self.endpoints[url]

    # -- the list

    def _read(self, urls: Urls) -> tuple[dict[str, Route], list[tuple[str, float]]]:
        field = f"{self._name} url"
        routes: dict[str, Route] = {}
        weights: list[tuple[str, float]] = []
        if not isinstance(urls, str) and not isinstance(urls, Iterable):
            raise ConfigError(field, f"{type(urls).__name__} is no URL", 'give "https://host/path", or a list of them')
        given = [urls] if isinstance(urls, str) else list(urls)
        if not given:
            raise ConfigError(field, "there is no base URL", 'give "https://host/path", or a list of them')
        for url, weight in with_weights(given):
            route = Route(BaseUrl(field, url), self._policy)
            routes[route.prefix] = route
            weights.append((route.prefix, weight))
        return routes, weights

    def _tell(self, url: str, before: StateName, after: StateName, at: float) -> None:  # noqa: ARG002
        level = logging.WARNING if after in {"ejected", "down"} else logging.INFO
        log.log(level, "%s: endpoint %s was %s, is %s", self._name, url, before, after)


def only_of(routes: dict[str, Route]) -> Route | None:
    """The one there is, if there is one only."""
    return next(iter(routes.values())) if len(routes) == 1 else None


def verdict_of(error: BaseException, took: float, evidence_after: float) -> Verdict:
    """What a try that raised says of its endpoint."""
    if isinstance(error, (Refused, CancelledError)) or not isinstance(error, Exception):
        return "nothing"
    if reason_of(error) == "throttled":
        return "nothing"  # it is well; the caller asks for too much
    if waited_for_of(error) == "deadline" and took < evidence_after:
        return "nothing"  # a caller in a hurry
    return "failure"
