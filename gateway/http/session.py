"""One request over the wire, and its answer: the phase it has reached decides what its failure means.

While a connection is looked for, nothing is sent: whatever ends it then, the connect limit, that of the try or the
deadline, is a `NotSent`. From the moment a connection was handed out the request counts as sent.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError, get_running_loop
from collections.abc import AsyncIterator, Callable, Mapping
from io import BytesIO
from math import inf
from ssl import SSLContext
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
from gateway.http.connections import NO_LIMIT, Broken, Connections, Response
from gateway.http.errors import (
    BadReply,
    StatedNotDone,
    Unreachable,
)
from gateway.http.failures import failure_of
from gateway.http.reply import HttpRefused, HttpReply
from gateway.http.request import HttpRequest, Pairs, checked
from gateway.http.routes import Route
from gateway.http.statuses import Statuses, reason_for, retry_after_in
from gateway.outcome import Outcome
from gateway.policy import HttpPolicy, TimeoutPolicy

log = logging.getLogger("gateway")

PIECEMEAL = 1024 * 1024
"""Bytes; a longer body is written in pieces, so that the loop can breathe (aiohttp warns of anything else)."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})
FOLLOWED = frozenset({"GET", "HEAD"})


class Session:
    """The connections of one upstream on one loop, and how requests go over them."""

    def __init__(self, policy: HttpPolicy, *, statuses: Statuses, tls: SSLContext | None, clock: Clock) -> None:
        self.connections = Connections(policy, tls=tls, clock=clock)
        self._policy = policy
        self._statuses = statuses
        self._clock = clock
        self._limits: dict[tuple[float, float], ClientTimeout] = {}  # by connect and read: as few as there are policies
        self._params = tuple(policy.params.items())
        self._loop = get_running_loop()
        self._make_request = timed(policy) if policy.deadline_header is not None else ClientRequest

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
            reply = HttpReply(response.status, lines_of(response), await self._read(response))
        except (CancelledError, ClientError, OSError, Unreachable, BadReply) as error:
            if within and isinstance(error, CancelledError):
                raise
            failure = self.failure(error, request, route, timeout, self._clock() - started)
        else:
            if reply.status < 400 and not self._policy.statuses:  # noqa: PLR2004 - as the table says, and soon
                return reply
            refusal = self.refusal(reply, request, route)
            if refusal is None:
                return reply
            raise refusal
        try:
            raise failure  # here it has no context: aiohttp's errors hold addresses and headers with all their secrets
        finally:
            del failure  # its traceback leads to this frame

    async def open(self, request: HttpRequest, body: object, timeout: TimeoutPolicy, route: Route) -> Response:  # noqa: ASYNC109
        """The answer as far as its headers; its body is still to be read."""
        limits = self._limits.get((timeout.connect, timeout.read)) or self._limits_of(timeout)
        url = url_of(route.prefix, request.path)
        if self._params or request.params:
            url = url.extend_query((*self._params, *request.params))
        left = self._policy.redirects if request.method in FOLLOWED else 0
        while True:
            whole = isinstance(body, bytes) and len(body) > PIECEMEAL
            response = await self._exchange(
                request, url, BytesIO(cast("bytes", body)) if whole else body, limits, route
            )
            keep_alive = response.headers.get("Keep-Alive")
            if keep_alive is not None:
                self.connections.learn(url.raw_host, url.port, keep_alive)
            if left == 0 or response.status not in REDIRECTS:
                return response
            target = followed(url, response.headers.get("Location"))
            if target is None:
                return response
            response.close()  # its body may be of any length
            url = target
            left -= 1

    async def _exchange(
        self, request: HttpRequest, url: URL, body: object, limits: ClientTimeout, route: Route
    ) -> Response:
        """Send it once, as far as the headers of its answer.

        These are the steps of aiohttp's own `ClientSession._request` without the rest of that: it would follow
        redirects, keep cookies, time all of it a second time and send a GET again after a lost connection, unseen by
        any policy; and it takes 16 of its 60 us. All names are public ones.
        """
        wire = self._make_request(
            request.method,
            url,
            headers=self._headers(request, route),
            data=body,
            loop=self._loop,
            response_class=Response,
            proxy=route.proxy,
        )
        connection = await self.connections.connect(wire, [], limits)
        try:
            line: Any = connection.protocol
            line.set_response_params(
                skip_payload=request.method == "HEAD",
                read_until_eof=True,
                read_timeout=limits.sock_read,
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
        return cast("Response", response)

    async def open_stream(self, request: HttpRequest, body: object, timeout: TimeoutPolicy, route: Route) -> Response:  # noqa: ASYNC109
        """As `send`, but a success is given as soon as its headers are here."""
        started = self._clock()
        try:
            response = await self.open(request, body, timeout, route)
            retry_after = retry_after_in(response.headers.get("Retry-After"))
            if self._statuses.meaning(response.status, retry_after) is Outcome.SUCCESS:
                return response
            reply = HttpReply(response.status, lines_of(response), await self._read(response))
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
        await self.connections.close()

    def abandon(self) -> None:
        """Forget it: its loop was closed under it, and with that its connections."""
        closing = self.connections.close()
        try:
            closing.send(None)  # on a closed loop there is nothing to wait for
        except StopIteration:
            pass
        finally:
            closing.close()

    def _limits_of(self, timeout: TimeoutPolicy) -> ClientTimeout:
        limits = self._limits[timeout.connect, timeout.read] = ClientTimeout(
            connect=None if timeout.connect == inf else timeout.connect,
            sock_read=None if timeout.read == inf else timeout.read,
            ceil_threshold=NO_LIMIT,  # nothing is rounded up
        )
        return limits

    def _headers(self, request: HttpRequest, route: Route) -> CIMultiDict[str]:
        """What its caller says of it, and what the policy says where he does not."""
        key = request.idempotency_key
        if not request.headers and key is None and self._policy.propagate is None:
            return route.headers
        headers = CIMultiDict(route.headers)
        if self._policy.propagate is not None:
            headers.update(propagated(self._policy.propagate))
        for name, _ in request.headers:
            headers.popall(name, None)
        headers.extend(request.headers)
        if key is not None:
            headers[self._policy.idempotency_header] = key
        return headers

    async def _read(self, response: Response) -> bytes:
        """The body, if it is not too long: once unpacked, whatever the server says of its length."""
        most = self._policy.max_body
        headers = response.headers
        length = headers.get("Content-Length")
        if response.method == "HEAD" or (
            length is not None and int(length) <= most and "Content-Encoding" not in headers
        ):
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
        return dict(checked(propagate()))
    except Exception:
        log.exception("HttpPolicy.propagate failed: the request goes without its headers")
        return {}


def lines_of(response: Response) -> Pairs:
    """The header lines, in plain strings: the multidict's own kind of name is no data that a store could hold."""
    return tuple([(str(name), value) for name, value in response.headers.items()])


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


def timed(policy: HttpPolicy) -> type[ClientRequest]:
    """A kind of request that says how much time is left; here, since a header that aiohttp copies twice costs more."""
    name, in_ms = str(policy.deadline_header), policy.deadline_unit == "ms"

    class TimedRequest(ClientRequest):
        def update_auto_headers(self, skip_auto_headers: Any) -> None:
            super().update_auto_headers(skip_auto_headers)
            ambient = AMBIENT.get()
            if ambient is None:
                return
            left = ambient.at - ambient.world.clock()
            if left != inf:
                whole = whole_ms(left)
                self.headers[name] = str(whole) if in_ms else f"{whole / 1000:.3f}"
            tries = tries_under(ambient)
            if tries is not None and tries.left != inf:
                self.headers[Deadline.ATTEMPTS] = str(int(tries.left))

    return TimedRequest
