"""One request over the wire, and its answer: the phase it has reached decides what its failure means.

While a connection is looked for, nothing is sent: whatever ends it then, the connect limit, that of the try or the
deadline, is a `NotSent`. From the moment a connection was handed out the request counts as sent.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError, get_running_loop
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import inf
from ssl import SSLContext
from types import MappingProxyType
from typing import Any, cast

from aiohttp import (
    ClientError,
    ClientRequest,
    ClientTimeout,
)
from multidict import CIMultiDict
from yarl import URL

from gateway.context import AMBIENT, Clock, Deadline, tries_under, whole_ms
from gateway.http.addresses import followed, url_of
from gateway.http.connections import NO_LIMIT, Broken, Connections, Uploaded
from gateway.http.errors import (
    BadReply,
    StatedNotDone,
    Unreachable,
)
from gateway.http.failures import failure_of
from gateway.http.reply import HttpRefused, HttpReply
from gateway.http.request import HttpRequest, Pairs, checked
from gateway.http.routes import Route
from gateway.http.silence import Silence
from gateway.http.statuses import Statuses, reason_for, retry_after_in
from gateway.http.wire import Arrival, Response, Wire, exchange
from gateway.outcome import Outcome
from gateway.policy import HttpPolicy, TimeoutPolicy

log = logging.getLogger("gateway")

AT_ONCE = 64 * 1024
"""Bytes of a body that are written together with the headers: as many as asyncio takes before it asks for a pause."""
PIECEMEAL = 1024 * 1024
"""Bytes; a longer body is written in pieces, so that the loop can breathe (aiohttp warns of anything else)."""
WIRES_KEPT = 1000
NONE: Mapping[str, str] = MappingProxyType({})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
FOLLOWED = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on waiting of one policy: for a connection, as aiohttp takes it, and for an answer."""

    timeout: ClientTimeout
    silence: Silence


