"""A request that is written at once, and its answer as far as its headers.

aiohttp makes an object of every request, which works out headers, target, writer and timers: two thirds of what a small
GET costs. What is the same for all requests of one method to one base URL is worked out once here, by aiohttp itself;
then a request is a line, the headers of its own if it has any, and its body. Connections, and the parser of what comes
back, are aiohttp's as well. All names are public ones.
"""

from __future__ import annotations

import re
from asyncio import AbstractEventLoop
from typing import TYPE_CHECKING, Any

from aiohttp import ClientConnectionError, ClientOSError, ClientRequest
from aiohttp.http import HttpProcessingError, RawResponseMessage
from multidict import CIMultiDict
from yarl import URL

from gateway.http.connections import Broken, Uploaded
from gateway.http.errors import BadReply, wrong_with
from gateway.http.request import UNSAFE, Pairs
from gateway.http.routes import Route
from gateway.http.silence import Silence
from gateway.policy import HttpPolicy

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection

SWITCHED = 101
PLAIN = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_~.-]*)+/?")
"""A path that stands in a request as it is: with nothing to quote, and no segment that a URL would take out."""


class Way(ClientRequest):
    """A request that is never sent: connections are looked for by it, as all that lead to one server have one key."""

    _key: ConnectionKey | None = None

    @property
    def connection_key(self) -> ConnectionKey:
        """What two connections have in common that may stand for each other."""
        key = self._key
        if key is None:
            key = self._key = super().connection_key
        return key


class Wire:
    """What all requests of one method to one base URL have in common, and the way there."""

    __slots__ = ("_lines", "_method", "_prefix", "_usual", "way")

    def __init__(
        self, method: str, route: Route, *, loop: AbstractEventLoop, closes: bool, tells: tuple[str, ...]
    ) -> None:
        base = URL(route.prefix)
        self.way = Way(method, base, headers=route.headers, loop=loop)
        self._method = self.way.method
        self._prefix = base.raw_path.rstrip("/")
        self._usual = self.way.headers
        if closes:
            self._usual["Connection"] = "close"
        if self._method in ClientRequest.POST_METHODS:
            self._usual.setdefault("Content-Type", "application/octet-stream")
        overlap = any(name in self._usual for name in tells)  # what is told goes before what the policy always says
        self._lines = None if overlap else text_of(self._usual)

    def target(self, path: str) -> str | None:
        """The path of a request as it goes over the wire; None for one that has to be quoted first."""
        return self._prefix + path if PLAIN.fullmatch(path) is not None else None

    def head(self, target: str, own: CIMultiDict[str] | None, told: Pairs, body: bytes | None) -> bytes:
        """All that stands before the body. `told` goes before what is the request's `own`, and that before the rest."""
        if own is None and body is None and self._lines is not None:
            lines = self._lines
            for name, value in told:
                lines += f"{name}: {value}\r\n"
        else:
            headers = CIMultiDict(self._usual)
            for name in own or ():
                headers.popall(name, None)
            headers.extend(own or ())
            headers.update(told)
            if body is not None:
                headers["Content-Length"] = str(len(body))
            lines = text_of(headers)
        return f"{self._method} {target} HTTP/1.1\r\n{lines}\r\n".encode()


class Arrival:
    """An answer as far as its headers. Its connection is free again with its last byte, or else by `close`."""

    __slots__ = ("_connection", "content", "headers", "line", "status")

    def __init__(
        self, connection: Connection, line: ResponseHandler, message: RawResponseMessage, content: StreamReader
    ) -> None:
        self.status = message.code
        self.headers = message.headers
        self.content = content
        self.line = line
        self._connection = connection
        content.on_eof(connection.release)

    def whole(self, most: float) -> bytes | None:
        """The body, if all of it is here and it is not longer than this; small ones are, nearly always."""
        content = self.content
        if not content.is_eof() or content.total_bytes > most:
            return None
        if content.exception() is not None or self.line.exception() is not None:
            return None  # it may have broken, which is for `read` to find out
        return content.read_nowait()

    async def read(self) -> bytes:
        """The body, however long. Raises ClientError where it broke."""
        try:
            return await self.content.read()
        except BaseException:
            self.close()
            raise

    def check_whole(self) -> None:
        """Raise Broken if the connection was reset; without a length, aiohttp takes that for the end of the body."""
        if isinstance(self.line.exception(), ClientOSError):
            raise Broken("reset")

    def close(self) -> None:
        """Have no more of it: what is still to come is not waited for."""
        if not self.content.is_eof() and self.content.exception() is None:
            self.content.set_exception(ClientConnectionError("closed by us"))
        self._connection.close()


Response = Arrival | Uploaded


async def exchange(
    connection: Connection, request: bytes, *, silence: Silence, head: bool, policy: HttpPolicy
) -> Arrival:
    """Write a request, and wait for the headers of its answer. Whatever goes wrong, the connection is closed."""
    line: Any = connection.protocol
    try:
        line.set_response_params(
            skip_payload=head,
            read_until_eof=True,
            max_line_size=policy.max_header,
            max_field_size=policy.max_header,
            max_headers=policy.max_headers,
        )
        transport = line.transport
        transport.write(request)
        silence.begins(line)
        try:
            message, content = await line.read()
            while 100 <= message.code <= 199 and message.code != SWITCHED:  # noqa: PLR2004 - more is to follow
                message, content = await line.read()
        finally:
            silence.ends(line)
        if not content.is_eof() and transport.is_reading():  # else aiohttp goes on by itself, once somebody reads
            silence.goes_on(line)
        return Arrival(connection, line, message, content)
    except HttpProcessingError as error:
        connection.close()
        problem = wrong_with(error.message)
    except BaseException:
        connection.close()
        raise
    raise BadReply(f"not HTTP as agreed: {problem}")


def text_of(headers: CIMultiDict[str]) -> str:
    """Header lines, as they are sent. Raises ValueError for what would be more than a line."""
    for name, value in headers.items():
        if UNSAFE.search(name) is not None or UNSAFE.search(value) is not None:
            raise ValueError("a header would be more than one line")
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
