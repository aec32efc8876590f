"""The line to an admin server: what it tells, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import aiohttp
import msgspec

from gateway.top.screen import SILENT_FOR, Screen
from gateway.top.verdict import Document, printable

AGAIN_AFTER = 1.0


class NotAnswered(Exception):
    """The admin server cannot be asked, and asking again will not help."""


async def documents(url: str, token: str | None) -> AsyncGenerator[Document, None]:
    """What the server tells, until the connection ends."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=2 * SILENT_FOR)
    async with (
        aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=2**22) as session,
        session.get(f"{url.rstrip('/')}/live", headers=headers, allow_redirects=False) as response,
    ):
        if response.status in {401, 403}:
            raise NotAnswered("a token is needed: set GATEWAY_ADMIN_TOKEN or GATEWAY_ADMIN_READ_TOKEN")
        if response.status != 200:  # noqa: PLR2004 - HTTP's word for yes
            raise NotAnswered(f"{url}/live answers {response.status}: no admin server of a gateway")
        pending = b""
        async for part in response.content.iter_any():
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield msgspec.json.decode(line[5:])


async def follow(screen: Screen, url: str, token: str | None, *, draw: Callable[[], None]) -> None:
    """Keep the screen up to date for ever; a connection that is lost is made anew."""
    while True:
        try:
            async with aclosing(documents(url, token)) as told:
                async for document in told:
                    screen.tell(document)
                    draw()
            screen.problem = "the server ended the stream"
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
            screen.problem = printable(str(error) or type(error).__name__)
        draw()
        await asyncio.sleep(AGAIN_AFTER)