class Session:
    """The connections of one upstream on one loop, and how requests go over them."""

    def __init__(self, policy: HttpPolicy, *, statuses: Statuses, tls: SSLContext | None, clock: Clock) -> None:
        self.connections = Connections(policy, tls=tls, clock=clock)
        self._policy = policy
        self._statuses = statuses
        self._clock = clock
        self._limits: dict[tuple[float, float], Limits] = {}  # by connect and read: as few as there are policies
        self._wires: dict[tuple[Route, str], Wire] = {}
        self._params = tuple(policy.params.items())
        self._loop = get_running_loop()
        self._tell = telling(policy)
        self._tells = () if policy.deadline_header is None else (policy.deadline_header, Deadline.ATTEMPTS)

    async def send(
        self,
        request: HttpRequest,
        timeout: TimeoutPolicy,  # noqa: ASYNC109
        route: Route,
        *,
        within: bool = False,
    ) -> HttpReply:
        """The reply to a request. Raises HttpRefused, a NotSent, or what `gateway.http.errors` has for the rest.

        `within` a user's function a cancel stays one, whoever sent it: the function must end with its limit on time.
        """
        started = self._clock()
        try:
            response = await self.open(request, request.body, timeout, route)
            body = response.whole(self._policy.max_body) if type(response) is Arrival else None
            if body is None:
                body = await self._read(response, request.method)
            reply = HttpReply(response.status, lines_of(response), body)
        except (CancelledError, ClientError, OSError, Unreachable, BadReply) as error:
            if within and isinstance(error, CancelledError):
                raise
            failure = self.failure(error, request, route, timeout, self._clock() - started)
        else:
            if 200 <= reply.status < 400 and not self._policy.statuses:  # noqa: PLR2004 - as the table says, and soon
                return reply
            refusal = self.refusal(reply, request, route)
            if refusal is None:
                return reply
            raise refusal
        try:
            raise failure  # here it has no context: aiohttp's errors hold addresses and headers with all their secrets
        finally:
            del failure  # its traceback leads to this frame

    def open(
        self, request: HttpRequest, body: object, timeout: TimeoutPolicy, route: Route
    ) -> Coroutine[Any, Any, Response]:
        """The answer as far as its headers; its body is still to be read."""
        limits = self._limits.get((timeout.connect, timeout.read)) or self._limits_of(timeout)
        follows = self._policy.redirects > 0 and request.method in FOLLOWED
        return (self._follow if follows else self._exchange)(request, None, body, limits, route)

    async def _follow(
        self, request: HttpRequest, url: URL | None, body: object, limits: Limits, route: Route
    ) -> Response:
        """Send it to where it says, and to where that sends it, as far as that is allowed."""
        response = await self._exchange(request, url, body, limits, route)
        url, left = self._url(request, route), self._policy.redirects
        while left > 0 and response.status in REDIRECTS:
            target = followed(url, response.headers.get("Location"))
            if target is None:
                break
            response.close()  # its body may be of any length
            url = target
            left -= 1
            response = await self._exchange(request, url, body, limits, route)
        return response

    async def _exchange(
        self, request: HttpRequest, url: URL | None, body: object, limits: Limits, route: Route
    ) -> Response:
        """Send it once, to where it says or where a redirect led, as far as the headers of its answer.

        Not by aiohttp's own `ClientSession._request`: that would follow redirects, keep cookies, time all of it a
        second time and send a GET again after a lost connection, unseen by any policy.
        """
        at_once = body is None or (isinstance(body, bytes) and len(body) <= AT_ONCE)
        if not at_once or route.proxy is not None:
            return await self._upload(request, url or self._url(request, route), body, limits, route)
        wire = self._wires.get((route, request.method)) or self._wire(request.method, route)
        target = None
        if url is None and not self._params and not request.params:
            target = wire.target(request.path)
        if target is None:
            target = (url or self._url(request, route)).raw_path_qs
        whole: Any = body
        head = wire.head(target, self._headers(request, route), self._tell(), whole)
        connection = await self.connections.connect(wire.way, [], limits.timeout)
        response = await exchange(
            connection,
            head if whole is None else head + whole,
            silence=limits.silence,
            head=request.method == "HEAD",
            policy=self._policy,
        )
        self._learn(response, wire.way.url)
        return response

    async def _upload(self, request: HttpRequest, url: URL, body: object, limits: Limits, route: Route) -> Response:
        """Send what takes a while to write, or goes through a proxy: by aiohttp's request, writer and answer."""
        headers = self._headers(request, route)
        headers = CIMultiDict(route.headers if headers is None else headers)
        headers.update(self._tell())
        whole = isinstance(body, bytes) and len(body) > PIECEMEAL
        wire = ClientRequest(
            request.method,
            url,
            headers=headers,
            data=BytesIO(cast("bytes", body)) if whole else body,
            loop=self._loop,
            response_class=Uploaded,
            proxy=route.proxy,
        )
        connection = await self.connections.connect(wire, [], limits.timeout)
        try:
            line: Any = connection.protocol
            line.set_response_params(
                skip_payload=request.method == "HEAD",
                read_until_eof=True,
                read_timeout=limits.timeout.sock_read,
                max_line_size=self._policy.max_header,
                max_field_size=self._policy.max_header,
                max_headers=self._policy.max_headers,
            )
            response: Any = await wire.send(connection)
            response.line = line
            try:
                await response.start(connection)
            except BaseException:
                response.close()
                raise
        except BaseException:
            connection.close()
            raise
        self._learn(response, url)
        return cast("Uploaded", response)

    async def open_stream(self, request: HttpRequest, body: object, timeout: TimeoutPolicy, route: Route) -> Response:  # noqa: ASYNC109
        """As `send`, but a success is given as soon as its headers are here."""
        started = self._clock()
        try:
            response = await self.open(request, body, timeout, route)
            retry_after = retry_after_in(response.headers.get("Retry-After"))
            if self._statuses.meaning(response.status, retry_after) is Outcome.SUCCESS:
                return response
            reply = HttpReply(response.status, lines_of(response), await self._read(response, request.method))
        except (CancelledError, ClientError, OSError, Unreachable, BadReply) as error:
            failure: BaseException | None = self.failure(error, request, route, timeout, self._clock() - started)
        else:
            failure = self.refusal(reply, request, route)
        try:
            raise cast("BaseException", failure)
        finally:
            del failure

    def refusal(self, reply: HttpReply, request: HttpRequest, route: Route) -> Exception | None:
        """The error that a status means; None for a success."""
        retry_after = retry_after_in(reply.headers.get("Retry-After"))
        meaning = self._statuses.meaning(reply.status, retry_after)
        what = what_of(request, route)
        if meaning is Outcome.SUCCESS:
            return None
        if meaning is Outcome.REFUSED:
            return HttpRefused(what, reply=reply, retry_after=retry_after)
        if meaning is Outcome.FAILED:
            return StatedNotDone(what, reply=reply, retry_after=retry_after, reason=reason_for(reply.status))
        return BadReply(f"{what}: {reply.status}", reply=reply, retry_after=retry_after)

    @staticmethod
    def failure(
        error: BaseException, request: HttpRequest, route: Route, timeout: TimeoutPolicy, took: float
    ) -> BaseException:
        """Our own error for what ended a request: it says what was waited for, how long, and where."""
        return failure_of(error, what_of(request, route), silent_for=timeout.read, took=took)

    async def close(self) -> None:
        """Close all connections."""
        self._stop()
        await self.connections.close()

    def abandon(self) -> None:
        """Forget it: its loop was closed under it, and with that its connections."""
        self._stop()
        closing = self.connections.close()
        try:
            closing.send(None)  # on a closed loop there is nothing to wait for
        except StopIteration:
            pass
        finally:
            closing.close()

    def _stop(self) -> None:
        for limits in self._limits.values():
            limits.silence.stop()

    def _limits_of(self, timeout: TimeoutPolicy) -> Limits:
        limits = self._limits[timeout.connect, timeout.read] = Limits(
            ClientTimeout(
                connect=None if timeout.connect == inf else timeout.connect,
                sock_read=None if timeout.read == inf else timeout.read,
                ceil_threshold=NO_LIMIT,  # nothing is rounded up
            ),
            Silence(timeout.read, loop=self._loop, clock=self._clock),
        )
        return limits

    def _wire(self, method: str, route: Route) -> Wire:
        if len(self._wires) >= WIRES_KEPT:  # endpoints come and go
            self._wires.clear()
        wire = self._wires[route, method] = Wire(
            method, route, loop=self._loop, closes=self.connections.force_close, tells=self._tells
        )
        return wire

    def _url(self, request: HttpRequest, route: Route) -> URL:
        url = url_of(route.prefix, request.path)
        return url.extend_query((*self._params, *request.params)) if self._params or request.params else url

    def _learn(self, response: Response, url: URL) -> None:
        keep_alive = response.headers.get("Keep-Alive")
        if keep_alive is not None:
            self.connections.learn(url.raw_host, url.port, keep_alive)

    def _headers(self, request: HttpRequest, route: Route) -> CIMultiDict[str] | None:
        """What its caller says of it, and what the policy says where he does not; None: just what the policy says."""
        key = request.idempotency_key
        context = NONE if self._policy.propagate is None else propagated(self._policy.propagate)
        if not request.headers and key is None and not context:
            return None
        headers = CIMultiDict(route.headers)
        headers.update(context)
        for name, _ in request.headers:
            headers.popall(name, None)
        headers.extend(request.headers)
        if key is not None:
            headers[self._policy.idempotency_header] = key
        return headers

    async def _read(self, response: Response, method: str) -> bytes:
        """The body, if it is not too long: once unpacked, whatever the server says of its length."""
        most = self._policy.max_body
        headers = response.headers
        length = headers.get("Content-Length")
        if method == "HEAD" or (length is not None and int(length) <= most and "Content-Encoding" not in headers):
            return await response.read()  # of a known length: it comes whole, or as an error
        body = bytearray()
        too_long = length is not None and int(length) > most
        try:
            if not too_long:
                async for piece in pieces_of(response):
                    body += piece
                    too_long = len(body) > most
                    if too_long:
                        break
        except BaseException:
            response.close()
            raise
        if too_long:
            response.close()
            raise BadReply(f"a body of more than {most:.0f} bytes")
        return bytes(body)


