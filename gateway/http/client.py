"""An upstream that is an HTTP API: its methods are operations, a place in its bulkhead is a connection."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Task, wait
from collections.abc import AsyncIterable, Callable
from contextvars import Context
from dataclasses import replace
from functools import cached_property, partial
from time import monotonic
from typing import Any, ParamSpec, TypeVar, cast

from gateway.context import Clock, try_here
from gateway.http.checks import Checks
from gateway.http.connections import tls_of
from gateway.http.declared import Declared, DeclaredOperation
from gateway.http.endpoints import EndpointsSnapshot
from gateway.http.method import Method
from gateway.http.reply import HttpReply
from gateway.http.request import IDEMPOTENT, Data, Headers, HttpRequest, Params, checked, confined, request_of
from gateway.http.routes import Routes, Trip, Urls
from gateway.http.session import Session
from gateway.http.statuses import Statuses
from gateway.http.stream import HttpStream, StreamOperation, stream_name
from gateway.lane import Timer
from gateway.operation import Operation
from gateway.outcome import ConfigError, NotSent, Refused
from gateway.policy import HttpPolicy, Policy, TimeoutPolicy
from gateway.terms import check_terms
from gateway.upstream import Owner, Upstream

P = ParamSpec("P")
T = TypeVar("T")


class HttpUpstream(Upstream):
    """An HTTP API. Made by `Gateway.http(name, url, policy=..., http=...)`.

        ratings = gate.http("ratings", "https://ratings.example/v1")

        reply = await ratings.get("/users/1", params={"deep": True})
        answer = await ratings.get.ask("/users/1")

        @ratings.get("/users/{user_id}", into=UserRating, fallback=[LastGood(max_age=300)])
        async def user_rating(user_id: str) -> UserRating: ...

    It is an `Upstream` in all else, and has `operation`s of any kind.
    """

    def __init__(self, name: str, url: Urls, policy: Policy, http: HttpPolicy, owner: Owner) -> None:
        if not isinstance(http, HttpPolicy):
            raise ConfigError(f"{name} http", f"{http!r} is no HttpPolicy", "give HttpPolicy(...)")
        if http.health_path is not None:
            confined(http.health_path)
        checked({http.deadline_header or "X": "", http.idempotency_header: ""})  # names, once and for all requests
        self.http = http
        self.routes = Routes(name, url, http, monotonic)
        self._statuses = Statuses(http.statuses)
        self._tls = tls_of(name, http)
        self._session: Session | None = None
        self._checks: Task[None] | None = None
        super().__init__(name, policy, owner)

    @cached_property
    def get(self) -> Method:
        """GET: idempotent."""
        return self._method("GET")

    @cached_property
    def head(self) -> Method:
        """HEAD: idempotent; the reply has no body."""
        return self._method("HEAD")

    @cached_property
    def options(self) -> Method:
        """OPTIONS: idempotent."""
        return self._method("OPTIONS")

    @cached_property
    def put(self) -> Method:
        """PUT: idempotent."""
        return self._method("PUT")

    @cached_property
    def delete(self) -> Method:
        """DELETE: idempotent."""
        return self._method("DELETE")

    @cached_property
    def post(self) -> Method:
        """POST: not idempotent, unless it has an `idempotency_key`; those calls are the operation "post with key"."""
        return self._method("POST")

    @cached_property
    def patch(self) -> Method:
        """PATCH: not idempotent, unless it has an `idempotency_key`; those calls are the operation "patch with key"."""
        return self._method("PATCH")

    def request(self, method: str) -> Method:
        """The operation of a method by its name: `await up.request("GET")("/users/1")`."""
        if method.upper() not in IDEMPOTENT:
            raise ConfigError(f"{self.name}.request", f"{method!r} is no method here", f"give {', '.join(IDEMPOTENT)}")
        found: Method = getattr(self, method.lower())
        return found

    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        json: object = None,
        data: Data | AsyncIterable[bytes] | None = None,
        idempotency_key: str | bool | None = None,
    ) -> HttpStream:
        """An answer that is read piece by piece, holding its place until the block ends; no limit on its size.

            async with archive.stream("GET", "/export") as reply:
                async for piece in reply:
                    ...

        `data` may come piece by piece, too. Limits: `timeout.connect`, `timeout.read` for silence, `http.stream_for`
        for the whole. Raises as a call does; ConfigError or TypeError at once for what cannot be sent.
        """
        self.request(method)
        method = method.upper()
        upload = data if isinstance(data, AsyncIterable) else None
        whole = None if isinstance(data, AsyncIterable) else data
        request = request_of(
            method, path, params=params, headers=headers, json=json, data=whole, idempotency_key=idempotency_key
        )
        keyed = request.idempotency_key is not None and not IDEMPOTENT[method]
        operation = self._operations.get(stream_name(method, keyed=keyed))
        if not isinstance(operation, StreamOperation):
            operation = StreamOperation(self, self.policy, method, keyed=keyed)
            self._adopt(operation)
        return HttpStream(operation, request, upload)

    def keyed(self, method: str) -> Method:
        """The operation of a method with an idempotency key, which makes it one that may be repeated."""
        name = f"{method.lower()} with key"
        known = self._operations.get(name)
        if isinstance(known, Method):
            return known
        method_with_key = Method(self, self.policy, method, keyed=True)
        self._adopt(method_with_key)
        return method_with_key

    def declare(self, function: Callable[P, Any], said: Declared[T]) -> Operation[P, T]:
        """Register a declared operation. Raises ConfigError."""
        if not callable(function) or not hasattr(function, "__name__"):
            raise ConfigError(f"{self.name}{said.path}", f"{function!r} is no function", "decorate a function")
        check_terms(f"{self.name}.{said.name or function.__name__}", replace(said, idempotent=said.repeats))
        operation = DeclaredOperation(self, self.policy, function, said)
        self._adopt(operation)
        return cast("Operation[P, T]", operation)

    def session(self) -> Session:
        """The connections of the loop that is open now."""
        if self._session is None:
            self._session = Session(self.http, statuses=self._statuses, tls=self._tls, clock=self.clock)
        return self._session

    def limit_here(self) -> Timer | None:
        """The limit of the try of this upstream that this code runs in."""
        limit = try_here()
        if not isinstance(limit, Timer) or limit.world not in self._lanes.values():
            return None
        return limit if limit in limit.pending or limit.fired_at is not None else None  # else a task outlived it

    async def send_within(self, request: HttpRequest, limit: Timer) -> HttpReply:
        """Send a request as a part of a try that runs: under its place, its verdict, its limit."""
        try:
            reply = await self._send_within(request)
        except (NotSent, Refused):
            raise
        except BaseException as error:
            self._note(request, limit, sent=not getattr(error, "not_sent", False))
            raise
        self._note(request, limit, sent=True)
        return reply

    async def _send_within(self, request: HttpRequest) -> HttpReply:
        timeout, only = self._policy.timeout, self.routes.only
        if only is not None:
            return await self.session().send(request, timeout, only, within=True)
        return await self.send_on(Trip(request), timeout, within=True)

    async def send_on(self, trip: Trip, timeout: TimeoutPolicy, *, within: bool = False) -> HttpReply:  # noqa: ASYNC109
        """The next try of a call, where there are several endpoints to choose from."""
        send = partial(self.session().send, trip.request, timeout, within=within)
        return await self.routes.through(trip, send, self._policy.breaker.evidence_within(timeout.attempt))

    @property
    def endpoints(self) -> EndpointsSnapshot:
        """The endpoints as they are now: their load, latency, health."""
        return self.routes.endpoints.snapshot()

    def replace_endpoints(self, urls: Urls) -> None:
        """Go on with other base URLs: calls in flight end where they are, the next try goes by the new list.

        What is in both lists keeps what is known of it; what is new has a ramp. Raises ConfigError, and then nothing
        has changed.
        """
        self.routes.replace(urls)

    def drain_endpoint(self, url: str) -> None:
        """Send no new calls to one of the endpoints, until `restore_endpoint`; those in flight end where they are.

        From any thread. Raises UnknownName, and ConfigError for the last one that calls can go to: `isolate()` then.
        """
        self.gateway.on_its_loop(partial(self.routes.drain, url))

    def restore_endpoint(self, url: str) -> None:
        """Send calls to an endpoint again, few at first. From any thread. Raises UnknownName."""
        self.gateway.on_its_loop(partial(self.routes.restore, url))

    def bind(self, loop: AbstractEventLoop, clock: Clock) -> None:
        """Live on this loop from now on."""
        super().bind(loop, clock)
        self.routes.endpoints.clock = clock
        self._checks = None  # an older one went with its loop
        if self.http.health_path is not None:
            self._checks = loop.create_task(
                Checks(self).run(), name=f"gateway: health of {self.name}", context=Context()
            )
        session, self._session = self._session, None
        if session is not None:
            session.abandon()

    async def disconnect(self) -> None:
        """Close all connections."""
        checks, self._checks = self._checks, None
        if checks is not None and not checks.get_loop().is_closed():
            checks.cancel()
            await wait([checks])
        session, self._session = self._session, None
        if session is None:
            return
        if self._bound_to is None or self._bound_to.is_closed():
            session.abandon()
        else:
            await session.close()

    @staticmethod
    def _note(request: HttpRequest, limit: Timer, *, sent: bool) -> None:
        """What follows in this try cannot be "not sent" any more."""
        if sent and request.idempotency_key is None and not IDEMPOTENT[request.method]:
            limit.sent = True

    def _method(self, method: str) -> Method:
        operation = Method(self, self.policy, method)
        self._adopt(operation)
        return operation

    def _adopt(self, operation: Operation[..., Any]) -> None:
        self._check_free(f"{self.name}.{operation.name}", operation.name)
        super()._adopt(operation)
