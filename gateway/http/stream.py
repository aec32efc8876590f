"""An answer that is read piece by piece: `async with up.stream("GET", "/export") as reply:`.

It holds its place, and its connection, until the block ends. Up to the headers it is a call like any other, with
retries where they are safe; from there on nothing is tried again and nobody else answers.

As there is one place where a call lives, `Operation._ask`, a stream is one of its calls, driven by hand as a slot's
is (`gateway.slot`): to where the headers are here, and, when the block is over, to its end.
"""

from __future__ import annotations

from asyncio import current_task
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

from aiohttp import ClientError

from fallbacks.answer import Tier
from gateway.call import Call
from gateway.http.request import IDEMPOTENT, HttpRequest
from gateway.http.routed import RoutedOperation
from gateway.http.routes import Route, Trip
from gateway.http.session import Session, pieces_of
from gateway.operation import Operation
from gateway.outcome import ConfigError, Refused
from gateway.policy import Policy, TimeoutPolicy
from gateway.slot import BEGUN, stop_here, until_begun
from gateway.terms import Terms

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

    from gateway.http.client import HttpUpstream
    from gateway.http.wire import Response


class BlockLeft(Refused):
    """The block, or what it uploads, ended by an error of its own, which says nothing of the upstream."""


class HttpStream:
    """An answer whose body is read piece by piece; made by `HttpUpstream.stream`, entered once.

    `async for piece in reply:` gives bytes as they come; while nobody reads on, the server is held back. Raises what a
    call raises, from `async with` or at the end of its block; an error of the iterable that is sent is raised as it is.
    """

    def __init__(self, operation: StreamOperation, request: HttpRequest, upload: AsyncIterable[bytes] | None) -> None:
        self._operation = operation
        self._request = request
        self._upload = upload
        self.trip = Trip(request)
        self._route: Route
        self._call: Coroutine[Any, Any, Any] | None = None
        self._task: object = None
        self._session: Session
        self._error: BaseException | None = None  # of the connection, told while reading
        self._upload_error: Exception | None = None  # of the caller's own iterable
        self._response: Response | None = None
        self.final = False  # from here on nothing is tried again

    @property
    def status(self) -> int:
        """The status."""
        return self._here().status

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The headers; read-only, in which case does not matter."""
        return self._here().headers

    def _here(self) -> Response:
        if self._response is None:
            raise RuntimeError("a stream has headers within its `async with` block")
        return self._response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        response, session = self._here(), self._session
        try:
            async for piece in pieces_of(response):
                yield piece
        except (ClientError, OSError) as error:
            if self._upload_error is None:
                self._error = session.failure(error, self._request, self._route, self._operation.timeout, 0.0)
        else:
            return
        raise self._error or cast("Exception", self._upload_error)

    async def perform(self) -> None:
        """The work of the call: open, wait for the end of the block, close."""
        body = self._request.body if self._upload is None else self._pieces(self._upload)
        timeout = self._operation.timeout
        routes = self._operation.upstream.routes
        self._session = self._operation.upstream.session()
        self._route, lease = routes.begin(self.trip)
        try:
            self._response = response = await self._opened(body, timeout)
            headers_after = lease.lasted(routes.endpoints.clock())
            self.final = True
            try:
                await stop_here(BEGUN)
            finally:
                response.close()
        except BaseException as error:
            routes.end(self.trip, lease, error, self._operation.evidence_after)
            raise
        routes.end(self.trip, lease, None, 0.0, headers_after)

    async def _opened(self, body: object, timeout: TimeoutPolicy) -> Response:  # noqa: ASYNC109
        try:
            response = await self._session.open_stream(self._request, body, timeout, self._route)
        except OSError:  # that is how a connection ends under a body that goes no further
            if self._upload_error is None:
                raise
        else:
            if self._upload_error is None:
                return response
            response.close()
        raise BlockLeft("the body raised an error of its own")

    async def _pieces(self, upload: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        self.final = True  # what was taken from it cannot be sent again
        try:
            async for piece in upload:
                if not isinstance(piece, bytes | bytearray | memoryview):
                    raise TypeError(f"a body comes in bytes, and there is a {type(piece).__name__} in it")  # noqa: TRY301
                yield piece
        except Exception as error:
            self._upload_error = error
            if self._response is not None:  # who reads on would wait for what the server, that waits too, never says
                self._response.close()
            raise

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError("a stream is entered once; make another")
        self._task = current_task()
        call = self._operation.ask(self)
        try:
            await until_begun(call, self._operation.upstream)
        except BlockLeft:
            pass
        else:
            self._call = call
            return self
        raise cast("Exception", self._upload_error)  # here it has no context, and is as it was

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        call, self._call = self._call, None
        if call is None:
            raise RuntimeError("a stream is left once, after it was entered")
        if current_task() is not self._task:
            call.close()
            raise RuntimeError("a stream is left by the task that entered it; its place is free again")
        try:
            if error is None:
                call.send(None)
            elif isinstance(error, Exception) and error is not self._error:
                call.throw(BlockLeft("the block raised an error of its own"))
            else:
                call.throw(error)
        except (StopIteration, BlockLeft):
            return  # the block's own error goes on


class StreamOperation(RoutedOperation[[HttpStream], None]):
    """What the streams of one method are calls of."""

    upstream: HttpUpstream
    names_callers = False

    def __init__(self, upstream: HttpUpstream, policy: Policy, method: str, *, keyed: bool) -> None:
        async def perform(stream: HttpStream) -> None:
            await stream.perform()

        limit = upstream.http.stream_for
        super().__init__(
            upstream,
            policy,
            perform,
            perform,
            name=stream_name(method, keyed=keyed),
            idempotent=keyed or IDEMPOTENT[method],
            said=Terms(timeout=TimeoutPolicy(call=limit, attempt=limit)),
        )

    @property
    def evidence_after(self) -> float:
        """How long a try must have had, in seconds, for its end to say something of the endpoint."""
        return self._evidence_after

    @staticmethod
    def trip_of(call: Call) -> Trip | None:
        """Where the stream of a call has been."""
        stream: HttpStream = call.args[0]
        return stream.trip

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return Operation._begin(self, args, kwargs)  # noqa: SLF001 - its trip is the stream's own

    def _pause(self, call: Call) -> float | None:
        stream: HttpStream = call.args[0]
        return None if stream.final else super()._pause(call)

    def _add(self, tier: Tier) -> NoReturn:
        field = f"{self.upstream.name}.{self.name} fallback"
        raise ConfigError(field, f"{tier!r} cannot stand in for a stream", "catch what the stream raises")


def stream_name(method: str, *, keyed: bool) -> str:
    """The name of the operation that streams of a method are."""
    return f"stream {method.lower()}" + (" with key" if keyed else "")