def propagated(propagate: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
    """What goes along from the context. What goes wrong with that is no reason to send nothing."""
    try:
        given = propagate()
        return dict(checked(given)) if len(given) > 0 else NONE
    except Exception:
        log.exception("HttpPolicy.propagate failed: the request goes without its headers")
        return NONE


def lines_of(response: Response) -> Pairs:
    """The header lines, in plain strings: the multidict's own kind of name is no data that a store could hold."""
    return tuple(
        [(str(name), value if value.isascii() else as_text(value)) for name, value in response.headers.items()]
    )


def as_text(value: str) -> str:
    """What a header says where it is not ASCII: UTF-8 as aiohttp reads it, else Latin-1, as of old (RFC 9110, 5.5)."""
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8: halves of characters, which no store could hold
        return value.encode(errors="surrogateescape").decode("latin-1")
    return value


def what_of(request: HttpRequest, route: Route) -> str:
    """A request in words, without what may be a secret."""
    path = request.path.partition("?")[0]
    return f"{request.method} {route.prefix}{'' if path.startswith('/') or not path else '/'}{path}"


async def pieces_of(response: Response) -> AsyncIterator[bytes]:
    """The body as it comes, unpacked. Raises ClientError where it broke."""
    try:
        async for piece in response.content.iter_any():
            yield piece
    except RuntimeError as error:  # so aiohttp tells of a body that is no HTTP
        raise Broken("garbage within the body") from error
    if "Content-Length" not in response.headers:
        response.check_whole()


def telling(policy: HttpPolicy) -> Callable[[], Pairs]:
    """A function that tells a server how much time is left, and how many tries: the headers of the moment."""
    if policy.deadline_header is None:
        return lambda: ()
    name, in_ms = policy.deadline_header, policy.deadline_unit == "ms"

    def tell() -> Pairs:
        ambient = AMBIENT.get()
        if ambient is None:
            return ()
        told: Pairs = ()
        left = ambient.at - ambient.world.clock()
        if left != inf:
            whole = whole_ms(left)
            told = ((name, str(whole) if in_ms else f"{whole / 1000:.3f}"),)
        tries = tries_under(ambient)
        if tries is not None and tries.left != inf:
            told = (*told, (Deadline.ATTEMPTS, str(int(tries.left))))
        return told

    return tell
