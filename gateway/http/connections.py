"""The connections of one upstream: kept as long as they are surely good, as many as lately were needed.

Who may connect is decided by the upstream's bulkhead; here nobody waits for a place. Source of the limits that
aiohttp's own connector has, and of the ways round them by its public methods: aiohttp 3.14, `connector.py`.
"""

from __future__ import annotations

import re
from asyncio import CancelledError, Transport
from collections.abc import Callable
from functools import partial
from math import inf
from ssl import SSLContext, SSLError, create_default_context
from typing import TYPE_CHECKING, Any

from aiohttp import (
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientRequest,
    ClientResponse,
    ClientTimeout,
    TCPConnector,
)

from gateway.http.errors import ConnectTimeout, Unreachable
from gateway.http.resolver import Resolver
from gateway.outcome import ConfigError
from gateway.policy import HttpPolicy

if TYPE_CHECKING:
    from aiohttp.connector import Connection

TIMEOUT = re.compile(r"(?:^|[,;\s])timeout\s*=\s*\"?(\d{1,9})", re.IGNORECASE)
NAMES_KEPT = 100
"""Names whose addresses are remembered."""
SERVERS_KNOWN = 1000
"""Servers of which it is known how long they keep an idle connection."""
MOST_IDLE = 1000
"""With more idle connections than this, those that are closed are looked for at once."""
NO_LIMIT = float(2**40)
"""Seconds; where aiohttp cannot do with inf."""


class Broken(ClientError):
    """A connection that broke, though aiohttp took it for the end of a body."""


class Uploaded(ClientResponse):
    """The answer to a request that was written piece by piece; one that tells a broken connection."""

    line: Any = None  # aiohttp's protocol, which knows how the connection ended

    def check_whole(self) -> None:
        """Raise Broken if the connection was reset; without a length, aiohttp takes that for the end of the body."""
        if self.line is not None and isinstance(self.line.exception(), ClientOSError):
            raise Broken("reset")


