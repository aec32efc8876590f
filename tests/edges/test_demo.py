"""The movie catalog: the page against services that are ill in every way, and the three processes as users run them."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from math import inf
from pathlib import Path
from socket import create_server
from sqlite3 import DatabaseError, connect
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from gateway import Failed, NotSent
from gateway.demo import info, ratings
from gateway.demo.catalog import Catalog
from gateway.demo.faults import MODES, retry_after
from gateway.demo.films import films
from gateway.demo.memory import store_in
from gateway.testing import assert_nothing_left
from tests.edges.running import ANY_PORTS, Running, ask, children_of, free_ports, listens, lives, running
from tests.edges.serving import connected
from tests.support import until, wait_until

virtual = pytest.mark.virtual_time
WELL = {"ratings": ratings.create, "info": info.create}
DEFAULT = {"name": "Movie Not Found", "desc": "", "rating": 0}
RawAnswer = Callable[[bytes], bytes | None]


# -- services to depend on


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw(answer: RawAnswer) -> AsyncIterator[str]:
    """A server that sends bytes of ours; None: it closes the connection."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (said := answer(await reader.readuntil(b"\r\n\r\n"))) is not None:
            writer.write(said)
            await writer.drain()

    async with connected(reply) as url:
        yield url


def http(body: bytes = b"", *, status: str = "200 OK", headers: str = "") -> RawAnswer:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return lambda _: head.encode() + body


def hanging(_: bytes) -> bytes:
    return b""


@dataclass
class Page:
    """What the catalog answered, and how long it took."""

    status: int
    headers: Any
    content: Any
    took: float

    @property
    def sources(self) -> dict[str, str]:
        parts = (part.split("=", 1) for part in self.headers["X-Answer-Source"].split(", "))
        return {name: source.partition(";")[0] for name, source in parts}


class Browser:
    """Somebody who asks a catalog."""

    def __init__(self, catalog: Catalog, session: aiohttp.ClientSession, url: str) -> None:
        self.catalog, self.session, self.url = catalog, session, url

    async def get(self, path: str, **headers: str) -> Page:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with self.session.get(self.url + path, headers=headers) as response:
            body = await response.read()
        return Page(response.status, response.headers, msgspec.json.decode(body), loop.time() - began)

    async def fault(self, url: str, mode: str) -> None:
        async with self.session.post(f"{url}/fault/{mode}") as response:
            assert (response.status, await response.read()) == (204, b"")

    def state(self, upstream: str) -> str:
        return self.catalog.gate[upstream].snapshot().breaker.state


@asynccontextmanager
async def browsing(**elsewhere: str) -> AsyncIterator[Browser]:
    """A catalog before services of the demo, or others (`ratings="http://..."`); nothing may be left in it."""
    async with AsyncExitStack() as stack:
        for name, create in WELL.items():
            if name not in elsewhere:
                elsewhere[name] = await stack.enter_async_context(served(create()))
        catalog = Catalog(ratings_url=elsewhere["ratings"], info_url=elsewhere["info"])
        url = await stack.enter_async_context(served(catalog.create()))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Browser(catalog, session, url)
        assert_nothing_left(catalog.gate)


# -- the page


@virtual
async def test_a_page_has_the_users_films_and_says_that_they_are_live() -> None:
    async with browsing() as browser:
        plain = await browser.get("/catalog/ada")
        explained = await browser.get("/catalog/ada?explain=1")

    assert plain.status == 200
    assert plain.headers["X-Answer-Source"] == "ratings=live, info=live"
    assert plain.headers["X-Degraded"] == "false"
    assert len(plain.content) == 5
    assert all(list(row) == ["name", "desc", "rating"] and row["desc"] for row in plain.content)
    assert [{**row, "source": "live", "age": 0} for row in plain.content] == explained.content["items"]
    operations = [one.pop("operation") for one in explained.content["answers"]]
    assert operations == ["user_ratings"] + 5 * ["movie"]
    assert explained.content["answers"] == 6 * [{"source": "live", "age": 0, "degraded": False}]


