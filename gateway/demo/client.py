"""A service over HTTP, as the operations of one upstream call it: one session, one way to sort what comes back.

| what happened                                                     | raised                  | outcome of a GET |
|-------------------------------------------------------------------|-------------------------|------------------|
| no connection (refused, no such name, too slow)                   | NotSent                 | failed           |
| 408, 425, 429, and 503 with Retry-After                           | NotSent, retry_after    | failed           |
| any other 4xx                                                     | RefusedAnswer (Refused) | refused          |
| any other status, 302 included; a body too long, or not as agreed | BadAnswer               | failed           |
| connection lost, silence                                          | aiohttp's own error     | failed           |
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from time import time
from typing import Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, ClientTimeout, DummyCookieJar, TCPConnector
from yarl import URL

from gateway import Deadline, NotSent, Refused, Upstream

T = TypeVar("T")

OK = 200
UNAVAILABLE = 503
LONGEST_BODY = 1024 * 1024
"""Bytes, once unpacked. aiohttp has no limit of its own."""
NO_EFFECT = frozenset({408, 425, 429})
"""Timeout while reading the request, too early, too many: the service says that it did nothing."""


class RefusedAnswer(Refused):
    """A 4xx: the service is well, and says no."""

    def __init__(self, url: URL, status: int) -> None:
        super().__init__(f"{url}: {status}")
        self.status = status


class BadAnswer(Exception):
    """An answer that is none."""


class Disconnected(aiohttp.ClientError):
    """The connection was lost."""


async def send_once(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Tell a lost connection apart from the errors that make aiohttp send a GET once more, unseen by any policy."""
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise Disconnected(str(error) or type(error).__name__) from error


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """What goes with every request, and into no error: aiohttp's own carry the address, query and all."""

    query: dict[str, str] = {}
    headers: dict[str, str] = {}


NO_SECRET = Secret()


class HttpClient:
    """The session for one upstream. `async with` opens it."""

    def __init__(self, upstream: Upstream, url: str, *, secret: Secret = NO_SECRET) -> None:
        self._upstream = upstream
        self._url = url.rstrip("/")
        self._secret = secret

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=TCPConnector(limit=0),  # the upstream's bulkhead limits; a second queue would hide its waiters
            cookie_jar=DummyCookieJar(),  # one user's cookie is no other user's
            middlewares=(send_once,),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, *path: str, into: type[T]) -> T:
        """GET the JSON at this path, as a value of this type. Redirects are not followed."""
        url = URL("/".join((self._url, *(quote(part, safe="") for part in path))), encoded=True)
        body = await self._got(url) if self._secret == NO_SECRET else await self._got_in_secret(url)
        try:
            return msgspec.json.decode(body, type=into)
        except msgspec.DecodeError as error:
            raise BadAnswer(f"{url}: not as agreed: {error}") from error

    async def _got(self, url: URL) -> bytes:
        try:
            async with self._session.get(
                url.update_query(self._secret.query),
                headers=self._headers(),
                timeout=self._timeout(),
                allow_redirects=False,
            ) as response:
                if response.status != OK:
                    raise sorted_out(response)
                return await read(response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            reason = str(error) if self._secret == NO_SECRET else type(error).__name__
            raise NotSent(f"no connection to {url.origin()}: {reason}") from error

    async def _got_in_secret(self, url: URL) -> bytes:
        """The same, but what it raises is ours, and holds on to nothing of aiohttp's."""
        try:
            return await self._got(url)
        except (NotSent, RefusedAnswer, BadAnswer) as error:
            error.__cause__ = error.__context__ = None
            raise
        except aiohttp.ClientError as error:
            lost = Disconnected(f"{url.origin()}: {type(error).__name__}")
        raise lost

    def _headers(self) -> dict[str, str]:
        """How long this try has: the service may stop where we do."""
        deadline = Deadline.current()
        return self._secret.headers if deadline is None else {**self._secret.headers, **deadline.to_headers()}

    def _timeout(self) -> ClientTimeout:
        """The policy's limits on connecting and on silence; the whole try is limited by the gateway."""
        timeout = self._upstream.policy.timeout
        # aiohttp rounds limits above ceil_threshold up to whole seconds.
        return ClientTimeout(total=None, sock_connect=timeout.connect, sock_read=timeout.read, ceil_threshold=3600.0)


def sorted_out(response: ClientResponse) -> Exception:
    """The error for an answer other than 200."""
    status, wait = response.status, retry_after(response.headers.get("Retry-After"))
    url = response.url.with_query(None)  # it may hold a key
    if status in NO_EFFECT or (status == UNAVAILABLE and wait is not None):
        return NotSent(f"{url}: {status}", retry_after=wait)
    if 400 <= status < 500:  # noqa: PLR2004 - the class of the status
        return RefusedAnswer(url, status)
    return BadAnswer(f"{url}: {status}")


def retry_after(text: str | None) -> float | None:
    """Seconds to wait, from a header with seconds or a date (RFC 9110); None for anything else."""
    if text is None:
        return None
    try:
        return float(int(text)) if text.isdigit() else max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except ValueError:
        return None


async def read(response: ClientResponse) -> bytes:
    """The body, if it is not too long."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > LONGEST_BODY:
            response.close()
            raise BadAnswer(f"{response.url.with_query(None)}: more than {LONGEST_BODY} bytes")
    return bytes(body)
