"""A page made of three upstreams, by whom it is guarded: `gateway`, `bare` (aiohttp as it comes), `glue`.

The numbers are the same wherever there is a place for them: 20 at once and 10 more that wait, for each upstream; a try
0.35 s, a call 0.7 s; two tries; a circuit that ten failures can open, for two seconds; the last good answer, else an
empty one.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import Semaphore
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

from benchmarks import processes
from gateway import (
    Answer,
    BreakerPolicy,
    BulkheadPolicy,
    Gateway,
    LastGood,
    Policy,
    Source,
    Static,
    TimeoutPolicy,
    gather,
)

TRY, CALL = 0.35, 0.7
LIMIT, QUEUE = 20, 10
OPENS_AFTER, OPEN_FOR = 10, 2.0
NAMES = ("a", "b", "c")
TOTAL = 2.0
"""Seconds that the bare one allows a request; aiohttp's own 300 would be no contest."""

Part = tuple[Any, bool]
"""What an upstream said, and whether it stands in for a live answer."""


class Aggregator(Protocol):
    """Gets the parts of a page. Raises ClientError or TimeoutError if it cannot be had."""

    async def parts(self, user: str, names: tuple[str, ...]) -> Mapping[str, Part]:
        """All of them, at once."""
        ...

    def open(self) -> Any:
        """A block in which it can be used."""
        ...


class Guarded:
    """By our engine."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._gate = Gateway()
        policy = Policy(
            timeout=TimeoutPolicy(call=CALL, attempt=TRY),
            bulkhead=BulkheadPolicy(limit=LIMIT, queue=QUEUE),
            breaker=BreakerPolicy(min_calls=OPENS_AFTER, open_for=OPEN_FOR),
        )
        self._ask = {}
        for name, url in urls.items():
            upstream = self._gate.http(name, url, policy=policy)
            tiers = [LastGood(), Static({})]
            self._ask[name] = upstream.get("/items/{user}", into=dict, fallback=tiers)(item).ask

    async def parts(self, user: str, names: tuple[str, ...]) -> Mapping[str, Part]:
        """The answers there are."""
        answers: Mapping[str, Answer[Any]] = await gather(required={name: self._ask[name](user) for name in names})
        return {name: (one.value, one.source is not Source.LIVE) for name, one in answers.items()}

    def open(self) -> Any:
        """The gateway."""
        return self._gate


async def item(user: str) -> dict[str, Any]:
    """What is asked."""
    raise NotImplementedError(user)


class Bare:
    """One session for all, as it comes, with a limit on time."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._urls = urls

    async def parts(self, user: str, names: tuple[str, ...]) -> Mapping[str, Part]:
        """All of them live, or an error."""
        values = await asyncio.gather(*(self._get(f"{self._urls[name]}/items/{user}") for name in names))
        return {name: (value, False) for name, value in zip(names, values, strict=True)}

    async def _get(self, url: str) -> Any:
        async with self._session.get(url, raise_for_status=True) as response:
            return msgspec.json.decode(await response.read())

    def open(self) -> Any:
        """The session."""
        self._session = ClientSession(timeout=ClientTimeout(total=TOTAL), cookie_jar=DummyCookieJar())
        return self._session


class Glued:
    """tenacity, purgatory, a semaphore, `asyncio.timeout`, aiocache, for each upstream."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        import purgatory  # noqa: PLC0415 - only where it is installed
        from aiocache import SimpleMemoryCache  # noqa: PLC0415
        from purgatory.domain.model import OpenedState  # noqa: PLC0415
        from tenacity import (  # noqa: PLC0415
            retry,
            retry_if_not_exception_type,
            stop_after_attempt,
            wait_random_exponential,
        )

        circuits = purgatory.AsyncCircuitBreakerFactory(default_threshold=OPENS_AFTER, default_ttl=OPEN_FOR)
        self._caught = (ClientError, TimeoutError, OpenedState)
        self._caches = {name: SimpleMemoryCache() for name in urls}
        semaphores = {name: Semaphore(LIMIT) for name in urls}

        @retry(
            stop=stop_after_attempt(2),
            wait=wait_random_exponential(multiplier=0.1, max=2.0),
            retry=retry_if_not_exception_type(OpenedState),
            reraise=True,
        )
        async def fetch(name: str, user: str) -> Any:
            url = f"{urls[name]}/items/{user}"
            async with (
                await circuits.get_breaker(name),
                semaphores[name],
                asyncio.timeout(TRY),
                self._session.get(url, raise_for_status=True) as response,
            ):
                return msgspec.json.decode(await response.read())

        self._fetch = fetch

    async def parts(self, user: str, names: tuple[str, ...]) -> Mapping[str, Part]:
        """Live, remembered or empty."""
        parts = await asyncio.gather(*(self._part(name, user) for name in names))
        return dict(zip(names, parts, strict=True))

    async def _part(self, name: str, user: str) -> Part:
        try:
            async with asyncio.timeout(CALL):
                value = await self._fetch(name, user)
        except self._caught:
            return await self._caches[name].get(user, default={}), True
        await self._caches[name].set(user, value, ttl=300)
        return value, False

    def open(self) -> Any:
        """The session."""
        self._session = ClientSession(connector=TCPConnector(limit=0), cookie_jar=DummyCookieJar())
        return self._session


KINDS = {"gateway": Guarded, "bare": Bare, "glue": Glued}


def app(aggregator: Aggregator) -> web.Application:
    """`/page/{user}` needs all three; `/other/{user}` does not need b."""

    async def opened(_: web.Application) -> AsyncIterator[None]:
        async with aggregator.open():
            yield

    async def page(request: web.Request) -> web.Response:
        return await made(request.match_info["user"], NAMES)

    async def other(request: web.Request) -> web.Response:
        return await made(request.match_info["user"], ("a", "c"))

    async def made(user: str, names: tuple[str, ...]) -> web.Response:
        try:
            parts = await aggregator.parts(user, names)
        except (ClientError, TimeoutError) as error:
            return web.Response(status=502, text=f"{error!r}")
        body = msgspec.json.encode({name: value for name, (value, _) in parts.items()})
        degraded = any(stands_in for _, stands_in in parts.values())
        return web.Response(body=body, headers={"X-Degraded": str(degraded).lower()})

    made_app = web.Application()
    made_app.cleanup_ctx.append(opened)
    made_app.router.add_get("/page/{user}", page)
    made_app.router.add_get("/other/{user}", other)
    return made_app


async def serve(kind: str, port: int, urls: Mapping[str, str]) -> None:
    """Until standard input ends."""
    runner = web.AppRunner(app(KINDS[kind](urls)), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await processes.until_stdin_ends().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), dict(zip(NAMES, sys.argv[3:], strict=True))))
