"""The catalog before services that others wrote, and wrote badly: the page is whole, and in time, by the wall clock.

`test_demo.py` has such illnesses on a catalog that knows nothing yet, in virtual time. Here it knows its user already,
and the clock is real; where it says `catalog_before`, it is a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
from asyncio import StreamWriter, create_task
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from socket import SO_LINGER, SOL_SOCKET
from struct import pack
from typing import Any

import pytest

from gateway.demo import catalog as demo
from gateway.testing import assert_nothing_left
from tests.edges.running import Reply, ask, running
from tests.edges.serving import Talk, served, talking

pytestmark = pytest.mark.asyncio
RATINGS = {"userId": "ada", "ratings": [{"movieId": "11", "rating": 5}, {"movieId": "12", "rating": 3}]}
FILM = {"movieId": "11", "name": "A film", "description": "of theirs"}
WELL = {"ratings": RATINGS, "info": FILM}
IN_TIME = 1.0 + 0.3
"""A page's second, and what a busy machine takes to start and end a request."""


def http(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def sends(answer: bytes) -> Talk:
    async def talk(_: bytes, writer: StreamWriter) -> None:
        writer.write(answer)

    return talk


async def hangs(_: bytes, writer: StreamWriter) -> None:
    await asyncio.sleep(3600)


async def drips(_: bytes, writer: StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def drips_its_headers(_: bytes, writer: StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1000):
        writer.write(f"X-{number}: 1\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.05)


async def resets(_: bytes, writer: StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))
    writer.transport.abort()


async def floods(_: bytes, writer: StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


ILL: dict[str, Talk] = {
    "hangs": hangs,
    "drips": drips,
    "drips its headers": drips_its_headers,
    "resets": resets,
    "floods": floods,
    "sends garbage": sends(b"\x16\x03\x01 what is this\r\n\r\n"),
    "sends wrong types": sends(http(b'{"userId": 1, "ratings": {}, "movieId": [], "name": null}')),
    "sends an empty list": sends(http(b"[]")),
    "sends null": sends(http(b"null")),
    "sends 10 MB": sends(http(b'{"userId": "' + b"x" * 10_000_000 + b'"}')),
    "sends elsewhere": sends(http(b"", status="302 Found", headers="Location: http://127.0.0.1:9/\r\n")),
    "sends into a circle": sends(http(b"", status="307 Temporary Redirect", headers="Location: /\r\n")),
    "is in maintenance": sends(http(b"<h1>Back soon</h1>", status="503 Service Unavailable")),
}


class Foreign:
    """A service that is well until it is told otherwise."""

    def __init__(self, content: Any) -> None:
        self.well = self.talk = sends(http(json.dumps(content).encode()))

    async def __call__(self, head: bytes, writer: StreamWriter) -> None:
        await self.talk(head, writer)


class Catalog:
    """A catalog in a process of its own, and the services that it asks."""

    def __init__(self, url: str, services: dict[str, Foreign]) -> None:
        self.url, self.services = url, services

    async def get(self, path: str) -> tuple[Reply, float]:
        return await timed(self.url + path)

    async def upstream(self, name: str) -> Any:
        reply, _ = await self.get("/upstreams")
        return next(one for one in reply.json["upstreams"] if one["name"] == name)


@asynccontextmanager
async def catalog_before(**ill: Talk) -> AsyncIterator[Catalog]:
    services = {name: Foreign(content) for name, content in WELL.items()}
    for name, talk in ill.items():
        services[name].talk = talk
    async with talking(services["ratings"]) as ratings, talking(services["info"]) as info:
        starting = running(
            *("demo", "catalog", "--port", "0", "--ratings-url", ratings, "--info-url", info), until="ready"
        )
        running_one = await asyncio.to_thread(starting.__enter__)
        try:
            yield Catalog(running_one.urls[""], services)
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)


async def timed(url: str) -> tuple[Reply, float]:
    began = time.monotonic()
    reply = await asyncio.to_thread(ask, "GET", url)
    return reply, time.monotonic() - began


def attempts(catalog: demo.Catalog, upstream: str) -> int:
    return catalog.gate[upstream].snapshot().counts.attempts


@pytest.mark.parametrize("upstream", ["ratings", "info"])
async def test_pages_stay_whole_and_in_time_in_every_illness_of(upstream: str) -> None:
    services = {name: Foreign(content) for name, content in WELL.items()}
    sources = ", ".join(f"{name}={'last_good' if name == upstream else 'live'}" for name in WELL)
    async with AsyncExitStack() as stack:
        urls = {f"{name}_url": await stack.enter_async_context(talking(one)) for name, one in services.items()}
        catalog = demo.Catalog(**urls)
        for one in catalog.gate:  # each illness is to be met, not the open circuit of the one before
            one.tune_fields({"breaker.min_calls": 1_000_000})
        url = await stack.enter_async_context(served(catalog.create()))
        before = await asyncio.to_thread(ask, "GET", f"{url}/catalog/ada")
        during = {}
        for name, talk in ILL.items():
            services[upstream].talk = talk
            sent = attempts(catalog, upstream)
            asking = create_task(timed(f"{url}/catalog/ada"))
            while attempts(catalog, upstream) == sent:
                assert not asking.done(), name
                await asyncio.sleep(0.001)
            stranger, _ = await timed(f"{url}/catalog/nobody-{name.replace(' ', '-')}")
            during[name] = await asking
            assert (stranger.status, bool(stranger.json)) == (200, True), name
        services[upstream].talk = services[upstream].well
        after = await asyncio.to_thread(ask, "GET", f"{url}/catalog/ada")
        assert_nothing_left(catalog.gate)

    assert [row["name"] for row in before.json] == ["A film", "A film"]
    for name, (page, took) in during.items():
        assert (page.status, page.json, page.source) == (200, before.json, sources), name
        assert took < IN_TIME, name
    assert (after.json, after.headers["x-degraded"]) == (before.json, "false")


@pytest.mark.parametrize("upstream", ["ratings", "info"])
async def test_the_first_page_of_all_is_in_time_when_one_hangs_and_the_other_drips(upstream: str) -> None:
    other = {"ratings": "info", "info": "ratings"}[upstream]
    async with catalog_before(**{upstream: hangs, other: drips}) as catalog:
        page, took = await catalog.get("/catalog/ada")

    assert (page.status, page.source) == (200, "ratings=static, info=static")
    assert page.json == [{"name": "Movie Not Found", "desc": "", "rating": 0}]
    assert took < IN_TIME


async def test_a_user_with_an_empty_list_has_an_empty_page() -> None:
    async with catalog_before(ratings=sends(http(b'{"userId": "ada", "ratings": []}'))) as catalog:
        page, _ = await catalog.get("/catalog/ada?explain=1")

    assert (page.status, page.json["items"], page.headers["x-degraded"]) == (200, [], "false")


async def test_a_list_too_long_for_a_page_is_no_answer() -> None:
    flood = {"userId": "ada", "ratings": [{"movieId": str(number), "rating": 1} for number in range(20_000)]}
    async with catalog_before(ratings=sends(http(json.dumps(flood).encode()))) as catalog:
        page, took = await catalog.get("/catalog/ada")

    assert (page.status, page.source) == (200, "ratings=static, info=live")
    assert took < IN_TIME


async def test_a_client_that_leaves_cancels_its_calls_and_frees_their_slots() -> None:
    gone = asyncio.Event()

    async def notices(reader: asyncio.StreamReader, writer: StreamWriter) -> None:
        await reader.read()
        gone.set()
        writer.close()

    server = await asyncio.start_server(notices, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        one = running("demo", "catalog", "--port", "0", "--ratings-url", url, "--info-url", url, until="ready")
        catalog = Catalog((await asyncio.to_thread(one.__enter__)).urls[""], {})
        try:
            address = catalog.url.removeprefix("http://").split(":")
            _, client = await asyncio.open_connection(*address)
            client.write(b"GET /catalog/ada HTTP/1.1\r\nHost: x\r\n\r\n")
            busy = await until(catalog, in_use=1)
            client.transport.abort()
            idle = await until(catalog, in_use=0)
            async with asyncio.timeout(5):
                await gone.wait()
        finally:
            await asyncio.to_thread(one.__exit__, None, None, None)

    assert busy["counts"]["in_flight"] == 1
    assert idle["counts"] == {**busy["counts"], "in_flight": 0, "cancelled": 1}, "its try did not end by itself"
    assert (idle["circuit"]["calls"], idle["circuit"]["failures"]) == (0, 0)


async def until(catalog: Catalog, *, in_use: int) -> Any:
    async with asyncio.timeout(5):
        while (state := await catalog.upstream("ratings"))["pool"]["in_use"] != in_use:
            pass
    return state
