"""The info service before TMDB, which here is a server of ours: what it makes of each answer, and that no key leaks."""

from __future__ import annotations

import asyncio
import io
import json
import os
from asyncio import StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway import Failed, log
from gateway.demo import info
from gateway.demo.films import films
from tests.edges.running import ANY_PORTS, ask, running
from tests.edges.serving import served, talking

pytestmark = pytest.mark.asyncio
KEY = "0123456789abcdef0123456789abcdef"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJhdWQiOiJkZW1vIn0.c2lnbmF0dXJl"  # noqa: S105 - nobody's
FILM = {"id": 11, "title": "Star Wars", "overview": "Princess Leia is captured.", "runtime": 121, "adult": False}
NO_SUCH_FILM = {"success": False, "status_code": 34, "status_message": "The resource could not be found."}


class Tmdb:
    """TMDB, as far as films go."""

    def __init__(self, answer: Any = FILM, status: int = 200, **headers: str) -> None:
        self.answer, self.status, self.headers = answer, status, headers
        self.asked: list[web.Request] = []

    def create(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/3/movie/{id}", self.movie)
        return app

    async def movie(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        return web.json_response(self.answer, status=self.status, headers=self.headers)


class Asked:
    """What the info service said, and all that stood in its log by then."""

    def __init__(self, url: str, session: aiohttp.ClientSession, logged: io.StringIO) -> None:
        self.url, self.session, self.logged = url, session, logged
        self.bodies = ""

    async def get(self, movie_id: str, **headers: str) -> tuple[int, Any, Any]:
        async with self.session.get(f"{self.url}/movies/{movie_id}", headers=headers) as response:
            text = await response.text()
            self.bodies += f"{response.status} {response.raw_headers} {text}\n"
            return response.status, json.loads(text), response.headers


@asynccontextmanager
async def info_before(url: str, *, key: str = KEY) -> AsyncIterator[Asked]:
    logged = io.StringIO()
    log.configure(json=False, stream=logged)
    app = info.create({"TMDB_API_KEY": f" {key}\n", "TMDB_BASE_URL": url})
    async with served(app) as ours, aiohttp.ClientSession() as session:
        asked = Asked(ours, session, logged)
        yield asked
    assert key not in asked.bodies + logged.getvalue()


@pytest.mark.parametrize("path", ["", "/", "/3", "/3/"])
async def test_a_film_is_what_tmdb_says_of_it(path: str) -> None:
    tmdb = Tmdb()
    async with served(tmdb.create()) as url, info_before(url + path) as service:
        status, film, _ = await service.get("11")

    assert (status, film) == (
        200,
        {"movieId": "11", "name": "Star Wars", "description": "Princess Leia is captured."},
    )
    assert [request.query["api_key"] for request in tmdb.asked] == [KEY]


async def test_a_token_of_v4_goes_as_a_bearer_and_not_into_the_address() -> None:
    tmdb = Tmdb({**FILM, "overview": None})
    async with served(tmdb.create()) as url, info_before(url, key=TOKEN) as service:
        _, film, _ = await service.get("11")

    assert film["description"] == ""
    (request,) = tmdb.asked
    assert (request.headers["Authorization"], request.query_string) == (f"Bearer {TOKEN}", "")


async def test_tmdb_is_told_how_long_we_wait() -> None:
    tmdb = Tmdb()
    async with served(tmdb.create()) as url, info_before(url) as service:
        await service.get("11", **{"X-Deadline-Ms": "900"})

    assert 0 < int(tmdb.asked[0].headers["X-Deadline-Ms"]) <= 900


async def test_a_film_that_tmdb_does_not_know_is_none() -> None:
    tmdb = Tmdb(NO_SUCH_FILM, 404)
    async with served(tmdb.create()) as url, info_before(url) as service:
        status, content, _ = await service.get("999999999")
        strange, _, _ = await service.get("popular")

    assert (status, strange) == (404, 404)
    assert content == {"error": "there is no film '999999999'"}
    assert len(tmdb.asked) == 1, "a 404 is asked once; what is no number, never"


@pytest.mark.parametrize(("status", "code"), [(401, 7), (403, 3)])
async def test_a_key_that_tmdb_refuses_is_a_502_and_one_clear_line(status: int, code: int) -> None:
    said = f"Invalid API key {KEY}: You must be granted a valid key."  # an answer that repeats it
    async with (
        served(Tmdb({"status_code": code, "status_message": said}, status).create()) as url,
        info_before(url) as service,
    ):
        answers = [await service.get("11") for _ in range(3)]

    assert {answer[0] for answer in answers} == {502}
    assert answers[0][1] == {"error": f"TMDB does not accept the key in TMDB_API_KEY ({status})"}
    (line,) = service.logged.getvalue().splitlines()
    assert f"TMDB does not accept the key in TMDB_API_KEY ({status}); correct it" in line


async def test_too_many_requests_are_a_503_that_says_when_to_come_back() -> None:
    tmdb = Tmdb({"status_code": 25}, 429, **{"Retry-After": "7"})
    async with served(tmdb.create()) as url, info_before(url) as service:
        status, content, headers = await service.get("11")

    assert (status, headers["Retry-After"]) == (503, "7")
    assert content["outcome"] == "failed"
    assert len(tmdb.asked) == 1, "seven seconds are too long to wait for"


async def test_an_open_circuit_is_a_503_too() -> None:
    tmdb = Tmdb({}, 500)
    async with served(tmdb.create()) as url, info_before(url) as service:
        statuses = [(await service.get("11"))[0] for _ in range(6)]
        status, content, headers = await service.get("11")

    assert set(statuses[:4]) == {502}
    assert (status, headers["Retry-After"]) == (503, "5")
    assert content["error"] == "CircuitOpen: the circuit is open"


async def nobody(_: bytes, writer: StreamWriter) -> None:
    writer.transport.abort()


async def garbage(head: bytes, writer: StreamWriter) -> None:
    writer.write(b"HTTP/1.1 what?\r\n" + head)


async def echo(head: bytes, writer: StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + head)


async def elsewhere(head: bytes, writer: StreamWriter) -> None:
    writer.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + head.split()[1] + b"\r\n\r\n")


async def too_long(_: bytes, writer: StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 2_000_000)


async def hangs(_: bytes, writer: StreamWriter) -> None:
    await asyncio.sleep(3600)


@pytest.mark.parametrize("talk", [nobody, garbage, echo, elsewhere, too_long, hangs])
@pytest.mark.parametrize("key", [KEY, TOKEN])
async def test_the_key_stands_in_no_error_whatever_the_other_side_does(talk: Any, key: str) -> None:
    async with talking(talk) as url, info_before(url, key=key) as service:
        status, content, _ = await service.get("11", **{"X-Deadline-Ms": "300"})

    assert status == (504 if talk is hangs else 502)
    assert key[:12] not in json.dumps(content)


async def test_where_nobody_listens_the_address_is_named_but_not_the_key() -> None:
    async with info_before("http://127.0.0.1:9") as service:
        status, content, _ = await service.get("11")

    assert status == 502
    assert "http://127.0.0.1:9" in content["error"]


async def test_errors_hold_on_to_nothing_that_holds_the_key() -> None:
    async with talking(garbage) as url:
        service = info.Tmdb(KEY, url)
        async with service.gate:
            with pytest.raises(Failed) as raised:
                await service._movie("11")

    error: BaseException | None = raised.value
    while error is not None:
        assert KEY not in f"{error!r} {error} {vars(error)}"
        error = error.__cause__ or error.__context__


async def test_without_a_key_the_films_that_ship_with_it_are_told_of() -> None:
    async with served(info.create({"TMDB_BASE_URL": "http://127.0.0.1:9"})) as url:
        reply = await asyncio.to_thread(ask, "GET", f"{url}/movies/11")

    assert reply.json["name"] == films()["11"].name
    assert len(films()) >= 60


async def test_the_whole_demo_with_tmdb_keeps_the_key_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    tmdb = Tmdb()
    async with served(tmdb.create()) as url:
        monkeypatch.setitem(os.environ, "TMDB_API_KEY", KEY)
        monkeypatch.setitem(os.environ, "TMDB_BASE_URL", url)
        demo = running("demo", *ANY_PORTS)
        one = await asyncio.to_thread(demo.__enter__)
        try:
            seen = b""
            for status in (200, 404, 401, 429, 500):
                tmdb.status = status
                for path in ("/catalog/ada?explain=1", "/catalog/bob", "/upstreams", "/"):
                    reply = await asyncio.to_thread(one.get, "catalog", path)
                    assert reply.status == 200
                    seen += f"{reply.headers}".encode() + reply.body
                reply = await asyncio.to_thread(one.get, "info", "/movies/12")
                seen += f"{reply.headers}".encode() + reply.body
            ended = await asyncio.to_thread(one.end)
        finally:
            await asyncio.to_thread(demo.__exit__, None, None, None)

    assert b"Princess Leia" in seen
    assert KEY.encode() not in seen
    assert KEY not in "".join(map(str, ended))
    assert "TMDB does not accept the key in TMDB_API_KEY (401)" in ended[2]