@virtual
async def test_a_film_that_is_rated_twice_has_two_rows_and_is_asked_for_once() -> None:
    rated = b'{"userId": "ada", "ratings": [{"movieId": "1", "rating": 5}, {"movieId": "1", "rating": 3}]}'
    film = b'{"movieId": "1", "name": "Alien", "description": ""}'
    async with (
        raw(http(rated)) as ratings_url,
        raw(http(film)) as info_url,
        browsing(ratings=ratings_url, info=info_url) as browser,
    ):
        page = await browser.get("/catalog/ada")
        asked = browser.catalog.gate["info"].snapshot().counts.asked

    assert [(row["name"], row["rating"]) for row in page.content] == [("Alien", 5), ("Alien", 3)]
    assert asked == 1


ILL: dict[str, RawAnswer] = {
    "hangs": hanging,
    "closes the connection": lambda _: None,
    "sends garbage": lambda _: b"\x00\xff garbage \r\n\r\n",
    "sends half a body": lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "sends no JSON": http(b"<html>"),
    "sends an empty body": http(b""),
    "sends JSON in another code": http(b"\xff\xfe{\x00}\x00"),
    "sends another type": http(b"[]"),
    "sends wrong types within": http(b'{"userId": 1, "ratings": [{"movieId": 7, "rating": "x"}], "movieId": 7}'),
    "sends JSON too deep": http(b"[" * 100_000),
    "sends 10 MB": http(b'{"userId": "' + b"x" * 10_000_000 + b'"}'),
    "sends a bomb": http(gzip.compress(b" " * 50_000_000), headers="Content-Encoding: gzip\r\n"),
    "sends elsewhere": http(status="302 Found", headers="Location: /elsewhere\r\n"),
    "fails": http(status="500 Internal Server Error"),
    "has no content": http(status="204 No Content"),
    "is overloaded": http(status="503 Service Unavailable", headers="Retry-After: 7\r\n"),
    "has had too many of us": http(status="429 Too Many Requests", headers="Retry-After: soon\r\n"),
}


@virtual
@pytest.mark.parametrize("upstream", ["ratings", "info"])
@pytest.mark.parametrize("answer", ILL.values(), ids=ILL)
async def test_the_page_is_there_and_in_time_when_an_upstream(answer: RawAnswer, upstream: str) -> None:
    async with raw(answer) as url, browsing(**{upstream: url}) as browser:
        page = await browser.get("/catalog/ada")

    other = {"ratings": "info", "info": "ratings"}[upstream]
    assert page.status == 200
    assert page.took < 1.05
    assert page.sources == {upstream: "static", other: "live"}
    assert page.headers["X-Degraded"] == "true"
    assert all(row["name"] == "Movie Not Found" for row in page.content)
    assert len(page.content) == {"ratings": 1, "info": 5}[upstream]


@virtual
@pytest.mark.parametrize("mode", ["hang", "fail", "drip", "flood", "reset"])
@pytest.mark.parametrize("upstream", ["ratings", "info"])
async def test_every_fault_of_an_upstream_is_answered_with_what_was_good_before(upstream: str, mode: str) -> None:
    async with served(WELL[upstream]()) as url, browsing(**{upstream: url}) as browser:
        before = await browser.get("/catalog/ada")
        await browser.fault(url, mode)
        during = await browser.get("/catalog/ada")
        explained = await browser.get("/catalog/ada?explain=1")
        await browser.fault(url, "none")
        await asyncio.sleep(6.0)  # the circuit may have opened
        after = await browser.get("/catalog/ada")

    assert before.content == during.content == after.content
    assert during.sources[upstream] == "last_good"
    assert during.took < 1.05
    assert {item["source"] for item in explained.content["items"]} == {"last_good"}
    assert after.headers["X-Answer-Source"] == before.headers["X-Answer-Source"] == "ratings=live, info=live"


@virtual
async def test_a_slow_upstream_is_still_live() -> None:
    async with served(info.create()) as url, browsing(info=url) as browser:
        await browser.fault(url, "slow")
        page = await browser.get("/catalog/ada")

    assert page.sources == {"ratings": "live", "info": "live"}
    assert page.took == pytest.approx(0.3, abs=0.05)


@virtual
async def test_films_have_their_share_of_the_time_when_ratings_use_up_theirs() -> None:
    async with (
        served(ratings.create()) as ill,
        served(info.create()) as slow,
        browsing(ratings=ill, info=slow) as browser,
    ):
        await browser.get("/catalog/ada")
        await browser.fault(ill, "hang")
        await browser.fault(slow, "slow")
        page = await browser.get("/catalog/ada")

    assert page.sources == {"ratings": "last_good", "info": "live"}
    assert page.took == pytest.approx(0.8, abs=0.05)


