"""The line to an admin server: what it tells, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import aiohttp
import msgspec

from gateway.top.news import Missed, News
from gateway.top.screen import SILENT_FOR, Screen
from gateway.top.verdict import Document, printable

AGAIN_AFTER = 1.0


class NotAnswered(Exception):
    """The admin server cannot be asked, and asking again will not help."""


async def documents(url: str, token: str | None, details: str = "") -> AsyncGenerator[Document, None]:
    """What is known, each time that the server tells something: of all upstreams a row, of one the details."""
    news = News()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=2 * SILENT_FOR)
    async with (
        aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=2**22) as session,
        session.get(
            f"{url.rstrip('/')}/live", params={"details": details}, headers=headers, allow_redirects=False
        ) as response,
    ):
        if response.status in {401, 403}:
            raise NotAnswered("a token is needed: set GATEWAY_ADMIN_TOKEN or GATEWAY_ADMIN_READ_TOKEN")
        if response.status != 200:  # noqa: PLR2004 - HTTP's word for yes
            raise NotAnswered(f"{url}/live answers {response.status}: no admin server of a gateway")
        pending = b""
        async for part in response.content.iter_any():
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data:") and (known := news.hear(msgspec.json.decode(line[5:]))) is not None:
                    yield known


async def follow(screen: Screen, url: str, token: str | None, *, draw: Callable[[], None]) -> None:
    """Keep the screen up to date for ever; a connection that is lost is made anew, and so where another one is open."""
    loop = asyncio.get_running_loop()
    while True:
        screen.turned.clear()
        hearing = loop.create_task(hear(screen, url, token, draw=draw), name="gateway: top hears")
        turning = loop.create_task(screen.turned.wait(), name="gateway: top is turned")
        try:
            await asyncio.wait([hearing, turning], return_when=asyncio.FIRST_COMPLETED)
            turned = not hearing.done()
        finally:
            hearing.cancel()
            turning.cancel()
            await asyncio.gather(hearing, turning, return_exceptions=True)
        if not turned:
            hearing.result()
            draw()
            await asyncio.sleep(AGAIN_AFTER)


async def hear(screen: Screen, url: str, token: str | None, *, draw: Callable[[], None]) -> None:
    """Keep it up to date for as long as one connection lasts; then the screen has the problem."""
    try:
        async with aclosing(documents(url, token, screen.opened)) as told:
            async for document in told:
                screen.tell(document)
                draw()
        screen.problem = "the server ended the stream"
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, Missed) as error:
        screen.problem = printable(str(error) or type(error).__name__)