class Connections(TCPConnector):
    """Connections that are not used when the server may have closed them, and not kept when nobody needs them."""

    def __init__(self, policy: HttpPolicy, *, tls: SSLContext | None, clock: Callable[[], float]) -> None:
        kept = policy.keepalive_for > 0
        super().__init__(
            limit=0,
            keepalive_timeout=min(policy.keepalive_for, NO_LIMIT) if kept else None,
            force_close=not kept,
            ttl_dns_cache=min(policy.dns_for, NO_LIMIT),  # type: ignore[arg-type]  # any number of seconds will do
            dns_cache_max_size=NAMES_KEPT,
            resolver=Resolver(policy.resolve),
            ssl=tls or True,
            timeout_ceil_threshold=2 * NO_LIMIT,  # nothing is rounded up
        )
        self._policy = policy
        self._clock = clock
        self._idle_since: dict[Transport, float] = {}  # the longest idle first
        self._longest_idle: dict[
            tuple[str | None, int | None], float
        ] = {}  # by host and port, where the server said so
        self._in_use = 0
        self._peak = 0  # most in use at once, since the last look
        self._look_at = clock() + policy.keepalive_for

    async def connect(self, req: ClientRequest, traces: list[Any], timeout: ClientTimeout) -> Connection:  # noqa: ASYNC109 - aiohttp's
        """A connection that is idle and good, or a new one. Raises Unreachable.

        A cancel that comes before there is one is marked `not_sent`.
        """
        now = self._clock()
        if now >= self._look_at:
            self._close_surplus(now)
        error: Unreachable
        while True:
            try:
                connection = await super().connect(req, traces, timeout)
            except CancelledError as cancelled:
                cancelled.not_sent = True  # type: ignore[attr-defined]  # not a class of its own: who looks for a
                raise  # CancelledError by its very type (`asyncio.timeout` before 3.13) would not know it
            except TimeoutError:
                error = ConnectTimeout(f"no connection within {timeout.connect:.3f} s (name, TCP, TLS)")
            except (ClientError, OSError) as failed:
                error = Unreachable(f"no connection: {why(failed)}")
            else:
                transport = connection.transport
                since = self._idle_since.pop(transport, None)  # type: ignore[arg-type]
                if transport is not None and (since is None or self._good(req, connection, now - since)):
                    break
                connection.close()
                if since is not None:
                    continue  # to the next of those that are idle; in the end to a new one
                error = Unreachable("no connection: the server closed it at once")
            raise error
        self._in_use += 1
        if self._in_use > self._peak:
            self._peak = self._in_use
        connection.add_callback(partial(self._ended, connection, transport))
        return connection

    def learn(self, host: str | None, port: int | None, keep_alive: str) -> None:
        """What a server says of its idle connections: `Keep-Alive: timeout=5` (RFC 2068, 19.7.1.1)."""
        said, known = TIMEOUT.search(keep_alive), self._longest_idle
        if said is None:
            return
        seconds = float(said[1])
        known.pop((host, port), None)  # who was heard of last stays longest: servers come and go
        known[host, port] = max(seconds - self._policy.keepalive_margin, seconds / 2)
        if len(known) > SERVERS_KNOWN:
            del known[next(iter(known))]

    @property
    def idle(self) -> int:
        """How many connections are open, and not in use."""
        return sum(not transport.is_closing() for transport in self._idle_since)

    @property
    def in_use(self) -> int:
        """How many are in use."""
        return self._in_use

    def _good(self, request: ClientRequest, connection: Connection, idle_for: float) -> bool:
        """Whether an idle connection may still be used."""
        protocol = connection.protocol
        if protocol is None or protocol.should_close:  # the server said something that nobody had asked for
            return False
        longest = self._longest_idle
        return not longest or idle_for < longest.get((request.url.raw_host, request.url.port), inf)

    def _ended(self, connection: Connection, transport: Transport) -> None:
        """A connection comes back, or is about to be closed."""
        self._in_use -= 1
        protocol = connection.protocol
        if transport.get_write_buffer_size():  # a close would wait until a server that does not read has read it
            transport.abort()
        elif protocol is not None and not protocol.should_close:
            self._idle_since[transport] = now = self._clock()
            if len(self._idle_since) > MOST_IDLE:
                self._close_surplus(now)

    def _close_surplus(self, now: float) -> None:
        """Close what the busiest moment since the last look did not need.

        aiohttp uses the longest idle first, so that without this none would ever be idle long enough to go.
        """
        open_ones = [transport for transport in self._idle_since if not transport.is_closing()]
        surplus = len(open_ones) + self._in_use - self._peak
        for transport in open_ones[: max(0, surplus)]:
            transport.close()
        self._idle_since = {transport: self._idle_since[transport] for transport in open_ones[max(0, surplus) :]}
        self._peak = self._in_use
        self._look_at = now + self._policy.keepalive_for


def why(error: BaseException) -> str:
    """What kept a connection from being made, in words without an address or a secret."""
    if isinstance(error, ClientConnectorDNSError):
        return f"the name was not resolved: {text_of(error.os_error)}"
    if isinstance(error, ClientConnectorError):
        return text_of(error.os_error)
    cause = getattr(error, "certificate_error", None)
    return text_of(cause if isinstance(cause, OSError) else error)


def text_of(error: BaseException) -> str:
    """What an error of the system says."""
    if isinstance(error, SSLError):
        return f"TLS: {getattr(error, 'verify_message', '') or error.reason or type(error).__name__}"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return type(error).__name__


def tls_of(field: str, policy: HttpPolicy) -> SSLContext | None:
    """How to verify servers, and how to show oneself; None: as aiohttp does. ConfigError for files that do not fit."""
    if policy.ca_file is None and policy.certificate is None:
        return None
    try:
        context = create_default_context(cafile=policy.ca_file)
        if policy.certificate is not None:
            context.load_cert_chain(policy.certificate, policy.certificate_key)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{field} http", f"certificates: {text_of(error)}", "give PEM files that can be read"
        ) from None
    context.set_alpn_protocols(["http/1.1"])
    return context