@virtual
async def test_the_circuit_opens_though_the_page_cuts_its_tries() -> None:
    async with raw(hanging) as url, browsing(ratings=url) as browser:
        pages = [await browser.get("/catalog/ada") for _ in range(6)]
        state = browser.state("ratings")
        error = await browser.get("/ratings/ada")

    assert state == "open"
    assert [page.took for page in pages[:5]] == 5 * [pytest.approx(0.5, abs=0.05)]
    assert pages[5].took < 0.05
    assert error.content["error"] == "CircuitOpen: the circuit is open"
    assert 4.0 < error.content["retry_after"] <= 5.0
    assert error.headers["Retry-After"] == "5"


@virtual
async def test_pages_keep_their_second_while_both_upstreams_hang_and_many_ask() -> None:
    async with raw(hanging) as one, raw(hanging) as other, browsing(ratings=one, info=other) as browser:
        pages = await asyncio.gather(*(browser.get(f"/catalog/{number}") for number in range(60)))

    assert {page.status for page in pages} == {200}
    assert max(page.took for page in pages) < 1.05


@virtual
async def test_who_asks_for_ratings_without_a_plan_b_gets_an_error_that_says_what_to_do() -> None:
    async with raw(http(status="500 Oops")) as url, browsing(ratings=url) as browser:
        page = await browser.get("/ratings/ada")

    assert page.status == 503
    assert list(page.content) == ["error", "upstream", "operation", "outcome", "attempts", "retry_after"]
    assert page.content["upstream"] == "ratings"
    assert page.content["operation"] == "ratings_or_error"
    assert page.content["outcome"] == "failed"
    assert page.content["attempts"] == 2
    assert page.content["retry_after"] is None
    assert page.headers["Retry-After"] == "1"


@virtual
async def test_who_asks_for_ratings_gets_them_when_all_is_well() -> None:
    async with browsing() as browser:
        page = await browser.get("/ratings/ada")

    assert page.status == 200
    assert page.content["userId"] == "ada"
    assert page.headers["X-Answer-Source"] == "ratings=live"


@virtual
async def test_a_film_that_is_not_known_is_a_live_answer() -> None:
    rated = http(b'{"userId":"ada","ratings":[{"movieId":"a/b?c","rating":4.5}]}')
    async with raw(rated) as url, browsing(ratings=url) as browser:
        page = await browser.get("/catalog/ada")

    assert page.content == [{"name": "Movie Not Found", "desc": "", "rating": 4.5}]
    assert page.sources == {"ratings": "live", "info": "live"}
    assert page.headers["X-Degraded"] == "false"


@virtual
@pytest.mark.parametrize("movie_id", ["", ".", "..", "/", "a b\\r\\nc", "x" * 100_000])
async def test_a_film_whose_id_no_path_can_hold_costs_no_page(movie_id: str) -> None:
    rated = http(f'{{"userId":"ada","ratings":[{{"movieId":"{movie_id}","rating":4}}]}}'.encode())
    async with raw(rated) as url, browsing(ratings=url) as browser:
        page = await browser.get("/catalog/ada")

    assert page.status == 200
    assert page.content == [{"name": "Movie Not Found", "desc": "", "rating": 4}]
    assert page.sources["ratings"] == "live"


@virtual
@pytest.mark.parametrize("user", [b"..", b".", b"%2e%2e", b"%2e", b"\xff", b"%ff", b"%00", b"%0d%0aX: 1", b"a%2fb%3fc"])
@pytest.mark.parametrize("path", [b"/catalog/", b"/ratings/", b"/movies/"])
async def test_no_name_of_a_user_or_a_film_is_an_error_of_ours(user: bytes, path: bytes) -> None:
    async with browsing() as browser:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(browser.url.rpartition(":")[2]))
        suffix = b"/poster" if path == b"/movies/" else b""
        writer.write(b"GET " + path + user + suffix + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        reply = await reader.read()
        writer.close()

    assert int(reply.split()[1]) in {200, 400, 404}


@virtual
@pytest.mark.parametrize(("wait", "shown"), [("7", "7"), ("999999999", "86400")])
async def test_who_is_told_to_come_back_is_told_when(wait: str, shown: str) -> None:
    busy = http(status="429 Too Many Requests", headers=f"Retry-After: {wait}\r\n")
    async with raw(busy) as url, browsing(ratings=url) as browser:
        page = await browser.get("/ratings/ada")

    assert (page.status, page.headers["Retry-After"]) == (503, shown)
    assert page.content["retry_after"] == float(wait)


@virtual
async def test_an_upstream_that_never_wants_to_be_asked_again_is_no_error_of_ours() -> None:
    async with browsing() as browser:
        ratings = browser.catalog.gate["ratings"]

        @ratings.operation(idempotent=True)
        async def never() -> None:
            raise NotSent("never again", retry_after=inf)

        with pytest.raises(Failed) as told:
            await never()

    assert retry_after(told.value) == {"Retry-After": "86400"}


@virtual
@pytest.mark.parametrize(("status", "ours"), [("404 Not Found", 404), ("403 Forbidden", 502)])
async def test_a_no_of_the_ratings_service_is_no_reason_for_a_plan_b(status: str, ours: int) -> None:
    async with raw(http(status=status)) as url, browsing(ratings=url) as browser:
        pages = [await browser.get("/catalog/ada") for _ in range(8)]
        state = browser.state("ratings")

    assert {page.status for page in pages} == {ours}
    assert state == "closed"


@virtual
async def test_a_user_without_ratings_has_an_empty_page() -> None:
    async with raw(http(b'{"userId":"ada","ratings":[]}')) as url, browsing(ratings=url) as browser:
        page = await browser.get("/catalog/ada")

    assert page.content == []
    assert page.headers["X-Answer-Source"] == "ratings=live"


@virtual
async def test_an_upstream_where_nobody_listens_is_not_sent_to() -> None:
    with create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with browsing(ratings=f"http://127.0.0.1:{port}") as browser:
        page = await browser.get("/ratings/ada")

    assert page.status == 503
    assert "Unreachable" in page.content["error"]
    assert page.content["outcome"] == "failed"


# -- what goes out


class Recorder:
    """A ratings service that keeps the requests it gets."""

    def __init__(self, answer: RawAnswer) -> None:
        self.heads: list[bytes] = []
        self._answer = answer

    def __call__(self, head: bytes) -> bytes | None:
        self.heads.append(head)
        return self._answer(head)

    def sent(self, header: str) -> list[str]:
        lines = (line.decode().partition(": ") for head in self.heads for line in head.split(b"\r\n"))
        return [value for name, _, value in lines if name.lower() == header.lower()]


@virtual
async def test_an_upstream_is_told_how_long_we_wait() -> None:
    recorder = Recorder(http(b'{"userId":"ada","ratings":[]}'))
    async with raw(recorder) as url, browsing(ratings=url) as browser:
        await browser.get("/catalog/ada")
        await browser.get("/catalog/ada", **{"X-Deadline-Ms": "200"})

    usual, nearer = map(int, recorder.sent("X-Deadline-Ms"))
    assert 490 <= usual <= 500
    assert 90 <= nearer <= 100


@virtual
async def test_the_trace_of_a_page_goes_along_to_its_upstreams_and_to_no_other_page() -> None:
    recorder = Recorder(http(b'{"userId":"ada","ratings":[]}'))
    async with raw(recorder) as url, browsing(ratings=url) as browser:
        await browser.get("/catalog/ada", traceparent="00-1-2-01", tracestate="a=b", other="stays here")
        await browser.get("/catalog/bob")

    assert recorder.sent("traceparent") == ["00-1-2-01"]
    assert recorder.sent("tracestate") == ["a=b"]
    assert recorder.sent("other") == []


@virtual
async def test_a_caller_with_less_time_gets_its_page_within_it() -> None:
    async with raw(hanging) as url, browsing(ratings=url) as browser:
        page = await browser.get("/catalog/ada", **{"X-Deadline-Ms": "200"})
        late = await browser.get("/catalog/ada", **{"X-Deadline-Ms": "0"})

    assert page.status == late.status == 200
    assert page.took < 0.2
    assert late.content == [DEFAULT]


@virtual
async def test_each_try_is_sent_once() -> None:
    recorder = Recorder(lambda _: None)
    async with raw(recorder) as url, browsing(ratings=url) as browser:
        page = await browser.get("/ratings/ada")

    assert page.content["attempts"] == len(recorder.heads) == 2


@virtual
async def test_a_cookie_of_one_user_is_sent_for_no_other() -> None:
    recorder = Recorder(http(b'{"userId":"ada","ratings":[]}', headers="Set-Cookie: who=ada; Path=/\r\n"))
    async with raw(recorder) as url, browsing(ratings=url.replace("127.0.0.1", "localhost")) as browser:
        await browser.get("/catalog/ada")
        await browser.get("/catalog/bob")

    assert len(recorder.heads) == 2
    assert not recorder.sent("Cookie")


@virtual
async def test_a_client_that_leaves_cancels_its_calls() -> None:
    async with raw(hanging) as url, browsing(info=url) as browser:
        upstream = browser.catalog.gate["info"]
        reading = asyncio.create_task(browser.get("/catalog/ada"))
        await until(lambda: upstream.snapshot().bulkhead.in_use == 5)
        reading.cancel()
        await until(lambda: upstream.snapshot().bulkhead.in_use == 0)
        left = upstream.snapshot()
        await asyncio.gather(reading, return_exceptions=True)

    assert left.counts.cancelled == 5
    assert left.breaker.failures == 0


# -- the services


async def got(session: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    async with session.get(url) as response:
        return response.status, await response.json()


@virtual
async def test_the_ratings_of_a_user_are_the_same_in_every_run_and_name_films() -> None:
    async with served(ratings.create()) as url, aiohttp.ClientSession() as session:
        users = [await got(session, f"{url}/ratingsdata/user/{user}") for user in ("ada", "bob", "Zo%C3%AB%2F", "ada")]
        movie = await got(session, f"{url}/ratingsdata/movies/550")
        unknown = await got(session, f"{url}/ratingsdata/movies/0")

    assert users[0] == users[3] != users[1]
    assert [user["userId"] for _, user in users] == ["ada", "bob", "Zoë/", "ada"]
    assert [one["movieId"] for one in users[0][1]["ratings"]] == ["807", "278", "239", "598", "121"]
    assert all(one["movieId"] in films() and one["rating"] in range(1, 6) for one in users[0][1]["ratings"])
    assert list(movie[1]) == ["movieId", "rating"]
    assert unknown[0] == 404


@virtual
async def test_the_info_service_knows_its_films_and_no_others() -> None:
    async with served(info.create()) as url, aiohttp.ClientSession() as session:
        known = await got(session, f"{url}/movies/100")
        unknown = await got(session, f"{url}/movies/0")

    assert known[0] == 200
    assert list(known[1]) == ["movieId", "name", "description"]
    assert known[1]["name"] == "Lock, Stock and Two Smoking Barrels"
    assert unknown == (404, {"error": "there is no film '0'"})


def test_at_least_sixty_films_ship_each_with_one_line_about_it() -> None:
    shipped = films()

    assert len(shipped) >= 60
    assert len({film.name for film in shipped.values()}) == len(shipped)
    assert all(20 < len(film.description) < 120 and "\n" not in film.description for film in shipped.values())
    assert all(1900 < film.year < 2030 and film.director and film.id == key for key, film in shipped.items())


SERVICES: dict[str, Callable[[], web.Application]] = {
    **WELL,
    "catalog": lambda: Catalog(ratings_url="http://127.0.0.1:9", info_url="http://127.0.0.1:9").create(),
}


@virtual
@pytest.mark.parametrize("create", SERVICES.values(), ids=SERVICES)
async def test_every_service_has_the_same_switch_for_faults(create: Callable[[], web.Application]) -> None:
    async with served(create()) as url, aiohttp.ClientSession() as session:
        for mode in MODES:
            async with session.post(f"{url}/fault/{mode}") as response:
                assert response.status == 204
            assert await got(session, f"{url}/fault") == (200, {"mode": mode})
            assert await got(session, f"{url}/health") == (200, {"status": "ok"})
        async with session.post(f"{url}/fault/nonsense") as response:
            unknown = response.status, await response.json()
        kept = await got(session, f"{url}/fault")

    assert unknown[0] == 404
    assert list(unknown[1]["modes"]) == ["none", "hang", "fail", "slow", "drip", "flood", "reset"]
    assert kept == (200, {"mode": "reset"})


@virtual
async def test_who_hangs_is_answered_when_the_fault_is_over() -> None:
    async with served(info.create()) as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/fault/hang"):
            pass
        waiting = asyncio.create_task(got(session, f"{url}/movies/100"))
        await asyncio.sleep(60.0)
        hung = not waiting.done()
        async with session.post(f"{url}/fault/none"):
            pass
        status, _ = await waiting

    assert hung
    assert status == 200


# -- the processes


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with running("demo", *ANY_PORTS) as one:
        yield one


def test_a_page_goes_from_live_to_last_good_to_default_to_an_error(demo: Running) -> None:
    live = demo.get("catalog", "/catalog/eve")
    demo.fault("ratings", "hang")
    hanging = [demo.get("catalog", "/catalog/eve") for _ in range(6)]
    default = demo.get("catalog", "/catalog/mallory")
    error = demo.get("catalog", "/ratings/eve")

    assert live.source == "ratings=live, info=live"
    assert {page.source for page in hanging} == {"ratings=last_good, info=live"}
    assert all(page.json == live.json for page in hanging)
    assert default.source == "ratings=static, info=live"
    assert default.json == [DEFAULT]
    assert error.status == 503
    assert error.json["outcome"] == "rejected"
    assert int(error.headers["retry-after"]) in range(1, 6)


def test_each_service_is_a_process_of_its_own(demo: Running) -> None:
    assert set(children_of(demo.process.pid)) == {"catalog", "info", "ratings"}
    assert [ask("GET", f"{url}/health").status for url in demo.urls.values()] == [200, 200, 200]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_three_without_a_word(number: signal.Signals) -> None:
    with running("demo", *ANY_PORTS) as demo:
        children = children_of(demo.process.pid)
        ended = demo.end(number)

    assert ended == (0, "", "")
    assert len(children) == 3
    assert not any(lives(pid) for pid in children.values())
    assert not any(listens(port) for port in demo.ports.values())


def test_a_page_in_the_making_is_finished_before_the_end() -> None:
    with running("demo", *ANY_PORTS) as demo:
        demo.fault("ratings", "hang")
        status = asyncio.run(asked_while_it_ends(demo, "/catalog/ada"))
        code, _, complaints = demo.ended()

    assert status == 200
    assert code == 0
    assert "Traceback" not in complaints


async def asked_while_it_ends(demo: Running, path: str) -> int:
    async with aiohttp.ClientSession() as session:
        asking = asyncio.ensure_future(session.get(demo.urls["catalog"] + path))
        await asyncio.sleep(0.2)
        demo.process.send_signal(signal.SIGTERM)
        async with await asking as response:
            return response.status


def test_the_services_end_when_the_demo_is_killed() -> None:
    with running("demo", *ANY_PORTS) as demo:
        children = children_of(demo.process.pid)
        demo.process.kill()
        gone_by = time.monotonic() + 5.0
        while any(lives(pid) for pid in children.values()) and time.monotonic() < gone_by:
            time.sleep(0.02)

    assert len(children) == 3
    assert not any(lives(pid) for pid in children.values())
    assert not any(listens(port) for port in demo.ports.values())


def test_the_demo_ends_with_a_clear_line_when_a_service_dies() -> None:
    with running("demo", *ANY_PORTS) as demo:
        children = children_of(demo.process.pid)
        os.kill(children["info"], signal.SIGKILL)
        code, _, complaint = demo.ended()

    assert code == 1
    assert complaint == "Error: the info service ended by itself (killed by SIGKILL), and so does the demo\n"
    assert not any(lives(pid) for pid in children.values())


def test_the_catalog_asks_another_service_where_it_is_told_to() -> None:
    with running("demo", "ratings", "--port", "0", until="ready") as elsewhere:
        url = elsewhere.urls[""]
        with running("demo", *ANY_PORTS, "--ratings-url", url) as demo:
            live = demo.get("catalog", "/catalog/ada")
            ended = elsewhere.end()
            alone = demo.get("catalog", "/catalog/ada")

    assert set(demo.urls) == {"catalog", "info"}
    assert not any("/fault/" in line for line in demo.said), "what others do with such a request nobody knows"
    assert ended == (0, "", "")
    assert live.source == "ratings=live, info=live"
    assert alone.source == "ratings=last_good, info=live"


# -- what outlives it


def entries_in(file: Path) -> int:
    """How many answers the file has; 0 while it is being made."""
    try:
        with closing(connect(f"file:{file}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(*) FROM entries").fetchone()[0])
    except DatabaseError:
        return 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_catalog_answers_after_a_restart_though_the_ratings_are_gone(
    number: signal.Signals, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "catalog.sqlite"
    (nobody,) = free_ports(1)
    with running("demo", "info", "--port", "0", until="ready") as info:
        catalog = ("--memory", str(file), "--info-url", info.urls[""])
        with running("demo", *ANY_PORTS, *catalog) as demo:
            live = demo.get("catalog", "/catalog/eve")
            wait_until(lambda: number is signal.SIGTERM or entries_in(file) == 6)
            os.kill(children_of(demo.process.pid)["catalog"], number)
            demo.ended()
        gone = ("--ratings-url", f"http://127.0.0.1:{nobody}")
        with running("demo", "catalog", "--port", "0", *catalog, *gone, until="ready") as alone:
            again = alone.get("", "/catalog/eve?explain=1")
            plain = alone.get("", "/catalog/eve")
            default = alone.get("", "/catalog/mallory")

    assert live.source == "ratings=live, info=live"
    assert again.source == "ratings=last_good, info=live"
    assert plain.json == live.json
    assert all(0 < item["age"] < 60 for item in again.json["items"])
    assert again.headers["cache-status"] in {
        "catalog; fwd=stale; detail=last_good",
        "catalog; hit; detail=last_good",
    }
    assert 0 <= int(again.headers["age"]) < 60
    assert default.json == [DEFAULT]


def test_a_file_that_cannot_be_had_costs_a_line_and_no_page(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    (tmp_path / "no database").write_text("this is none" * 100)
    files = {tmp_path / "taken" / "x.sqlite": "remembers only until it ends", tmp_path / "no database": "is corrupt"}
    for file, complaint in files.items():
        arguments = ("catalog", "--port", "0", "--memory", str(file), *nobody_there())
        with running("demo", *arguments, until="ready") as alone:
            page = alone.get("", "/catalog/eve")
            _, said, complained = alone.end()

        assert page.json == [DEFAULT]
        assert complaint in said + complained


def nobody_there() -> tuple[str, ...]:
    ratings_port, info_port = free_ports(2)
    return ("--ratings-url", f"http://127.0.0.1:{ratings_port}", "--info-url", f"http://127.0.0.1:{info_port}")


def test_the_usual_file_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    named = store_in(None)
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path))
    usual = store_in(None)

    assert named is not None
    assert named.path == tmp_path / "cache" / "async-worker-gateway" / "catalog.sqlite"
    assert usual is not None
    assert usual.path == tmp_path / ".cache" / "async-worker-gateway" / "catalog.sqlite"
    assert store_in("none") is None
    assert store_in(str(tmp_path)) is None


# -- in standard words


@virtual
async def test_pages_and_posters_say_where_they_come_from_in_standard_words() -> None:
    rated = http(b'{"userId":"ada","ratings":[{"movieId":"100","rating":4}]}')
    answers = iter([rated(b"")])  # and then it closes the connection
    async with raw(lambda _: next(answers, None)) as url, browsing(ratings=url) as browser:
        live = await browser.get("/catalog/ada")
        await asyncio.sleep(12.0)
        remembered = await browser.get("/catalog/ada")
        default = await browser.get("/catalog/bob")
        async with browser.session.get(browser.url + "/movies/100/poster") as poster:
            drawn = dict(poster.headers)

    assert (live.headers["Cache-Status"], "Age" in live.headers) == ("catalog; fwd=miss", False)
    assert remembered.headers["Cache-Status"] == "catalog; fwd=stale; detail=last_good"
    assert remembered.headers["Age"] == "12"
    assert (default.headers["Cache-Status"], "Age" in default.headers) == ("catalog; fwd=miss; detail=static", False)
    assert drawn["Cache-Status"] == "catalog; fwd=miss"
